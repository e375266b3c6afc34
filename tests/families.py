"""Facts about families for tests that walk the registry, computed so that a new family needs no entry here."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from models import REGISTRY, Entry, create_model


def small_member(family: str) -> str:
    """Returns the network of a family that probably compiles and runs fastest, by parameters times parameter arrays."""

    def cost(name: str) -> int:
        sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(create_model(name, abstract=True), nnx.Param))]
        return sum(sizes) * len(sizes)

    return min((entry.name for entry in REGISTRY.values() if entry.family == family), key=cost)


FAMILIES = list(dict.fromkeys(entry.family for entry in REGISTRY.values()))
SMALL = {family: small_member(family) for family in FAMILIES}


def smallest_size(entry: Entry) -> int:
    """Returns the side, in pixels, of the smallest images that tests use for a network.

    It is the smallest that its family accepts for images of its kind, and at least 8 (CIFAR) or 32 (ImageNet), where
    the last maps of most networks have one pixel: on smaller images the convolutions see nothing but padding.
    """
    return _smallest_size(entry.family, entry.image_size == 32)


@functools.cache
def _smallest_size(family: str, for_cifar: bool) -> int:
    entries = [entry for entry in REGISTRY.values() if (entry.family, entry.image_size == 32) == (family, for_cifar)]
    graph, state = nnx.split(create_model(entries[0].name, abstract=True))

    def fits(size: int) -> bool:
        images = jax.ShapeDtypeStruct((2, size, size, entries[0].channels), jnp.float32)
        try:
            jax.eval_shape(lambda state, images: nnx.merge(graph, state)(images), nnx.to_pure_dict(state), images)
        except ValueError:
            return False
        return True

    largest_refused, smallest = 7 if for_cifar else 31, entries[0].image_size
    while smallest - largest_refused > 1:
        size = (smallest + largest_refused) // 2
        largest_refused, smallest = (largest_refused, size) if fits(size) else (size, smallest)
    return smallest
