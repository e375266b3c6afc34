import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import base
from input_pipeline import make_augmentation, normalize
from input_pipeline.augmentation import MixedLabels, beta_quantile, draw_uniforms, mix, random_erasing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES = np.random.RandomState(0).randint(0, 256, (16, 12, 10, 3)).astype(np.uint8)
LABELS, POSITIONS = np.arange(16, dtype=np.int32), np.arange(32, 48, dtype=np.uint32)
EVERYTHING = {"auto_augment": "trivial", "color_jitter": (0.4, 0.4, 0.4, 0.1), "random_erasing": 0.5}
EVERYTHING |= {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}


@functools.cache
def compiled(**options):
    config = base.get_config()
    config.update(options)
    return jax.jit(make_augmentation(config))


def augment(images=IMAGES, labels=LABELS, positions=POSITIONS, seed=0, **options):
    return jax.device_get(compiled(**options)(images, labels, positions, np.uint32(seed)))


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_normalize_in_the_jitted_step(dtype, tolerance):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    expected = (images.astype(np.float64) / 255 - MEAN) / STD
    on_device = jax.device_put(images)
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        result = jax.jit(lambda images: normalize(images, MEAN, STD, dtype))(on_device)
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert result.dtype == dtype
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=tolerance, atol=1e-6)


def test_without_options_there_is_nothing_to_do():
    assert make_augmentation(base.get_config()) is None


def test_an_image_is_changed_by_its_position_alone():
    """The row of an image in the batch does not matter; another position or seed gives another result."""
    images, labels = augment(**EVERYTHING)
    pairs = np.arange(16).reshape(8, 2)[::-1].ravel()  # neighbours stay together
    moved, moved_labels = augment(IMAGES[pairs], LABELS[pairs], POSITIONS[pairs], **EVERYTHING)
    np.testing.assert_array_equal(moved, images[pairs])
    jax.tree.map(lambda found, first: np.testing.assert_array_equal(found, first[pairs]), moved_labels, labels)
    for change in ({"positions": POSITIONS + 16}, {"seed": 1}):
        other, _ = augment(**change, **EVERYTHING)
        assert np.mean(np.any(other != images, (1, 2, 3))) > 0.9


def test_seeds_and_purposes_draw_independently():
    streams = [
        np.ravel(draw_uniforms(seed, purpose, POSITIONS, 500)) for seed, purpose in ((0, "a"), (0, "b"), (1, "a"))
    ]
    assert np.abs(np.corrcoef(streams) - np.eye(3)).max() < 0.05
    assert stats.kstest(streams[0], "uniform").pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_have_the_beta_distribution(alpha):
    uniforms = np.arange(1, 4096, dtype=np.float32) / 4096
    found = np.asarray(beta_quantile(alpha, uniforms), np.float64)
    # The table is exact at every 1/1024, so the distribution functions differ by 1/1024 at most.
    lower = uniforms <= 0.5
    assert np.abs(stats.beta(alpha, alpha).cdf(found) - uniforms)[lower].max() < 1 / 1024
    np.testing.assert_allclose(found[::-1], 1 - found, atol=1e-6)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_and_their_labels(kind):
    """Compares with a plain loop over pairs; black and white images show how much each image contributed."""
    images = np.stack([np.full((12, 10, 3), value, np.float32) for value in (0, 1) * 100])
    labels = np.arange(200, dtype=np.int32)
    uniforms = np.random.RandomState(0).rand(200, 4).astype(np.float32)
    mixed, found = mix(images, labels, float(kind == "mixup"), float(kind == "cutmix"), uniforms)
    assert isinstance(found, MixedLabels)
    white = np.asarray(mixed).mean((1, 2, 3))
    for row in range(200):
        own = white[row] if row % 2 else 1 - white[row]
        neighbour = row + 1 if row % 2 == 0 else row - 1
        assert found.share[row] == pytest.approx(max(own, 1 - own), abs=1e-5)
        if abs(own - 0.5) > 1e-4:
            pair = (row, neighbour) if own > 0.5 else (neighbour, row)
            assert (found.label[row], found.other[row]) == pair
        if kind == "mixup":  # Beta(1, 1) is uniform
            assert own == pytest.approx(uniforms[row, 1], abs=1e-5) and np.ptp(mixed[row]) < 1e-5
    if kind == "cutmix":
        changed = np.any(np.asarray(mixed) != images, -1)
        assert set(np.unique(mixed)) == {0.0, 1.0}
        for mask in changed[changed.any((1, 2))]:
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            assert mask.sum() == np.ptp([rows[0], rows[-1] + 1]) * np.ptp([columns[0], columns[-1] + 1])


def test_with_both_either_mixes_half_of_the_images():
    images, labels = np.eye(2, dtype=np.float32)[np.arange(2000) % 2, :1].reshape(-1, 1, 1, 1), np.zeros(2000, np.int32)
    images = np.broadcast_to(images, (2000, 8, 8, 1))
    mixed, _ = mix(images, labels, 1.0, 1.0, np.random.RandomState(0).rand(2000, 4).astype(np.float32))
    grey = np.mean([0 < value < 1 for value in np.asarray(mixed)[:, 0, 0, 0]])
    assert 0.45 < grey < 0.55


def test_random_erasing():
    """Checks the share of the erased images and the ranges of areas and aspect ratios, up to rounding to pixels."""
    uniforms = np.random.RandomState(0).rand(2000, 23).astype(np.float32)
    image = np.ones((40, 50, 3), np.float32)
    erased = jax.vmap(lambda u: random_erasing(image, u, 0.25, (0.02, 0.4), (0.3, 1 / 0.3), np.zeros(3)))(uniforms)
    masks = np.asarray(erased)[..., 0] == 0
    masks = masks[masks.any((1, 2))]
    assert 0.22 < len(masks) / 2000 < 0.28
    for mask in masks:
        height, width = (len(np.flatnonzero(mask.any(axis))) for axis in (1, 0))
        assert mask.sum() == height * width
        assert 0.9 * 0.3 < width / height < 1.1 / 0.3
    areas = masks.mean((1, 2))
    assert areas.min() < 0.05 and areas.max() > 0.35 and np.all((areas > 0.015) & (areas < 0.41))


@pytest.mark.parametrize("kind", ["color_jitter", "random_erasing", "mixup_alpha"])
def test_images_stay_within_0_and_255_in_the_type_that_is_stated(kind):
    images, _ = augment(**{kind: EVERYTHING[kind]})
    assert images.dtype == (np.uint8 if kind == "color_jitter" else np.float32)
    assert images.min() >= 0 and 200 < images.max() <= 255


def test_what_is_erased_is_normalised_to_zero():
    images, _ = augment(random_erasing=1.0, mean=MEAN, std=STD)
    normalised = np.asarray(normalize(images, MEAN, STD, jnp.float32))
    erased = np.any(images != IMAGES, -1)
    assert erased.any((1, 2)).sum() > 12 and np.abs(normalised[erased]).max() < 1e-5


def test_grey_images_and_float64():
    grey, _ = augment(IMAGES[..., :1], **EVERYTHING | {"auto_augment": "rand", "rand_augment_layers": 1})
    assert grey.shape == (16, 12, 10, 1) and np.all(np.isfinite(grey))
    single = augment(**EVERYTHING)
    jax.config.update("jax_enable_x64", True)
    try:
        double = augment(dtype="float64", **EVERYTHING)
    finally:
        jax.config.update("jax_enable_x64", False)
    assert double[0].dtype == np.float64
    np.testing.assert_allclose(double[0], single[0], atol=1e-3)  # of 255
