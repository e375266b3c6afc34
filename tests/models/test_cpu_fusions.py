"""Programs compiled for a CPU compute the sum of a residual block once, however many later blocks there are."""

import re

import jax
import jax.numpy as jnp
import pytest
from families import smallest_size
from flax import nnx

from models import create_model, get_entry

# The networks with the longest stages of each kind of block. Without operations.store their largest fusions have 185
# operands (ResNet-152), 57 (ResNet-110), 39 (ResNet-164), 41 (Inception-ResNet-v2) and 8 (Xception).
slow = pytest.mark.slow
NETWORKS = ["resnet110", *(pytest.param(name, marks=slow) for name in ("resnet152", "resnet164_v2", "xception"))]


@pytest.mark.parametrize("name", [*NETWORKS, pytest.param("inception_resnet_v2", marks=slow)])
def test_no_fusion_reads_more_than_a_few_arrays(name):
    entry = get_entry(name)
    graph, state = nnx.split(create_model(name, abstract=True))
    side = smallest_size(entry)
    images = jax.ShapeDtypeStruct((2, side, side, entry.channels), jnp.float32)
    program = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
    text = program.lower(nnx.to_pure_dict(state), images).compile().as_text()
    operands = [len(re.findall("%", fusion)) for fusion in re.findall(r" fusion\((.*?)\), kind", text)]
    assert len(operands) > 100 and max(operands) <= 12
