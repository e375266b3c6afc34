"""The loss and the metrics' sums equal those of plain NumPy code."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from input_pipeline import MixedLabels
from training.loss import (
    binary_cross_entropy,
    classification_sums,
    cross_entropy,
    means,
    other_loss,
    weighted_loss,
    zero_sums,
)

RANDOM = np.random.RandomState(0)
LOGITS = RANDOM.standard_normal((6, 10)).astype(np.float32)
LABELS = np.array([3, 0, 9, 9, 5, 1])


def plain_cross_entropy(logits, labels, smoothing=0.0):
    logits = logits.astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = (1 - smoothing) * np.eye(logits.shape[-1])[labels] + smoothing / logits.shape[-1]
    return -(targets * log_probabilities).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    found = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), smoothing)
    np.testing.assert_allclose(found, plain_cross_entropy(LOGITS, LABELS, smoothing), rtol=1e-5)


def test_auxiliary_losses_are_weighted_one_by_one():
    heads = [RANDOM.standard_normal((6, 10)).astype(np.float32) for _ in range(2)]
    loss, sums = weighted_loss((jnp.asarray(LOGITS), [jnp.asarray(head) for head in heads]), LABELS, (0.3, 0.4))
    parts = [plain_cross_entropy(logits, LABELS) for logits in (LOGITS, *heads)]
    np.testing.assert_allclose(loss, np.mean(parts[0] + 0.3 * parts[1] + 0.4 * parts[2]), rtol=1e-5)
    np.testing.assert_allclose(sums["loss"], parts[0].sum(), rtol=1e-5)  # the same quantity as in an evaluation
    np.testing.assert_allclose(sums["total_loss"], 6 * loss, rtol=1e-5)
    np.testing.assert_allclose(sums["aux2_loss"], parts[2].sum(), rtol=1e-5)
    assert sums.keys() == zero_sums(2).keys()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_labels_weigh_as_the_mixed_target(smoothing):
    """The losses of the main classifier and the heads equal the cross-entropy with an explicit mixed target."""
    other, share = LABELS[::-1].copy(), np.linspace(0.5, 1, 6).astype(np.float32)
    heads = [RANDOM.standard_normal((6, 10)).astype(np.float32)]
    labels = MixedLabels(jnp.asarray(LABELS), jnp.asarray(other), jnp.asarray(share))
    loss, sums = weighted_loss((jnp.asarray(LOGITS), [jnp.asarray(heads[0])]), labels, (0.3,), smoothing)

    targets = share[:, None] * np.eye(10)[LABELS] + (1 - share)[:, None] * np.eye(10)[other]
    targets = (1 - smoothing) * targets + smoothing / 10

    def to_targets(logits):
        logits = logits.astype(np.float64)
        return -(targets * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1)

    np.testing.assert_allclose(loss, np.mean(to_targets(LOGITS) + 0.3 * to_targets(heads[0])), rtol=1e-5)
    np.testing.assert_allclose(sums["loss"], to_targets(LOGITS).sum(), rtol=1e-5)
    assert float(sums["accuracy_top1"]) == np.sum(LOGITS.argmax(-1) == LABELS)  # labels with the larger share


# timm 1.0.31's BinaryCrossEntropy on these logits, in float64 (PyTorch 2.13.0): the mean over images and classes.
BCE_LOGITS = [[1.0, -2.0, 0.5, 0.0], [0.3, 0.1, -0.4, 2.0], [-1.0, 0.0, 1.0, -0.5]]
BCE_LABELS, BCE_OTHERS, BCE_SHARES = [2, 0, 3], [1, 3, 0], [0.9, 0.6, 0.75]


@pytest.mark.parametrize(
    ("smoothing", "threshold", "expected"),
    [(0.0, 0.0, 0.819988047588564), (0.1, 0.0, 0.8204047142552308), (0.1, 0.2, 0.819988047588564)],
)
def test_binary_cross_entropy_is_timms(smoothing, threshold, expected):
    found = binary_cross_entropy(jnp.asarray(BCE_LOGITS), jnp.asarray(BCE_LABELS), smoothing, threshold)
    assert float(found.mean()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("smoothing", "threshold", "expected"),
    [
        (0.1, 0.0, [0.7237284658253119, 0.8266737919962557, 0.8421868849441245]),
        (0.1, 0.2, [0.6518534658253119, 0.48467379199625577, 1.0734368849441243]),  # the first drops its smaller share
    ],
)
def test_binary_cross_entropy_of_mixed_labels_is_timms(smoothing, threshold, expected):
    labels = MixedLabels(*map(jnp.asarray, (BCE_LABELS, BCE_OTHERS, BCE_SHARES)))
    found = binary_cross_entropy(jnp.asarray(BCE_LOGITS), labels, smoothing, threshold)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_other_loss_is_minimised_by_all_heads_and_the_cross_entropy_shown():
    config = base.get_config()
    assert other_loss(config) is None
    config.loss, config.target_threshold = "binary_cross_entropy", 0.2
    logits, labels = jnp.asarray(BCE_LOGITS), jnp.asarray(BCE_LABELS)
    loss, sums = weighted_loss((logits, [2 * logits]), labels, (0.3,), other=other_loss(config))
    binary, aux = binary_cross_entropy(logits, labels), binary_cross_entropy(2 * logits, labels)
    assert float(loss) == pytest.approx(float((binary + 0.3 * aux).mean()), rel=1e-6)
    assert float(sums["loss"]) == pytest.approx(plain_cross_entropy(np.array(BCE_LOGITS), BCE_LABELS).sum(), rel=1e-6)
    assert float(sums["total_loss"]) == pytest.approx(3 * float(loss), rel=1e-6)
    assert sums.keys() == zero_sums(1, other_loss=True).keys()
    assert weighted_loss(logits, labels, other=other_loss(config))[1].keys() == zero_sums(other_loss=True).keys()


def test_a_head_without_a_weight_is_an_error():
    with pytest.raises(ValueError):
        weighted_loss((LOGITS, [LOGITS]), LABELS, ())


def test_ranks_padding_and_ties():
    logits = jnp.asarray([[0.0, 1, 2, 3, 4, 5], [5, 5, 5, 5, 5, 5], [9, 0, 0, 0, 0, 0], [0, 9, 0, 0, 0, 0]])
    labels, mask = jnp.asarray([1, 0, 0, 0]), jnp.asarray([1.0, 1, 1, 0])
    sums = classification_sums(logits, labels, jnp.asarray([1.0, 2, 3, np.nan]), mask)
    # Class 1 ranks fifth; of equal logits the first class ranks first; the padded image and its NaN do not count.
    assert {name: float(value) for name, value in sums.items()} == {
        "loss": 6,
        "accuracy_top1": 2,
        "accuracy_top5": 3,
        "examples": 3,
    }
    assert means(sums)["accuracy_top1"] == pytest.approx(2 / 3)


def test_fewer_classes_than_five():
    sums = classification_sums(jnp.asarray([[0.0, 1, 2]]), jnp.asarray([0]), jnp.zeros(1), jnp.ones(1))
    assert float(sums["accuracy_top5"]) == 1 and float(sums["accuracy_top1"]) == 0


def test_one_constant_logit_is_no_cheap_hit():
    """A network with equal logits for all classes is correct only for the first class."""
    sums = classification_sums(jnp.zeros((10, 10)), jnp.arange(10), jnp.zeros(10), jnp.ones(10))
    assert float(sums["accuracy_top1"]) == 1 and float(sums["accuracy_top5"]) == 5
