"""The effective receptive field: which pixels move a unit in the middle of the last map, and how much.

Luo, Li, Urtasun, Zemel 2016, Understanding the effective receptive field in deep convolutional neural networks: of the
theoretical field a unit uses little, the middle, in the shape of a Gaussian where the weights are random; training
widens it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import input_pipeline
import models
from analysis.costs import walk
from analysis.receptive_field import image_axes
from input_pipeline import normalize
from training.platform import prepare_platform
from training.state import make_mesh, make_model, select

SHARE = 0.9545  # of a normal distribution within two standard deviations
Window = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class EffectiveField:
    """What the unit in the middle of a network's last map sees.

    Attributes:
      influence: (H, W), the mean absolute gradient of the unit, all its channels added, with respect to each pixel;
        the whole is 1.
      window: (first, end) of the rows, and of the columns, of its theoretical field; pixels, counted from the edge of
        the image, over which it may reach.
    """

    influence: np.ndarray
    window: Window

    @property
    def theoretical_side(self) -> int:
        """The side of the theoretical field, pixels."""
        return int(max(end - first for first, end in self.window))

    def held_by_squares(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns sides, pixels, of squares around the middle of the theoretical field, and the influence in each."""
        rows, columns = (
            np.abs(np.arange(size) + 0.5 - (first + end) / 2)
            for size, (first, end) in zip(self.influence.shape, self.window, strict=True)
        )
        sides, ring = np.unique(2 * np.maximum(rows[:, None], columns) + 1, return_inverse=True)
        return sides, np.cumsum(np.bincount(ring.ravel(), self.influence.ravel()))

    def side(self, share: float = SHARE) -> int:
        """Returns the side, pixels, of the smallest square that holds a share of the influence, 0 < share < 1."""
        sides, held = self.held_by_squares()
        return int(sides[np.searchsorted(held, share)])


def measure(
    apply: Callable[[dict, jax.Array], jax.Array], variables: dict, batches: Iterable[tuple[jax.Array, jax.Array]]
) -> EffectiveField:
    """Measures the effective receptive field of the unit in the middle of a map.

    Args:
      apply: (variables, images (N, H, W, C)) -> map (N, H', W', F).
      variables: nested dict of arrays.
      batches: pairs of images, (N, H, W, C) floats, and a mask, (N,), that is 0 for those that do not count.

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

    total, shape = 0.0, None
    for images, mask in batches:
        total, shape = total + influence(variables, images, mask), images
    total = np.asarray(jax.device_get(total), np.float64)
    if not 0 < total.sum() < np.inf:
        raise ValueError(
            "the gradient of the unit in the middle of the last map is zero or not finite; train the network first"
        )
    return EffectiveField(total / total.sum(), _window(apply, variables, shape))


def measure_network(
    config: ConfigDict, model: models.Network, params: dict, batch_stats: dict, batches: Iterable[dict[str, jax.Array]]
) -> EffectiveField:
    """Measures the effective receptive field of a network's last map, that of its last stage.

    Args:
      config: resolved options.
      model: the abstract network in evaluation mode.
      params: its parameters; those of auxiliary heads may be among them.
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
        *_, (_, x) = nnx.merge(graph, *variables).stages(images)
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
        """The images lie class by class: so each class has its share."""
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
    """Draws the influence of the pixels, and how much of it squares of growing size hold.

    Args:
      field: what to draw.
      title: above it.
      path: of the picture; its ending says of which kind.
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
    lines = {"fill": False, "linewidth": 2}
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


def _window(apply: Callable, variables: dict, images: jax.Array) -> Window:
    """What the unit in the middle of the map depends on, from the traced program."""
    jaxpr = jax.make_jaxpr(apply)(variables, images)
    axes = [None] * (len(jaxpr.jaxpr.invars) - 1) + [image_axes(*images.shape[1:3])]
    *_, last = walk(jaxpr.jaxpr, axes)

    def window(axis, units):
        first = axis.first + units // 2 * axis.jump
        return (first, first + axis.field)

    row, column = (window(axis, units) for axis, units in zip(last.axes, jaxpr.out_avals[0].shape[1:3], strict=True))
    return row, column
