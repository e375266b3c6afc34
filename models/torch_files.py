"""PyTorch's files of weights, read without PyTorch and without running any code that they might hold."""

import collections
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

STORAGE_TYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # begins the files of torch.save before version 1.6
READERS = (".safetensors", ".npz", ".pt", ".pth", ".th", ".bin")


def read_state_dict(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by their names.

    A state dict inside a training checkpoint (`state_dict` or `model`) is found, and DataParallel's prefix `module.`
    is taken off the names.

    Args:
      path: .safetensors, .npz, or what torch.save wrote (.pt, .pth, .th, .bin), in its zipped or its older format.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file has another suffix, is damaged, or holds anything but tensors and plain values.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights at {path}")
    if path.suffix not in READERS:
        raise ValueError(f"{path} is of an unknown kind; give one of {', '.join(READERS)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            content = load_file(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                content = dict(arrays)
        else:
            content = _read_torch(path)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is refused: {error}") from error
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(f"{path} cannot be read: {str(error) or type(error).__name__}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, np.ndarray)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    return tensors


def write_safetensors(path: pathlib.Path, state_dict: dict[str, np.ndarray]) -> None:
    """Writes a state dict that PyTorch loads with safetensors.torch.load_file."""
    from safetensors.numpy import save_file

    temporary = path.with_name(f".{path.name}")
    save_file({name: np.ascontiguousarray(array) for name, array in state_dict.items()}, temporary)
    temporary.rename(path)


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers, and refuses whatever else a pickle asks for by its name."""

    def __init__(self, file: BinaryIO, storage: Callable[[Any, str, int], np.ndarray]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in STORAGE_TYPES:
            return np.dtype(STORAGE_TYPES[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only tensors are read")

    def persistent_load(self, identifier: tuple) -> np.ndarray:
        kind, dtype, key, _, count = identifier[:5]
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(count, int) or count < 0:
            raise pickle.UnpicklingError(f"it holds a {kind!r}, and only tensors are read")
        return self._storage(dtype, str(key), count)


def _rebuild_tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray:
    """A view of a storage, as PyTorch describes it; nothing outside the storage can be reached."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (math.prod(shape) and last >= storage.size):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _read_torch(path: pathlib.Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _read_zipped(archive)
    with open(path, "rb") as file:
        return _read_legacy(file, path.stat().st_size)


def _read_zipped(archive: zipfile.ZipFile) -> Any:
    """What torch.save writes since 1.6: a pickle, and a file for each storage beside it."""
    main = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
    if main is None:
        raise ValueError("no data.pkl inside")
    folder = main.removesuffix("data.pkl")

    def storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
        return np.frombuffer(archive.read(f"{folder}data/{key}"), dtype, count)

    with archive.open(main) as file:
        return _Unpickler(file, storage).load()


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """What torch.save wrote before 1.6: five pickles in a row, then the storages' bytes."""
    storages: dict[str, np.ndarray] = {}

    def storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
        if count * dtype.itemsize > size:
            raise pickle.UnpicklingError("a storage is larger than the file")
        return storages.setdefault(key, np.zeros(count, dtype))

    def load() -> Any:
        return _Unpickler(file, storage).load()

    if load() != LEGACY_MAGIC:
        raise pickle.UnpicklingError("torch.save did not write it")
    load(), load()  # the protocol's version, and facts about the machine
    content, keys = load(), load()
    for key in keys:
        values = storages[key]
        count = int(np.frombuffer(file.read(8), "<i8")[0])
        content_bytes = file.read(values.nbytes)
        if count != values.size or len(content_bytes) != values.nbytes:
            raise ValueError("it is cut short")
        values[:] = np.frombuffer(content_bytes, values.dtype)
    return content
