"""Scores of networks: views and ensembles average probabilities, each image comes once and in order."""

import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from golden import make_state_dict

from configs import base
from input_pipeline import DamagedImageError, Dataset
from models import get_entry
from models.torch_names import from_torch, torch_shapes
from training.averaging import batch_statistics
from training.checkpoints import Checkpoints
from training.configuration import resolve_network
from training.program import make_program
from training.scoring import Inputs, Member, load_average, score
from training.state import make_mesh, make_model, select
from training.transfer import save_weights
from training.views import at_sizes

VIEWS = np.load(pathlib.Path(__file__).parents[1] / "golden" / "views.npz")
CLASSES = tuple("abcdefghij")


def make_dataset(images, class_names=CLASSES):
    """Returns a dataset of uint8 images whose labels are their positions modulo 10."""
    return Dataset(
        name="memory",
        split="test",
        class_names=tuple(class_names),
        size=len(images),
        read=lambda record: (images[record], record % 10),
        describe=lambda record: f"record {record}",
    )


def random_images(count, height=32, width=32, channels=3):
    return np.random.RandomState(0).randint(0, 256, (count, height, width, channels)).astype(np.uint8)


def make_member(seed=0, class_names=CLASSES, mesh=None, **options):
    """Returns a LeNet-5 for colour images; its random weights are enlarged, so that probabilities differ."""
    config = base.get_config()
    config.update(
        {"model": "lenet5", "channels": 3, "num_classes": 10, "image_size": 32, "eval_batch_size": 8, "num_steps": 1}
    )
    config.update({"seed": seed} | options)
    config = resolve_network(config)
    state = make_program(config, mesh or make_mesh(1), steps_per_epoch=1).initial_state()
    params = jax.tree.map(lambda leaf: 5 * leaf, state["params"])
    return Member(pathlib.Path(f"run{seed}"), 0, config, params, state["batch_stats"], list(class_names))


def scores_of(members, images, views="1", sizes=((), ()), mesh=None, class_names=CLASSES):
    """Returns the records, the labels and the log-probabilities (members, N, classes) of all images."""
    inputs = Inputs([at_sizes(member.config, *sizes, views) for member in members], views)
    datasets = [make_dataset(images, class_names)] * len(inputs.loaded)
    records, labels, log_probabilities = zip(*score(members, inputs, datasets, mesh or make_mesh(1)), strict=True)
    return np.concatenate(records), np.concatenate(labels), np.concatenate(log_probabilities, axis=1)


@pytest.fixture(scope="module")
def resnet18():
    """ResNet-18 with the weights from which PyTorch computed VIEWS."""
    config = base.get_imagenet_config()
    config.update({"model": "resnet18", "num_classes": 10, "image_size": 56, "eval_resize": 64, "eval_batch_size": 8})
    config = resolve_network(config)
    model, entry = make_model(config, training=False), get_entry("resnet18")
    tensors = make_state_dict(torch_shapes(entry, model))
    for name in ("fc.weight", "fc.bias"):
        tensors[name] = tensors[name] / 100
    values = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), from_torch(entry, model, tensors))
    parts = [select(values, nnx.to_pure_dict(part)) for part in nnx.state(model, nnx.Param, nnx.BatchStat)]
    return Member(pathlib.Path("resnet18"), 0, config, *parts, list(CLASSES))


@pytest.mark.parametrize("views", ["1", "flip", "5", "10"])
def test_views_are_averaged_as_pytorch_does(resnet18, views):
    _, _, (log_probabilities,) = scores_of([resnet18], random_images(2, 80, 64), views)
    np.testing.assert_allclose(log_probabilities, VIEWS[views], rtol=0, atol=1e-4)


def test_every_image_counts_once_in_the_datasets_order():
    """19 images in batches of 8, on one device and on eight, with a damaged image in the middle."""
    images = list(random_images(19))
    records, labels, (alone,) = scores_of([make_member()], images)
    assert records.tolist() == list(range(19)) and labels.tolist() == [record % 10 for record in range(19)]
    images[9] = b"no image"
    mesh = make_mesh(8)
    records, _, (spread,) = scores_of([make_member(mesh=mesh, on_bad_image="skip")], images, mesh=mesh)
    assert records.tolist() == [*range(9), *range(10, 19)]
    np.testing.assert_allclose(spread, np.delete(alone, 9, axis=0), rtol=1e-5, atol=1e-5)
    with pytest.raises(DamagedImageError, match="record 9"):
        scores_of([make_member()], images)
    with pytest.raises(DamagedImageError, match="not one image"):
        scores_of([make_member(on_bad_image="skip")], [b"no image"] * 3)


def test_several_sizes_are_averaged():
    member, images = make_member(), random_images(5, 48, 40)
    apart = [scores_of([member], images, sizes=([size], [resize]))[2][0] for size, resize in ((32, 36), (40, 40))]
    _, _, (together,) = scores_of([member], images, sizes=([32, 40], [36, 40]))
    np.testing.assert_allclose(np.exp(together), np.exp(apart).mean(axis=0), rtol=1e-5, atol=1e-7)
    assert np.abs(apart[0] - apart[1]).max() > 1e-3


