"""Weights from and to PyTorch: the names and the layouts of the arrays.

The axes of the arrays:

    array                            PyTorch          here
    kernel of a convolution          (O, I, H, W)     (H, W, I, O)
    kernel of a dense layer          (O, I)           (I, O)
    the same, on a whole map         (O, C * H * W)   (H, W, C, O)
    layer scale                      (C, 1, 1)        (C,)
    class token, position embedding  (1, length, C)   (1, length, C)
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import nnx

from models import Entry
from models.layers import Dense, LayerScale
from models.vit import fit_positions

LEAVES = ((r"\b(kernel|scale)$", "weight"), (r"\b(mean|var)$", r"running_\1"))
# The transposition of our array to PyTorch's, and back, by the number of axes.
TO_TORCH = {1: (0,), 2: (1, 0), 3: (0, 1, 2), 4: (3, 2, 0, 1)}
FROM_TORCH = {1: (0,), 2: (1, 0), 3: (0, 1, 2), 4: (2, 3, 1, 0)}


def torch_shapes(entry: Entry, model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of PyTorch's state dict for a network, without its num_batches_tracked."""
    return {name: shape for _, _, name, shape in _tensors(entry, model)}


def rename_old(entry: Entry, state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns PyTorch's state dict with the names of torch_names, where the files of a network have other names."""
    return {_rename(entry.old_torch_names, name): array for name, array in state_dict.items()}


def from_torch(entry: Entry, model: nnx.Module, state_dict: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns a network's variables, a nested dict of arrays, from PyTorch's state dict.

    Args:
      entry: the network's, of the registry.
      model: the network, abstract or not.
      state_dict: PyTorch's arrays by name; num_batches_tracked and auxiliary heads that model lacks are left out, and
        position embeddings for another image size are interpolated.

    Raises:
      ValueError: if an array is missing, surplus or of another shape.
    """
    values, surplus = {}, set(state_dict)
    for path, variable, name, shape in _tensors(entry, model):
        if name not in state_dict:
            raise ValueError(f"the weights lack {name!r}, {shape}; give the weights of {entry.name}")
        array = fit_positions(path, state_dict[name], shape)
        if array.squeeze().shape == tuple(size for size in shape if size != 1):  # timm's layer scales are (C,)
            array = array.reshape(shape)
        if array.shape != shape:
            raise ValueError(
                f"{name!r} has shape {array.shape}, {entry.name} needs {shape}; check the number of classes"
            )
        axes = TO_TORCH[variable.ndim]
        array = array.reshape([variable.shape[axis] for axis in axes]).transpose(FROM_TORCH[variable.ndim])
        values[path] = np.ascontiguousarray(array, variable.dtype)
        surplus.remove(name)
    heads = tuple(_torch_name(entry, f"{head}_head.") for head in entry.aux_heads)
    surplus = sorted(
        name for name in surplus if not name.endswith("num_batches_tracked") and not name.startswith(heads)
    )
    if surplus:
        raise ValueError(f"the weights hold {surplus[0]!r}, which {entry.name} lacks; give the weights of {entry.name}")
    return nnx.traversals.unflatten_mapping(values)


def to_torch(entry: Entry, model: nnx.Module, values: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns PyTorch's state dict, without num_batches_tracked, of a network's variables: from_torch's inverse."""
    values = nnx.traversals.flatten_mapping(values)
    return {
        name: np.asarray(values[path]).transpose(TO_TORCH[variable.ndim]).reshape(shape)
        for path, variable, name, shape in _tensors(entry, model)
    }


def _tensors(entry: Entry, model: nnx.Module) -> Iterator[tuple[tuple, Any, str, tuple[int, ...]]]:
    """Yields path, value, PyTorch's name and PyTorch's shape of each variable."""
    if not entry.torch_names:
        raise ValueError(f"{entry.name} has no counterpart in PyTorch; convert another network")
    dense, scales = (
        {path for path, module in nnx.iter_modules(model) if isinstance(module, kind)} for kind in (Dense, LayerScale)
    )
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        value = variable.get_value()
        shape = tuple(value.shape[axis] for axis in TO_TORCH[value.ndim])
        if path[:-1] in dense:
            shape = (shape[0], *(math.prod(shape[1:]),) * (len(shape) > 1))
        if path[:-1] in scales:
            shape = (*shape, 1, 1)
        yield path, value, _torch_name(entry, ".".join(map(str, path))), shape


def _torch_name(entry: Entry, path: str) -> str:
    return _rename((*entry.torch_names, *LEAVES), path)


def _rename(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
