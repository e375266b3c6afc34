"""The operations of RandAugment and TrivialAugment give torchvision's results."""

import pathlib

import jax
import numpy as np
import pytest

from input_pipeline.augmentation import rand_augment, trivial_augment
from input_pipeline.image_operations import OPERATIONS, apply_operation, shift_hue

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "image_operations.npz")


@pytest.fixture(scope="module")
def results():
    """Applies all operations in one compiled call, as for a batch."""
    numbers = np.array([OPERATIONS.index(name) for name in GOLDEN["operations"]])
    images = np.repeat(GOLDEN["image"][None], len(numbers), 0)
    return np.asarray(jax.jit(jax.vmap(apply_operation))(images, numbers, GOLDEN["magnitudes"]))


def assert_same_levels(found, expected, differing=0.0):
    """Images are equal, or differ by one level in a share of the pixels, where float32 rounding precedes the floor."""
    distance = np.abs(found.astype(int) - expected)
    assert distance.max() <= (1 if differing else 0) and np.mean(distance > 0) <= differing


@pytest.mark.parametrize("case", range(len(GOLDEN["operations"])), ids=lambda case: GOLDEN["operations"][case])
def test_operation(results, case):
    blends = GOLDEN["operations"][case] in ("Brightness", "Color", "Contrast", "Sharpness")
    assert_same_levels(results[case], GOLDEN["results"][case], differing=0.02 if blends else 0)


def test_equalize_a_grey_image():
    """The image is larger, because torchvision does not equalize images of fewer than 255 pixels."""
    found = jax.jit(apply_operation)(GOLDEN["large"], OPERATIONS.index("Equalize"), 0.0)
    assert_same_levels(np.asarray(found), GOLDEN["large_equalized"])


def test_hue():
    found = jax.vmap(shift_hue, (None, 0))(GOLDEN["image"], GOLDEN["shifts"])
    assert_same_levels(np.asarray(found), GOLDEN["hues"], differing=0.01)


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_a_policy_draws_every_operation_at_torchvisions_strengths(policy, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "input_pipeline.augmentation.apply_operation", lambda image, *drawing: drawn.append(drawing) or image
    )
    image = np.zeros(GOLDEN["image"].shape, np.uint8)
    augment = {"trivial": trivial_augment, "rand": lambda *arguments: rand_augment(*arguments, magnitude=9)}[policy]
    for operation in range(14):
        for strength in (0, 9, 30) if policy == "trivial" else (9,):
            for sign in (0.2, 0.7):
                augment(image, np.array([(operation + 0.5) / 14, (strength + 0.5) / 31, sign], np.float32))
                number, magnitude = (float(value) for value in drawn[-1])
                expected = GOLDEN[f"{policy}_magnitudes"][operation, strength]
                signed = 1 <= operation <= 9  # as the second entries of torchvision's tables say
                assert number == operation
                np.testing.assert_allclose(magnitude, -expected if signed and sign < 0.5 else expected, rtol=1e-5)
