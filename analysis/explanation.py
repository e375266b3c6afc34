"""Explains a network's score for a class by maps over the image: gradients, Grad-CAM, occlusion; its maps and filters.

The score S_c of class c is its logit, not its probability, which also rises where other scores fall (Simonyan,
Vedaldi, Zisserman 2013, section 3).
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import models
from input_pipeline import normalize
from models.rewriting import cut_at_map, with_guided_relu
from training.platform import compiler_options
from training.state import select

Variables = tuple[dict[str, Any], dict[str, Any]]
"""The parameters and the running statistics of a network: nested dicts of arrays."""


class Explainer:
    """Makes the maps of one network.

    An image is (H, W, C), 0 to 255, uint8 or floats, and `label` is the number of a class. The gradients are those with
    respect to these pixels, so the chain of derivatives includes the normalisation. Each method takes the variables, so
    that other weights of the network, such as random ones, use the same compiled program.
    """

    def __init__(self, config: ConfigDict, model: models.Network, batch_size: int = 10):
        """Prepares the methods; each of them is compiled when it is first called.

        Args:
          config: resolved options.
          model: the abstract network in evaluation mode.
          batch_size: images that the methods with many images compute at a time, at least 1.
        """
        self._config, self._batch_size, self._dtype = config, batch_size, np.dtype(config.dtype)
        self._graph, *own = nnx.split(model, nnx.Param, nnx.BatchStat)
        self._own = tuple(map(nnx.to_pure_dict, own))
        compile = functools.partial(jax.jit, compiler_options=compiler_options(config))
        self._scores, self._maps = compile(self._apply), compile(self._apply_stages)
        self._gradient = compile(functools.partial(self._differentiate, change=lambda function: function))
        self._guided_gradient = compile(functools.partial(self._differentiate, change=with_guided_relu))
        self._gradient_of_map = compile(self._differentiate_by_map, static_argnames="stage")

    def scores(self, variables: Variables, image: np.ndarray) -> np.ndarray:
        """Returns the logits, (num_classes,)."""
        return np.asarray(self._scores(variables, self._batch(image)))[0]

    def gradient(self, variables: Variables, image: np.ndarray, label: int) -> np.ndarray:
        """Returns dS_c/dI, (H, W, C)."""
        return np.asarray(self._gradient(variables, self._batch(image), label))[0]

    def saliency(self, variables: Variables, image: np.ndarray, label: int) -> np.ndarray:
        """Returns max over the channels of |dS_c/dI|, (H, W): Simonyan, Vedaldi, Zisserman 2013, section 3.1."""
        return _largest(self.gradient(variables, image, label))

    def guided_gradient(self, variables: Variables, image: np.ndarray, label: int) -> np.ndarray:
        """Returns dS_c/dI, (H, W, C), where each ReLU passes positive gradients only; see rewriting.guided_relu."""
        return np.asarray(self._guided_gradient(variables, self._batch(image), label))[0]

    def guided_backprop(self, variables: Variables, image: np.ndarray, label: int) -> np.ndarray:
        """Returns max over the channels of |guided_gradient|, (H, W): Springenberg et al. 2015, section 3.4."""
        return _largest(self.guided_gradient(variables, image, label))

    def smoothgrad(
        self, variables: Variables, image: np.ndarray, label: int, samples: int = 50, noise: float = 0.15, seed: int = 0
    ) -> np.ndarray:
        """Returns max over the channels of |mean gradient over noisy copies|, (H, W): Smilkov et al. 2017, section 3.

        Args:
          variables: of the network.
          image: (H, W, C).
          label: the class.
          samples: the number of copies.
          noise: the standard deviation of the noise, as a share of max(image) - min(image).
          seed: of the noise.
        """
        random, deviation = np.random.default_rng(seed), noise * np.ptp(np.asarray(image, self._dtype))
        copies = (image + deviation * random.standard_normal(image.shape) for _ in range(samples))
        return _largest(self._mean(functools.partial(self._gradient, variables), copies, label))

    def integrated_gradients(
        self, variables: Variables, image: np.ndarray, label: int, steps: int = 50, baseline: float = 0.0
    ) -> np.ndarray:
        """Returns each pixel's share of S_c(image) - S_c(baseline), (H, W): Sundararajan, Taly, Yan 2017, section 3.

        The sum of the map is that difference, up to the error of the integral.

        Args:
          variables: of the network.
          image: (H, W, C).
          label: the class.
          steps: points of the path from the baseline to the image: the middles of as many equal parts of it.
          baseline: the grey level, 0 to 255, of the image where the path begins.
        """
        difference = np.asarray(image, self._dtype) - baseline
        points = (baseline + (step + 0.5) / steps * difference for step in range(steps))
        return (difference * self._mean(functools.partial(self._gradient, variables), points, label)).sum(-1)

    def gradcam(self, variables: Variables, image: np.ndarray, label: int, stage: str | None = None) -> np.ndarray:
        """Returns the Grad-CAM of a stage's map, (H', W'): Selvaraju et al. 2017, equations 1 and 2.

        Args:
          variables: of the network.
          image: (H, W, C).
          label: the class.
          stage: one of models.get_stages; default: the last one whose map has more than one pixel, if there is one.

        Raises:
          ValueError: if the scores do not depend on the stage's map.
        """
        stage = stage or self._last_map(variables, image)
        maps, gradient = self._gradient_of_map(variables, self._batch(image), label, stage=stage)
        weights = np.asarray(gradient)[0].mean((0, 1))
        return np.maximum((weights * np.asarray(maps)[0]).sum(-1), 0)

    def occlusion(
        self,
        variables: Variables,
        image: np.ndarray,
        label: int,
        window: int | None = None,
        stride: int | None = None,
        grey: float = 127.5,
    ) -> np.ndarray:
        """Returns how much S_c falls when a grey square covers a pixel, (H, W): Zeiler, Fergus 2014, section 4.2.

        Each pixel gets the mean over all squares that cover it. The paper plots S_c's probability, and does not name
        the size of its square.

        Args:
          variables: of the network.
          image: (H, W, C).
          label: the class.
          window: side of the square, in pixels; default: a fifth of the image's height.
          stride: pixels between two positions of the square; default: a quarter of its side.
          grey: the grey level of the square, 0 to 255.
        """
        height, width, _ = image.shape
        window = min(window or max(height // 5, 1), height, width)
        stride = stride or max(window // 4, 1)
        corners = [(top, left) for top in _starts(height, window, stride) for left in _starts(width, window, stride)]

        def occluded() -> Iterator[np.ndarray]:
            for top, left in corners:
                copy = np.array(image, self._dtype)
                copy[top : top + window, left : left + window] = grey
                yield copy

        falls = self.scores(variables, image)[label] - np.concatenate(
            [scores[:, label] for scores in self._in_batches(functools.partial(self._scores, variables), occluded())]
        )
        total, count = np.zeros((height, width)), np.zeros((height, width))
        for (top, left), fall in zip(corners, falls, strict=True):
            total[top : top + window, left : left + window] += fall
            count[top : top + window, left : left + window] += 1
        return total / np.maximum(count, 1)

    def stage_maps(self, variables: Variables, image: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the map of each stage, (H', W', F), by the stage's name, in depth order."""
        maps = self._maps(variables, self._batch(image))
        return {stage: np.asarray(maps[stage])[0] for stage in models.get_stages(self._config.model)}

    def _last_map(self, variables: Variables, image: np.ndarray) -> str:
        """Returns the name of the last stage whose map of the image has more than one pixel, or of the last stage."""
        maps = jax.eval_shape(self._apply_stages, variables, self._batch(image))
        stages = list(models.get_stages(self._config.model))
        return next((stage for stage in reversed(stages) if math.prod(maps[stage].shape[1:3]) > 1), stages[-1])

    # The functions below are compiled. Images are batches here, (N, H, W, C).

    def _network(self, variables: Variables) -> models.Network:
        chosen = (select(values, own) for values, own in zip(variables, self._own, strict=True))
        return nnx.merge(self._graph, *chosen)

    def _normalize(self, images: jax.Array) -> jax.Array:
        return normalize(images, self._config.mean, self._config.std, self._dtype)

    def _apply(self, variables: Variables, images: jax.Array) -> jax.Array:
        logits: Any = self._network(variables)(self._normalize(images))  # no auxiliary heads, and so no tuple
        return logits

    def _apply_stages(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        return dict(self._network(variables).stages(self._normalize(images)))

    def _differentiate(self, variables: Variables, images: jax.Array, label: jax.Array, change: Callable) -> jax.Array:
        scores = change(functools.partial(self._apply, variables))
        return jax.grad(lambda images: scores(images)[:, label].sum())(images)

    def _differentiate_by_map(
        self, variables: Variables, images: jax.Array, label: jax.Array, stage: str
    ) -> tuple[jax.Array, jax.Array]:
        def scores_and_map(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            network = self._network(variables)
            for name, x in network.stages(self._normalize(images)):
                if name == stage:
                    chosen = x
            return network.classify(x), chosen

        maps = scores_and_map(images)[1]
        behind = cut_at_map(scores_and_map, images)
        return maps, jax.grad(lambda maps: behind(maps)[:, label].sum())(maps)

    # Batches

    def _batch(self, image: np.ndarray) -> np.ndarray:
        return np.asarray(image, self._dtype)[None]

    def _in_batches(self, function: Callable[..., jax.Array], images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the function's results for batches of equal size; the last batch is padded, its results cut."""
        while batch := list(itertools.islice(images, self._batch_size)):
            padding = [(0, self._batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
            padded = np.pad(np.stack(batch).astype(self._dtype), padding)
            yield np.asarray(function(padded))[: len(batch)]

    def _mean(self, gradient: Callable[..., jax.Array], images: Iterator[np.ndarray], label: int) -> np.ndarray:
        total, count = np.zeros(()), 0
        for gradients in self._in_batches(lambda batch: gradient(batch, label), images):
            total, count = total + gradients.sum(0, dtype=np.float64), count + len(gradients)
        return total / count


def first_filters(model: models.Network, variables: Variables) -> np.ndarray:
    """Returns the kernels of the first convolution, (KH, KW, C, O), in the order in which the network lists its layers.

    Raises:
      ValueError: if the network has no convolution.
    """
    parameters: Any = variables[0]
    for name in _children(model):
        for path, array in nnx.traversals.flatten_mapping(parameters[name]).items():
            if path[-1] == "kernel" and np.ndim(array) == 4:
                return np.asarray(array)
    raise ValueError("the network has no convolution, and so no filters to show")


def randomized_from_the_head(
    model: models.Network, variables: Variables, seed: int, levels: int
) -> Iterator[tuple[str, Variables]]:
    """Yields the variables with more and more layers drawn anew: Adebayo et al. 2018, section 4.1, the cascade.

    An explanation that does not change when the weights do explains the image and not the network.

    Args:
      model: the network, abstract or not.
      variables: the trained ones.
      seed: of the new values; another one than the run's, because that one's values are where the training began.
      levels: the largest number of levels; the first one draws the head anew, the last one everything.

    Yields:
      The name of the first layer that is new, the head's first; and the variables.
    """
    names, new = list(reversed(_children(model))), models.initial_values(model, seed)
    counts = np.linspace(1, len(names), min(levels, len(names))).round().astype(int)
    for count in counts:
        params, batch_stats = (
            {name: _place(select(new[name], old), old) if name in names[:count] else old for name, old in part.items()}
            for part in variables
        )
        yield names[count - 1], (params, batch_stats)


def _place(values: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Puts arrays where others are; elsewhere JAX would compile each program again for them."""
    return jax.tree.map(lambda value, old: jax.device_put(value, getattr(old, "sharding", None)), values, like)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Returns Spearman's correlation of the absolute values of two maps, -1 to 1: Adebayo et al. 2018, section 3.

    It is 0 if one of the maps is the same everywhere, as Grad-CAM is where no feature speaks for the class.
    """
    ours, theirs = _ranks(np.abs(a)), _ranks(np.abs(b))
    if np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return 0.0
    return float(np.corrcoef(ours, theirs)[0, 1])


def _children(model: models.Network) -> list[str]:
    """Returns the names of the network's parts that have parameters, as the network lists them: in depth order."""
    parameters = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return [name for name in vars(model) if name in parameters]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Returns the rank of each value; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse.ravel()]


def _largest(gradient: np.ndarray) -> np.ndarray:
    return np.abs(gradient).max(-1)


def _starts(size: int, window: int, stride: int) -> list[int]:
    """Returns where windows begin: every stride pixels, and at the end of the image."""
    return [*range(0, size - window, stride), size - window]
