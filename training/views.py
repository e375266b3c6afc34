"""How a network sees a test image: at which sizes, in which crops, and mirrored or not.

The class probabilities of the views are averaged, not the logits: "averaging the predictions made by the network's
softmax layer on the ten patches" (Krizhevsky 2012, section 4.1). Szegedy 2014 (section 7) and Simonyan 2014 (sections
3.2 and 4.2) average probabilities too.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from training.configuration import resolve_network
from training.inference import make_apply
from training.platform import compiler_options

VIEWS = ("1", "flip", "5", "10")
"""1: the centre crop; flip: also its mirror image; 5: the centre and the four corners; 10: also their mirror images."""


def at_sizes(config: ConfigDict, image_sizes: Sequence[int], resizes: Sequence[int], views: str) -> list[ConfigDict]:
    """Returns a config for each size at which images are seen; eval_resize and image_size differ from the run's.

    Several sizes are the multi-scale test of Simonyan 2014, section 4.2, with crops instead of the dense evaluation of
    a fully convolutional network: our networks with dense layers pool larger maps to the size that those layers take.

    Args:
      config: resolved options of the network.
      image_sizes: sides of the crops, in pixels; none: the run's.
      resizes: lengths of the shorter side before the crop, in pixels; none: in the run's proportion to image_size. If
        one of the two lists has one value, it goes with each value of the other.
      views: one of VIEWS.

    Raises:
      ValueError: if the lists do not fit together, if a size is invalid, or if nothing is left around the centre for
        the crops in the corners.
    """
    if len(image_sizes) > 1 and len(resizes) > 1 and len(image_sizes) != len(resizes):
        raise ValueError(
            f"--image_size has {len(image_sizes)} values and --resize {len(resizes)}; give as many, or one of either"
        )
    sizes = list(image_sizes) or [config.image_size]
    resizes = list(resizes) or [round(size * config.eval_resize / config.image_size) for size in sizes]
    count, seen = max(len(sizes), len(resizes)), []
    for size, resize in zip(sizes * (count // len(sizes)), resizes * (count // len(resizes)), strict=True):
        if resize and resize < size:
            raise ValueError(f"--resize={resize} is smaller than the crop of {size} pixels; give at least {size}")
        if views in ("5", "10") and resize <= size:
            raise ValueError(
                f"--views={views} needs images larger than the crop of {size} pixels; give a larger --resize"
            )
        changed = config.copy_and_resolve_references()
        changed.image_size, changed.eval_resize = size, resize
        is_own = (size, resize) == (config.image_size, config.eval_resize)
        seen.append(changed if is_own else resolve_network(changed, typed=None))
    return seen


def loaded_as(config: ConfigDict, views: str) -> ConfigDict:
    """Returns the config with which the host loads the images of one size.

    For crops in the corners the host loads the central square, side eval_resize, and the devices cut the crops out of
    it: Krizhevsky 2012, sections 2 and 4.1.
    """
    loaded = config.copy_and_resolve_references()
    if views in ("5", "10"):
        loaded.image_size = config.eval_resize
    return loaded


def crops(side: int, size: int, views: str) -> Iterator[tuple[int, int, bool]]:
    """Yields the top, the left and whether to mirror of each crop of `size` pixels in a square of `side` pixels."""
    middle, far = (side - size) // 2, side - size
    places = [(middle, middle)]
    if views in ("5", "10"):
        places += [(0, 0), (0, far), (far, 0), (far, far)]
    for mirrored in (False, True) if views in ("flip", "10") else (False,):
        yield from ((*place, mirrored) for place in places)


def make_scorer(
    configs: Sequence[ConfigDict], model: nnx.Module, mesh: Mesh, views: str
) -> Callable[[dict, dict, Sequence[jax.Array]], jax.Array]:
    """Returns a function (params, batch_stats, images) -> log-probabilities (N, classes), float32 or float64.

    They are the logarithms of the mean probabilities over all views, replicated over the mesh. The function takes an
    array of images for each size, uint8 (N, side, side, C), split over the mesh's axis `data`.

    Args:
      configs: from at_sizes.
      model: the abstract network in evaluation mode.
      mesh: the devices.
      views: one of VIEWS.
    """
    apply = make_apply(configs[0], model)
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    options = compiler_options(configs[0])

    def log_probabilities(params, batch_stats, images, size, top, left, mirrored):
        shape = (images.shape[0], size, size, images.shape[3])
        seen = jax.lax.dynamic_slice(images, (0, top, left, 0), shape)
        seen = jnp.where(mirrored, seen[:, :, ::-1], seen)
        return jax.nn.log_softmax(apply(params, batch_stats, seen))

    # The place of the crop is an argument, so that one compiled program serves all views of a size.
    see = jax.jit(
        log_probabilities,
        static_argnums=3,
        in_shardings=(replicated, replicated, split, replicated, replicated, replicated),
        out_shardings=replicated,
        compiler_options=options,
    )
    mean = jax.jit(lambda views: jax.nn.logsumexp(jnp.stack(views), axis=0) - jnp.log(len(views)))

    def score(params: dict, batch_stats: dict, images: Sequence[jax.Array]) -> jax.Array:
        seen = [
            see(params, batch_stats, array, config.image_size, *crop)
            for config, array in zip(configs, images, strict=True)
            for crop in crops(array.shape[1], config.image_size, views)
        ]
        return mean(seen) if len(seen) > 1 else seen[0]

    return score
