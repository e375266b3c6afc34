"""Makes pickles as torch.save does, with PyTorch's functions and storages by name, so that PyTorch is not needed."""

import collections
import io
import pickle
import sys
import types
import zipfile
from unittest import mock

import numpy as np


def _rebuild_tensor_v2(*_):
    raise AssertionError("only its name is needed")


_rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
STORAGE_TYPES = {
    np.dtype(dtype): type(name, (), {"__module__": "torch"})
    for name, dtype in (("FloatStorage", "f4"), ("DoubleStorage", "f8"), ("LongStorage", "i8"))
}


class Storage:
    """The numbers of an array, identified by the key of their file."""

    def __init__(self, key, array):
        self.key, self.array = key, array


class Tensor:
    """An array that is pickled as a tensor."""

    def __init__(self, key, array):
        self.key, self.array = key, array

    def __reduce__(self):
        strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
        storage = Storage(self.key, self.array)
        return _rebuild_tensor_v2, (storage, 0, self.array.shape, strides, False, collections.OrderedDict())


def dump(content, legacy):
    """Returns the pickle of a content with Tensors, of torch.save's zipped or its older format."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                identifier = ("storage", STORAGE_TYPES[value.array.dtype], value.key, "cpu", value.array.size)
                return (*identifier, None) if legacy else identifier
            return None

    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for storage_type in STORAGE_TYPES.values():
        setattr(torch, storage_type.__name__, storage_type)
    file = io.BytesIO()
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def write_checkpoint(path, state_dicts):
    """Writes a training checkpoint with several state dicts of arrays in torch.save's zipped format."""
    arrays = [array for tensors in state_dicts.values() for array in tensors.values()]
    keys = iter(range(len(arrays)))
    content = {
        key: {name: Tensor(str(next(keys)), array) for name, array in tensors.items()}
        for key, tensors in state_dicts.items()
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dump(content | {"epoch": 3}, legacy=False))
        for number, array in enumerate(arrays):
            archive.writestr(f"archive/data/{number}", array.tobytes())
