"""The step gives the same numbers on any number of devices, makes no hidden copies, and is compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from training.evaluation import evaluate_each
from training.inference import make_apply
from training.loss import means
from training.state import make_model
from training.step import make_eval_step

RESNET = {"model": "resnet20", "channels": 3, "image_size": 16}


def assert_close(tree, other, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(jax.device_get(a), jax.device_get(b), **tolerance), tree, other
    )


@pytest.mark.parametrize("options", [{}, {"bn_virtual_batch_size": 2}], ids=["whole batch", "virtual batches"])
def test_losses_do_not_depend_on_the_number_of_devices(make_trainer, make_batches, options):
    batches = make_batches(3, image_size=16, channels=3)
    one, eight = (make_trainer(devices, **RESNET, **options).run(batches) for devices in (1, 8))
    np.testing.assert_allclose(one, eight, rtol=2e-4)


def test_dropout_does_not_depend_on_the_number_of_devices(make_trainer, make_batches):
    batches = make_batches(2)
    one, eight = (make_trainer(devices, dropout_rate=0.5).run(batches) for devices in (1, 8))
    np.testing.assert_allclose(one, eight, rtol=1e-5)
    assert make_trainer(dropout_rate=0.0).run(batches) != pytest.approx(one, rel=2e-5)


def test_accumulated_gradients_are_those_of_the_whole_batch(make_trainer, make_batches):
    whole, cut = make_trainer(), make_trainer(num_devices=2, accumulation_steps=4)
    assert whole.run(make_batches(3)) == pytest.approx(cut.run(make_batches(3)), rel=1e-5)
    assert_close(whole.state["params"], cut.state["params"], rtol=1e-4, atol=1e-6)


def test_accumulation_and_virtual_batches_do_not_depend_on_the_number_of_devices(make_trainer, make_batches):
    options = RESNET | {"accumulation_steps": 2, "bn_virtual_batch_size": 2}
    batches = make_batches(2, image_size=16, channels=3)
    one, four = make_trainer(1, **options), make_trainer(4, **options)
    np.testing.assert_allclose(one.run(batches), four.run(batches), rtol=2e-4)
    assert_close(one.state["batch_stats"], four.state["batch_stats"], rtol=1e-3, atol=1e-4)


def test_the_average_of_the_weights(make_trainer, make_batches):
    """The decay is TensorFlow's for the number of updates: 1/10, 2/11, 3/12 and so on, up to the option's value."""
    trainer = make_trainer(ema_decay=0.25, **RESNET)
    expected = jax.device_get({name: trainer.state[name] for name in ("ema", "ema_batch_stats")})
    for decay, batch in zip((1 / 10, 2 / 11, 3 / 12, 0.25), make_batches(4, image_size=16, channels=3), strict=True):
        trainer.run([batch])
        new = jax.device_get({"ema": trainer.state["params"], "ema_batch_stats": trainer.state["batch_stats"]})
        expected = jax.tree.map(lambda old, new, decay=decay: decay * old + (1 - decay) * new, expected, new)
    assert_close({name: trainer.state[name] for name in expected}, expected, rtol=1e-5, atol=1e-6)


def test_gradient_norms_are_means_over_steps_of_the_loss_s_own_gradient(make_trainer, make_batches):
    """The norms are those of plain SGD's updates; clipping, weight decay, devices and micro-batches change nothing."""
    plain = make_trainer(log_gradient_norms=True, learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    batches, norms = make_batches(2), []
    for batch in batches:
        before = jax.device_get(plain.state["params"])
        plain.state, plain.sums = plain.step(plain.state, plain.sums, batch | plain.constants)
        taken = jax.tree.map(np.subtract, before, jax.device_get(plain.state["params"]))
        squares = {part: sum(np.sum(leaf**2.0) for leaf in jax.tree.leaves(inner)) for part, inner in taken.items()}
        whole = {"gradient_norm": np.sqrt(sum(squares.values()))}
        norms.append(whole | {f"gradient_norm/{part}": np.sqrt(square) for part, square in squares.items()})
    expected = {name: np.mean([each[name] for each in norms]) for name in norms[0]}
    found = means(jax.device_get(plain.sums))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found.keys() - expected.keys() == means(make_trainer().sums | {"examples": 1}).keys()

    options = {"gradient_clip_norm": 1e-3, "weight_decay": 0.1, "accumulation_steps": 2, "log_gradient_norms": True}
    other = make_trainer(num_devices=8, **options)
    _, sums = other.step(other.state, other.sums, batches[0] | other.constants)
    found = means(jax.device_get(sums))
    assert {name: found[name] for name in expected} == pytest.approx(norms[0], rel=1e-4)


def test_a_step_learns_in_bfloat16_and_keeps_float32(make_trainer, make_batches):
    trainer = make_trainer(dtype="bfloat16")
    losses = trainer.run(make_batches(1) * 30)
    assert losses[-1] < losses[0] - 0.1
    assert {leaf.dtype for leaf in jax.tree.leaves(trainer.state["params"])} == {np.dtype(np.float32)}


def test_nothing_is_compiled_twice(make_trainer, make_batches):
    trainer = make_trainer(num_devices=8)
    trainer.run(make_batches(4))
    assert trainer.step._cache_size() == 1


def test_the_old_state_is_given_up(make_trainer, make_batches):
    trainer = make_trainer()
    old = trainer.state
    trainer.run(make_batches(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old["params"]))


@pytest.mark.parametrize("batch_size", [5, 8, 23, 32])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_evaluation_counts_every_image_once(make_trainer, make_batches, batch_size, num_devices):
    """The result equals that of a loop over single images."""
    if batch_size % num_devices:
        batch_size = -(-batch_size // num_devices) * num_devices
    trainer, (data,) = make_trainer(num_devices), make_batches(1, batch_size=23)
    model, variables = (
        make_model(trainer.config, training=False),
        (trainer.state["params"], trainer.state["batch_stats"]),
    )

    apply = jax.jit(make_apply(trainer.config, model))
    logits = np.concatenate(
        [jax.device_get(apply(*variables, data["image"][[row]])) for row in range(23)], dtype=np.float64
    )
    losses = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, data["label"], strict=True)]
    ranks = [(row > row[label]).sum() for row, label in zip(logits, data["label"], strict=True)]

    def batches():
        for first in range(0, 23, batch_size):
            rows = {name: array[first : first + batch_size] for name, array in data.items()}
            missing = batch_size - len(rows["label"])
            rows["mask"] = np.ones(len(rows["label"]), np.float32)
            padded = {name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for name, array in rows.items()}
            yield jax.device_put(padded, NamedSharding(trainer.mesh, PartitionSpec("data")))

    eval_step = make_eval_step(trainer.config, model, trainer.mesh)
    (found,) = evaluate_each(eval_step, [variables], batches())
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert found["accuracy_top1"] == pytest.approx(np.mean(np.array(ranks) < 1))
    assert found["accuracy_top5"] == pytest.approx(np.mean(np.array(ranks) < 5))


@pytest.mark.parametrize(
    "options",
    [
        {"dropout_rate": 0.5},
        {"auto_augment": "trivial", "color_jitter": (0.4, 0.4, 0.4, 0.1)},
        {"auto_augment": "rand"},
        {"random_erasing": 1.0},
        {"mixup_alpha": 0.2, "cutmix_alpha": 1.0},
    ],
    ids=" ".join,
)
def test_one_program_serves_all_seeds_and_each_seed_draws_anew(options, make_trainer, make_batches):
    """The seed is an argument of the compiled step."""
    (batch,) = make_batches(1)
    zero, one = (make_trainer(seed=seed, **options) for seed in (0, 2**32 - 1))
    texts = {each.step.lower(each.state, each.sums, batch | each.constants).as_text() for each in (zero, one)}
    assert len(texts) == 1
    one.state = jax.tree.map(jnp.copy, zero.state)
    assert zero.run([batch]) != one.run([batch])
