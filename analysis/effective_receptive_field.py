"""The effective receptive field: how much each pixel influences a unit in the middle of the last map.

Luo, Li, Urtasun, Zemel 2016, Understanding the effective receptive field in deep convolutional neural networks: a unit
mainly depends on the middle of its theoretical field. With random weights the influence is a Gaussian; training widens
it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import input_pipeline
from analysis.costs import walk
from analysis.receptive_field import image_axes
from input_pipeline import normalize
from training.platform import prepare_platform
from training.state import make_mesh, make_model, select

SHARE = 0.9545  # of a normal distribution within two standard deviations
Window = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class EffectiveField:
    """The influence of the pixels on the unit in the middle of a network's last map.

    Attributes:
      influence: (H, W), the mean absolute gradient of the unit, summed over its channels, with respect to each pixel,
        divided by the sum over all pixels.
      window: (first, end) of the rows and of the columns of the theoretical field; pixels from the edge of the image,
        beyond which the field may extend.
    """

    influence: np.ndarray
    window: Window

    @property
    def theoretical_side(self) -> int:
        """The side of the theoretical field, pixels."""
        return int(max(end - first for first, end in self.window))

    def held_by_squares(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns sides, in pixels, of squares around the middle of the theoretical field, and the influence within."""
        rows, columns = (
            np.abs(np.arange(size) + 0.5 - (first + end) / 2)
            for size, (first, end) in zip(self.influence.shape, self.window, strict=True)
        )
        sides, ring = np.unique(2 * np.maximum(rows[:, None], columns) + 1, return_inverse=True)
        return sides, np.cumsum(np.bincount(ring.ravel(), self.influence.ravel()))

    def side(self, share: float = SHARE) -> int:
        """Returns the side, in pixels, of the smallest square with this share of the influence, 0 < share < 1."""
        sides, held = self.held_by_squares()
        return int(sides[np.searchsorted(held, share)])