def test_the_members_of_an_ensemble_take_their_own_images_and_classes():
    """The second network has its classes in another order, and sees larger images in grey."""
    first, backwards = make_member(), CLASSES[::-1]
    second = make_member(seed=1, class_names=backwards, image_size=40, channels=1)
    images = random_images(3)
    _, _, together = scores_of([first, second], images)
    alone = [scores_of([first], images)[2][0], scores_of([second], images, class_names=backwards)[2][0][:, ::-1]]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    bicubic = make_member(interpolation="bicubic", image_size=24)
    members = [make_member(interpolation="bilinear", image_size=24), bicubic]
    _, _, together = scores_of(members, images)
    np.testing.assert_allclose(together[1], scores_of([bicubic], images)[2][0], rtol=1e-5, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3
    with pytest.raises(ValueError, match="run1 has other classes than run0: .*'a'"):
        scores_of([first, make_member(seed=1, class_names=("z", *CLASSES[1:]))], images)


@pytest.mark.parametrize(
    ("sizes", "views", "message"),
    [
        (([32], [30]), "1", "--resize=30 is smaller than the crop of 32 pixels"),
        (((), ()), "10", "--views=10 needs images larger than the crop of 32 pixels"),
        (([32, 40], [48, 48, 48]), "1", "--image_size has 2 values and --resize 3"),
    ],
)
def test_invalid_sizes_are_refused(sizes, views, message):
    with pytest.raises(ValueError, match=message):
        at_sizes(
            make_member(model="alexnet_owt", image_size=224).config if sizes[0] == [1] else make_member().config,
            *sizes,
            views,
        )


def test_a_larger_crop_keeps_the_proportion_to_the_image():
    config = make_member(image_size=32, eval_resize=36).config
    assert [(seen.image_size, seen.eval_resize) for seen in at_sizes(config, [64], [], "1")] == [(64, 72)]
    assert [(seen.image_size, seen.eval_resize) for seen in at_sizes(config, [], [40, 48], "1")] == [(32, 40), (32, 48)]


def test_a_run_from_published_weights_is_evaluated_at_the_size_that_is_given():
    """The run's config has the settings of the weights; they do not replace what was changed since."""
    config = base.get_imagenet_config()
    config.update({"model": "resnet18", "init_from": "timm/resnet18.a1_in1k", "num_classes": 10})
    config = resolve_network(config)
    assert (config.image_size, config.interpolation) == (224, "bicubic")
    config.mean = (0.1, 0.2, 0.3)
    seen = at_sizes(config, [192, 224, 288], [], "1")
    assert [each.image_size for each in seen] == [192, 224, 288] and all(each.mean == config.mean for each in seen)


def test_a_network_that_computes_nan_is_named():
    member = make_member()
    member = member._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, member.params))
    with pytest.raises(FloatingPointError, match="the network of run0, step 0, computes NaN"):
        scores_of([member], random_images(3))


def test_the_mean_of_checkpoints(tmp_path):
    """Of the two newest of three checkpoints."""
    mesh, members = make_mesh(1), [make_member(seed) for seed in (0, 1, 2)]
    save_weights(tmp_path / "run", members[0].config, CLASSES, members[0].params)
    for step, member in enumerate(members[1:], start=1):
        state = make_program(member.config, mesh, steps_per_epoch=1).initial_state()
        with Checkpoints(tmp_path / "run", keep=3) as checkpoints:
            checkpoints.save(state | {"step": np.int32(step), "params": member.params})
    average = load_average(tmp_path / "run", mesh, 2)
    assert average.step == 2
    jax.tree.map(
        lambda mean, a, b: np.testing.assert_allclose(mean, (a + b) / 2, rtol=1e-6),
        average.params,
        members[1].params,
        members[2].params,
    )
    with pytest.raises(ValueError, match="has 3 checkpoints, not 5"):
        load_average(tmp_path / "run", mesh, 5)
    with Checkpoints(tmp_path / "run", keep=4) as checkpoints:
        checkpoints.save(state | {"step": np.int32(3)})  # a fourth one: the best is kept, however old it is
    with pytest.raises(ValueError, match="keeps the newest 3 checkpoints, not 4; give a smaller --average"):
        load_average(tmp_path / "run", mesh, 4)


def test_batch_statistics_are_those_of_the_images():
    """The first normalisation sees the first convolution's map, whose mean and variance NumPy computes."""
    member, mesh = make_member(model="resnet20"), make_mesh(1)
    images = random_images(12)
    batches = [{"image": jax.device_put(part)} for part in (images[:8], images[8:])]
    found = batch_statistics(member.config, member.params, member.batch_stats, batches, mesh)
    kernel = np.asarray(member.params["conv1"]["kernel"])
    layout = ("NHWC", "HWIO", "NHWC")
    maps = [
        jax.lax.conv_general_dilated(part / 127.5 - 1, kernel, (1, 1), "SAME", dimension_numbers=layout)
        for part in (images[:8].astype(np.float32), images[8:].astype(np.float32))
    ]
    flat = [np.asarray(part, np.float64).reshape(-1, kernel.shape[-1]) for part in maps]
    np.testing.assert_allclose(found["norm1"]["mean"], np.mean([part.mean(0) for part in flat], 0), atol=1e-5)
    np.testing.assert_allclose(found["norm1"]["var"], np.mean([part.var(0, ddof=1) for part in flat], 0), rtol=1e-4)
