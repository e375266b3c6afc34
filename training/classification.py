"""Measures of a classifier from its probabilities: accuracies, calibration error, confused classes, mistakes."""

import collections
import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

BINS = 15
"""Bins of confidence: Guo 2017, section 5."""


class Mistake(NamedTuple):
    """A misclassified image.

    Attributes:
      probability: of the predicted class.
      record: the image's position in the dataset.
      label: its class.
      prediction: the class that the network gives it.
    """

    probability: float
    record: int
    label: int
    prediction: int


class Tally:
    """Counts of all images seen so far, from which the measures are computed. Counts are exact, sums are float64.

    Attributes:
      examples: number of images.
      per_class: images of each class, int64 (classes,).
      correct: correctly classified images of each class, int64 (classes,).
      confused: number of images by (label, prediction), for predictions that are wrong.
      bin_examples: images in each bin of confidence, int64 (BINS,).
      bin_correct: correctly classified images in each bin, int64 (BINS,).
      bin_confidence: sum of the confidences in each bin, float64 (BINS,).
    """

    def __init__(self, num_classes: int, among: Sequence[int] = (), mistakes: int = 0):
        """Starts at zero.

        Args:
          num_classes: of the network.
          among: the dataset's classes. If they are only some of the network's, accuracy_top1_among_its_classes is
            measured too, as the papers of ImageNet-A and ImageNet-R do.
          mistakes: how many of the most confident mistakes to keep.
        """
        self.examples, self.confused = 0, collections.Counter[tuple[int, int]]()
        self.per_class, self.correct = (np.zeros(num_classes, np.int64) for _ in range(2))
        self.bin_examples, self.bin_correct = (np.zeros(BINS, np.int64) for _ in range(2))
        self.bin_confidence = np.zeros(BINS)
        self._loss, self._top5, self._right_among = 0.0, 0, 0
        self._mistakes: list[Mistake] = []
        self._among = np.unique(among) if 0 < len(among) < num_classes else None
        self._most_mistakes = mistakes

    def add(self, log_probabilities: np.ndarray, labels: np.ndarray, records: np.ndarray) -> None:
        """Adds images.

        Args:
          log_probabilities: (N, classes).
          labels: (N,) integers.
          records: (N,) positions of the images in the dataset.
        """
        rows, classes = np.arange(len(labels)), np.arange(log_probabilities.shape[1])
        own = log_probabilities[rows, labels][:, None]
        # Of classes with equal probabilities the lower number ranks first, as in training.loss.classification_sums.
        before = (log_probabilities == own) & (classes < labels[:, None])
        rank = ((log_probabilities > own) | before).sum(axis=1)
        predictions, correct = log_probabilities.argmax(axis=1), rank < 1
        confidences = np.exp(log_probabilities[rows, predictions].astype(np.float64))
        self.examples += len(labels)
        self._loss -= own.sum(dtype=np.float64)
        self._top5 += int((rank < 5).sum())
        np.add.at(self.per_class, labels, 1)
        np.add.at(self.correct, labels[correct], 1)
        bins = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
        np.add.at(self.bin_examples, bins, 1)
        np.add.at(self.bin_correct, bins[correct], 1)
        np.add.at(self.bin_confidence, bins, confidences)
        if self._among is not None:
            chosen = self._among[log_probabilities[:, self._among].argmax(axis=1)]
            self._right_among += int((chosen == labels).sum())
        for row in np.flatnonzero(~correct):
            label, prediction = int(labels[row]), int(predictions[row])
            self.confused[label, prediction] += 1
            if self._most_mistakes:
                heapq.heappush(self._mistakes, Mistake(float(confidences[row]), int(records[row]), label, prediction))
                if len(self._mistakes) > self._most_mistakes:
                    heapq.heappop(self._mistakes)

    def measures(self) -> dict[str, Any]:
        """Returns loss (nats), shares of the images in [0, 1], and examples.

        mean_class_accuracy is the mean of the accuracies of the classes that have images. expected_calibration_error is
        the mean over the images of |accuracy - confidence| of their bin: Guo 2017, equation 3.
        """
        error = np.abs(self.bin_correct - self.bin_confidence).sum() / self.examples
        present = self.per_class > 0
        measures = {
            "loss": float(self._loss / self.examples),
            "accuracy_top1": int(self.correct.sum()) / self.examples,
            "accuracy_top5": self._top5 / self.examples,
            "mean_class_accuracy": float(np.mean(self.correct[present] / self.per_class[present])),
            "expected_calibration_error": float(error),
            "examples": self.examples,
        }
        if self._among is not None:
            measures["accuracy_top1_among_its_classes"] = self._right_among / self.examples
        return measures

    def accuracies(self) -> dict[int, float]:
        """Returns the accuracy of each class that has images, the lowest first."""
        shares = {int(label): self.correct[label] / self.per_class[label] for label in np.flatnonzero(self.per_class)}
        return {label: float(share) for label, share in sorted(shares.items(), key=lambda item: item[1])}

    def mistakes(self) -> list[Mistake]:
        """Returns the mistakes that were kept, the most confident first."""
        return sorted(self._mistakes, reverse=True)


def mean_of(log_probabilities: np.ndarray) -> np.ndarray:
    """Returns the logarithm of the mean probabilities of an ensemble: (members, N, classes) -> (N, classes)."""
    highest = log_probabilities.max(axis=0)
    return highest + np.log(np.exp(log_probabilities - highest).mean(axis=0))
