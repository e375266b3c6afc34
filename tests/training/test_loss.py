"""The loss and the metrics' sums equal those of plain NumPy code."""

import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import MixedLabels
from training.loss import classification_sums, cross_entropy, means, weighted_loss, zero_sums

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
