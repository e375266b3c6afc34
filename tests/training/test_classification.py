"""The measures of a classifier, from counts and formulas that are worked out by hand."""

import numpy as np
import pytest

from training.classification import Tally, mean_of


def test_the_calibration_error_of_an_example_by_hand():
    """Guo 2017, equation 3: four images in the bins (0.533, 0.6] and (0.867, 0.933].

    Bin 1: confidences 0.55 and 0.6, one of two is right: |0.5 - 0.575|. Bin 2: 0.9 and 0.92, both right: |1 - 0.91|.
    """
    probabilities = np.array([[0.55, 0.45], [0.4, 0.6], [0.9, 0.1], [0.08, 0.92]])
    tally = Tally(2)
    tally.add(np.log(probabilities), np.array([0, 0, 0, 1]), np.arange(4))
    measures = tally.measures()
    assert measures["expected_calibration_error"] == pytest.approx(2 / 4 * 0.075 + 2 / 4 * 0.09)
    assert measures["loss"] == pytest.approx(-np.mean(np.log([0.55, 0.4, 0.9, 0.92])))
    assert measures["accuracy_top1"] == 3 / 4 and measures["accuracy_top5"] == 1


def test_accuracies_confusions_and_mistakes():
    """Five classes; images 0 to 5, added in two parts."""
    labels, predictions = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 2, 2, 1, 0, 3])
    confidences = np.array([0.9, 0.5, 0.8, 0.6, 0.7, 0.4])
    probabilities = np.repeat((1 - confidences[:, None]) / 4, 5, axis=1)
    probabilities[np.arange(6), predictions] = confidences
    tally = Tally(5, mistakes=2)
    for part in (slice(0, 4), slice(4, 6)):
        tally.add(np.log(probabilities[part]), labels[part], np.arange(6)[part])
    assert tally.accuracies() == {0: pytest.approx(1 / 3), 1: 0.5, 3: 1.0}
    assert list(tally.accuracies()) == [0, 1, 3]
    assert tally.measures()["mean_class_accuracy"] == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert tally.measures()["accuracy_top1"] == 3 / 6
    assert tally.confused == {(0, 2): 2, (1, 0): 1}
    assert [(mistake.record, mistake.label, mistake.prediction) for mistake in tally.mistakes()] == [
        (2, 0, 2),
        (4, 1, 0),
    ]


def test_top5_and_equal_probabilities():
    """Of equal probabilities the lower class ranks first, so class 4 is fifth of six and class 5 is sixth."""
    tally = Tally(6)
    tally.add(np.log(np.full((3, 6), 1 / 6)), np.array([0, 4, 5]), np.arange(3))
    assert tally.measures()["accuracy_top1"] == pytest.approx(1 / 3)
    assert tally.measures()["accuracy_top5"] == pytest.approx(2 / 3)


def test_accuracy_among_the_classes_of_a_dataset():
    """Class 0 is none of the dataset's: the first image is right among classes 1 and 2, the second is wrong."""
    log_probabilities = np.log([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
    tally = Tally(3, among=[2, 1])
    tally.add(log_probabilities, np.array([1, 2]), np.arange(2))
    assert tally.measures()["accuracy_top1"] == 0 and tally.measures()["accuracy_top1_among_its_classes"] == 0.5


def test_an_ensemble_averages_probabilities():
    logits = np.random.RandomState(0).standard_normal((3, 4, 5)) * 50
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(mean_of(np.log(shares))), shares.mean(axis=0), rtol=1e-12)
