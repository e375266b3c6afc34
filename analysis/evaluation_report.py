"""The pictures of evaluate.py's --report: confusion matrix, reliability diagram, the worst mistakes."""

import io
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import Dataset
from input_pipeline.files import printable
from training.classification import BINS, Tally
from training.workdir import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISTAKES = 24
"""Images on the sheet of the worst mistakes."""

MOST_CLASSES = 40
"""Classes in the confusion matrix; of more classes, those that take part in the most mistakes are shown."""


def write(folder: pathlib.Path, tally: Tally, dataset: Dataset, config: ConfigDict) -> None:
    """Writes confusion.png, reliability.png and, if there are mistakes, mistakes.png.

    Args:
      folder: is made if it does not exist.
      tally: of the whole dataset.
      dataset: with the network's classes.
      config: how the network sees the images.

    Raises:
      OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [_plain(name.split(",")[0]) for name in dataset.class_names]  # ImageNet's names list synonyms
    _save(folder / "confusion.png", lambda figure: _draw_confusion(figure, tally, names))
    _save(folder / "reliability.png", lambda figure: _draw_reliability(figure, tally))
    if tally.mistakes():
        _save(folder / "mistakes.png", lambda figure: _draw_mistakes(figure, tally, names, dataset, config))


def _save(path: pathlib.Path, draw_on: Callable[["Figure"], None]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", dpi=110)
    draw_on(figure)
    png = io.BytesIO()
    figure.savefig(png)
    write_atomically(path, png.getvalue())


def _draw_confusion(figure: "Figure", tally: Tally, names: list[str]) -> None:
    """Each row is a class; its cells are shares of its images, in percent."""
    involved = np.zeros(len(names), np.int64)
    for (label, prediction), count in tally.confused.items():
        involved[[label, prediction]] += count
    shown = np.flatnonzero((tally.per_class > 0) | (involved > 0))
    if len(shown) > MOST_CLASSES:
        shown = np.sort(shown[np.argsort(-involved[shown], kind="stable")[:MOST_CLASSES]])
    counts = np.diag(tally.correct[shown]).astype(float)
    place = {int(label): row for row, label in enumerate(shown)}
    for (label, prediction), count in tally.confused.items():
        if label in place and prediction in place:
            counts[place[label], place[prediction]] = count
    shares = 100 * counts / np.maximum(tally.per_class[shown], 1)[:, None]

    side = 3.5 + max(0.42 * len(shown), 3)
    figure.set_size_inches(side + 1, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    ticks = range(len(shown))
    axes.set_xticks(ticks, [names[label] for label in shown], rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, [names[label] for label in shown])
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 50 else "black"
        text = f"{shares[row, column]:.0f}" if shares[row, column] >= 0.5 else "<1"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    all_shown = len(shown) == np.count_nonzero(tally.per_class) or len(shown) < MOST_CLASSES
    which = "" if all_shown else f", the {len(shown)} classes with the most mistakes"
    axes.set_title(f"Predictions of each class, %{which}")
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the class's images (%)")


def _draw_reliability(figure: "Figure", tally: Tally) -> None:
    """Guo 2017, figure 1: accuracy over confidence, and below it the number of images in each bin."""
    figure.set_size_inches(6.5, 7.5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled, centres = tally.bin_examples > 0, (np.arange(BINS) + 0.5) / BINS
    examples = np.maximum(tally.bin_examples, 1)
    accuracy, confidence = tally.bin_correct / examples, tally.bin_confidence / examples
    above.bar(centres[filled], accuracy[filled], 0.95 / BINS, color="C0", label="accuracy")
    above.plot(confidence[filled], confidence[filled], "_", color="C3", markersize=15, label="mean confidence")
    above.plot([0, 1], [0, 1], "--", color="grey", linewidth=1, label="perfect calibration")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy of the bin")
    above.legend(loc="upper left")
    error = 100 * tally.measures()["expected_calibration_error"]
    above.set_title(f"Expected calibration error {error:.2f} % ({tally.examples:,} images, {BINS} bins)")
    below.bar(centres, 100 * tally.bin_examples / tally.examples, 0.95 / BINS, color="grey")
    below.set(xlabel="confidence: probability of the predicted class", ylabel="images (%)")


def _draw_mistakes(figure: "Figure", tally: Tally, names: list[str], dataset: Dataset, config: ConfigDict) -> None:
    """The misclassified images with the most confident predictions, as the network sees them."""
    from input_pipeline.images import evaluation_transform  # imported only here, because it imports the decoders

    transform, mistakes, columns = evaluation_transform(config), tally.mistakes(), 6
    rows = -(-len(mistakes) // columns)
    figure.set_size_inches(2.3 * columns, 2.9 * rows + 0.5)
    figure.suptitle("The most confident mistakes")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, mistake in zip(grid, mistakes, strict=False):
        image, _ = dataset[mistake.record]
        pixels = transform(image) if dataset.needs_transform else np.asarray(image)
        axes.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255)
        prediction, label = (_shortened(names[number]) for number in (mistake.prediction, mistake.label))
        axes.set_title(f"{prediction} {100 * mistake.probability:.0f} %\nis {label}", fontsize=10)


def _shortened(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _plain(text: str) -> str:
    """A text that matplotlib shows as it is: dollar signs would begin a formula."""
    return printable(text).replace("$", r"\$")
