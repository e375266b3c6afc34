"""A run learns from a teacher: the divergence is PyTorch's, classes are matched by name, the teacher stays as it is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import train
from configs import base
from models import initial_values
from training.configuration import resolve_network
from training.distillation import load_teacher, make_lesson
from training.interruption import Interruption
from training.loss import Lesson, cross_entropy, divergence, weighted_loss
from training.program import make_program
from training.state import make_mesh, make_model
from training.transfer import load_model, save_weights

LOGITS = [[1.0, -2.0, 0.5, 0.0], [0.3, 0.1, -0.4, 2.0], [-1.0, 0.0, 1.0, -0.5]]
TEACHER = [[0.0, 1.0, 2.0, -1.0], [1.0, 0.0, 0.0, 1.0], [-2.0, 0.5, 0.5, 0.0]]
NAMES = tuple(f"class{number}" for number in range(10))


# kl_div(log_softmax(x / T), log_softmax(teacher / T), reduction="batchmean", log_target=True) * T * T
# in float64, PyTorch 2.13.0
@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.4128552366677103), (4.0, 0.584854679082091)])
def test_divergence_is_pytorchs(temperature, expected):
    found = divergence(jnp.asarray(LOGITS), jnp.asarray(TEACHER), temperature)
    assert float(found.mean()) == pytest.approx(expected, rel=1e-5)


def test_the_lesson_takes_its_share_of_the_main_loss_only():
    logits, labels = jnp.asarray(LOGITS), jnp.asarray([2, 0, 3])
    lesson = Lesson(jnp.asarray(TEACHER), 0.3, 2.0)
    loss, sums = weighted_loss((logits, [logits]), labels, (0.5,), lesson=lesson)
    own, taught = cross_entropy(logits, labels).mean(), divergence(logits, lesson.logits, 2.0).mean()
    assert float(loss) == pytest.approx(float(0.7 * own + 0.3 * taught + 0.5 * own), rel=1e-6)
    assert float(sums["loss"]) == pytest.approx(3 * float(own), rel=1e-6)  # as in an evaluation
    assert float(sums["total_loss"]) == pytest.approx(3 * float(loss), rel=1e-6)


@pytest.fixture
def workdir(tmp_path):
    """A workdir with a LeNet-5 of random weights, with classes and a normalisation of its own."""
    config = base.get_config()
    config.update({"num_classes": 10, "mean": (0.2,), "std": (0.3,)})
    config = resolve_network(config)
    save_weights(tmp_path / "teacher", config, NAMES, initial_values(make_model(config, training=True), seed=5))
    return tmp_path / "teacher"


def student(workdir, **options):
    config = base.get_config()
    config.update({"num_steps": 4, "num_classes": 10, "teacher": str(workdir), "teacher_weight": 1.0} | options)
    return resolve_network(config)


def images(count=4):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 1), np.uint8)


def test_classes_are_matched_by_name_and_pixels_normalised_for_the_teacher(workdir):
    config, order = student(workdir), [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    teacher = load_teacher(config, tuple(NAMES[number] for number in order), make_mesh(1))
    model, _ = load_model(workdir)
    expected = model((images() / 255 - 0.2) / 0.3)
    np.testing.assert_allclose(
        make_lesson(teacher)(teacher.variables, images()), expected[:, np.array(order)], rtol=1e-4
    )


def divergence_from_the_teacher(workdir, params):
    """Returns the mean divergence of a student's logits from the teacher's, without any code of the step."""
    logits = []
    for mean, std, values in ((0.2, 0.3, None), (0.5, 0.5, params)):
        model, _ = load_model(workdir)
        if values:
            nnx.update(model, values)
        logits.append(np.asarray(model((images() / 255 - mean) / std), np.float64))
    teacher, own = (np.log(np.exp(each) / np.exp(each).sum(-1, keepdims=True)) for each in logits)
    return (np.exp(teacher) * (teacher - own)).sum(-1).mean()


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_step_minimises_the_divergence_without_memory_for_the_teacher(workdir, accumulation_steps):
    mesh = make_mesh(1)
    config = student(workdir, batch_size=4, weight_decay=0.0, momentum=0.0, accumulation_steps=accumulation_steps)
    teacher = load_teacher(config, NAMES, mesh)
    program = make_program(config, mesh, 10, teacher=teacher)
    state = program.initial_state()
    params, before = jax.device_get((state["params"], teacher.variables))
    assert not [leaf for leaf in jax.tree.leaves(state["opt_state"]) if leaf.ndim]  # nor for the network: no momentum
    batch, losses = {"image": images(), "label": np.zeros(4, np.int32)} | program.constants, []
    for _ in range(3):
        state, sums = program.train_step(state, program.zero_sums(), batch)
        losses.append(float(sums["total_loss"]) / 4)
    assert losses[0] == pytest.approx(divergence_from_the_teacher(workdir, params), rel=1e-3)
    assert losses[2] < losses[1] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(teacher.variables))


def test_a_teacher_that_lacks_a_class_or_a_channel_is_refused(workdir):
    with pytest.raises(ValueError, match="cannot teach these classes: 1 of the dataset's 10 classes"):
        load_teacher(student(workdir), (*NAMES[:9], "zebra"), make_mesh(1))
    with pytest.raises(ValueError, match="takes images of 1 channels, but channels is 3"):
        load_teacher(student(workdir, channels=3), NAMES, make_mesh(1))
    with pytest.raises(ValueError, match=r"teacher=.*: image_size=11 does not fit lenet5 \(.*\); use at least 16$"):
        load_teacher(student(workdir, model="resnet20", channels=1, image_size=11), NAMES, make_mesh(1))
    with pytest.raises(ValueError, match="no published weights are called 'timm/resnet5'; did you mean"):
        load_teacher(student("timm/resnet5"), NAMES, make_mesh(1))


@pytest.mark.parametrize("cache", ["", "device"])
def test_a_run_with_a_teacher(cache, tmp_path, monkeypatch):
    """The teacher is a run of the same dataset, whose classes have the digits' names."""
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(1))
    config = base.get_config()
    config.update({"num_steps": 2, "batch_size": 8, "eval_batch_size": 8, "validation_share": 0.02})
    config.compilation_cache_dir = ""
    train.train(config, tmp_path / "teacher", Interruption())
    config.update({"teacher": str(tmp_path / "teacher"), "teacher_weight": 0.4, "cache": cache})
    train.train(config, tmp_path / "student", Interruption())
    rows = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    assert all("total_loss" in row for row in rows if row["split"] == "train")
    summary = json.loads((tmp_path / "student" / "summary.json").read_text())
    assert summary["parameters"] == json.loads((tmp_path / "teacher" / "summary.json").read_text())["parameters"]