def measure(
    apply: Callable[[Any, jax.Array], jax.Array], variables: Any, batches: Iterable[tuple[jax.Array, jax.Array]]
) -> EffectiveField:
    """Measures the effective receptive field of the unit in the middle of a map.

    Args:
      apply: (variables, images (N, H, W, C)) -> map (N, H', W', F).
      variables: what apply takes: nested dicts of arrays.
      batches: pairs of images, (N, H, W, C) floats, and a mask, (N,), 0 for images that do not count.

    Raises:
      ValueError: if no pixel has any influence, or a gradient is not finite.
    """

    def unit(images, variables):
        x = apply(variables, images)
        return x[:, x.shape[1] // 2, x.shape[2] // 2].sum()

    @jax.jit
    def influence(variables, images, mask):
        gradient = jnp.abs(jax.grad(unit)(images, variables)).sum(-1)
        return (gradient * mask[:, None, None]).sum(0)

    parts = []
    for images, mask in batches:
        parts.append(influence(variables, images, mask))
    total = np.sum(jax.device_get(parts), axis=0, dtype=np.float64)
    if not 0 < total.sum() < np.inf:
        raise ValueError(
            "the gradient of the unit in the middle of the last map is zero or not finite; train the network first"
        )
    return EffectiveField(total / total.sum(), _window(apply, variables, images))


def measure_network(
    config: ConfigDict, model: nnx.Module, params: dict, batch_stats: dict, batches: Iterable[dict[str, jax.Array]]
) -> EffectiveField:
    """Measures the effective receptive field of a network's last map, the output of its last stage.

    Args:
      config: resolved options.
      model: the abstract network in evaluation mode.
      params: its parameters; parameters of auxiliary heads are ignored.
      batch_stats: its running statistics.
      batches: `image`, (N, H, W, C) uint8, and `mask`, (N,), as input_pipeline.eval_batches makes them.

    Raises:
      ValueError: if no pixel has any influence, or a gradient is not finite.
    """
    graph, *own = nnx.split(model, nnx.Param, nnx.BatchStat)
    variables = tuple(
        select(values, nnx.to_pure_dict(part)) for values, part in zip((params, batch_stats), own, strict=True)
    )

    def last_map(variables, images):
        network: Any = nnx.merge(graph, *variables)
        *_, (_, x) = network.stages(images)
        return x

    def normalized():
        for batch in batches:
            yield normalize(batch["image"], config.mean, config.std, np.dtype(config.dtype)), batch["mask"]

    return measure(last_map, variables, normalized())


def measure_workdir(workdir: pathlib.Path, count: int) -> tuple[EffectiveField, str]:
    """Measures the effective receptive field of a workdir's newest weights.

    Args:
      workdir: what train.py made.
      count: how many images of the evaluation split to measure on, taken evenly from the whole split; all of them if it
        has fewer.

    Returns:
      The field; and in words the network, the step and the images.

    Raises:
      ValueError: if no pixel has any influence, or a gradient is not finite.
      FileNotFoundError: if the folder is no workdir, or its dataset is not there.
    """
    from training.transfer import load_weights  # imports Orbax, which takes a second and only this function needs

    mesh = make_mesh()
    config, params, batch_stats, step = load_weights(workdir, mesh)
    dataset = input_pipeline.load_dataset(config, "eval")
    prepare_platform(config)
    count = min(count, len(dataset))

    def record(number: int) -> int:
        """Returns the index of an image of the sample, evenly spaced because datasets may be sorted by class."""
        return number * len(dataset) // count

    sample = dataclasses.replace(
        dataset,
        size=count,
        read=lambda number: dataset.read(record(number)),
        describe=lambda number: dataset.describe(record(number)),
    )
    config.eval_batch_size = -(-min(config.eval_batch_size, count) // mesh.size) * mesh.size
    batches = input_pipeline.eval_batches(sample, config)
    with input_pipeline.to_device(batches, mesh, config.prefetch_batches) as batches:
        field = measure_network(config, make_model(config, training=False), params, batch_stats, batches)
    return field, f"{config.model}, step {step}, {count} {dataset.split} images of {config.dataset}"


def draw(field: EffectiveField, title: str, path: pathlib.Path) -> None:
    """Draws the influence of the pixels, and the share of it within squares of growing size.

    Args:
      field: the field to draw.
      title: the title of the picture.
      path: of the picture; its suffix gives the format.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    height, width = field.influence.shape
    effective, theoretical = field.side(), field.theoretical_side
    (top, bottom), (left, right) = field.window
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    heat, curve = figure.subplots(1, 2)
    relative = field.influence / field.influence.max()
    picture = heat.imshow(relative, cmap="magma", vmin=0, vmax=1, extent=(0, width, height, 0))
    figure.colorbar(picture, ax=heat, label="mean |gradient|, relative to the largest")
    middle_row, middle_column = (top + bottom) / 2, (left + right) / 2
    corner = middle_column - effective / 2, middle_row - effective / 2
    lines: dict[str, Any] = {"fill": False, "linewidth": 2}
    heat.add_patch(Rectangle(corner, effective, effective, edgecolor="deepskyblue", **lines))
    heat.add_patch(Rectangle((left, top), right - left, bottom - top, edgecolor="limegreen", linestyle="--", **lines))
    heat.set(xlim=(0, width), ylim=(height, 0), xlabel="pixels", ylabel="pixels", title="influence on the middle unit")

    sides, held = field.held_by_squares()
    curve.plot(sides, 100 * held, color="black")
    curve.axvline(effective, color="deepskyblue", label=f"{100 * SHARE:g} % within {effective} pixels a side")
    curve.axvline(theoretical, color="limegreen", linestyle="--", label=f"theoretical field: {theoretical} pixels")
    curve.set(xlabel="side of the square, pixels", ylabel="influence within, %", title="squares around the middle")
    curve.set(xlim=(1, None), ylim=(0, 103))
    curve.set_xscale("log", base=2)
    curve.xaxis.set_major_formatter("{x:.0f}")
    curve.grid(alpha=0.3)
    curve.legend(loc="upper left")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _window(apply: Callable, variables: Any, images: jax.Array) -> Window:
    """The theoretical field of the unit in the middle of the map, from the traced program."""
    jaxpr = jax.make_jaxpr(apply)(variables, images)
    height, width = images.shape[1:3]
    *_, last = walk(jaxpr.jaxpr, [*(None for _ in jaxpr.jaxpr.invars[:-1]), image_axes(height, width)])
    assert last.axes  # the map depends on the image

    def window(axis, units):
        if axis.dimension is None:  # attention: every unit sees the whole image
            return (axis.first, axis.end)
        first = axis.first + units // 2 * axis.jump
        return (first, first + axis.field)

    row, column = (window(axis, units) for axis, units in zip(last.axes, jaxpr.out_avals[0].shape[1:3], strict=True))
    return row, column
