"""PyTorch's files of weights, read without PyTorch, without running code that they may hold, and in bounded memory.

Only the chosen state dict is read: nothing is built or decoded of the optimizer, the arguments and other objects in a
training checkpoint. The sizes in a file's headers are checked before its tensors are read.
"""

import collections
import io
import operator
import pathlib
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

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
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first number in the files of torch.save before version 1.6
MAX_BYTES = 4 * 2**30  # of all tensors together, unless the caller knows better
MAX_PICKLE_BYTES = 64 * 2**20  # the pickles of real checkpoints have a few MB at most
MAX_OPCODES = 2_000_000  # of a pickle; a tensor takes some 25, and each may build an object of 200 bytes

# The names of state dicts in training checkpoints, the first one found is the default. "" is the whole file.
STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "")
# What DataParallel, Lightning, torch.compile and people's own wrappers put before the names of a network's tensors.
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.")


class Weights(NamedTuple):
    """A state dict of a file.

    Attributes:
      tensors: by their names, without the prefixes of wrappers.
      key: the state dict's own name in the file; "" for the whole file.
      other_keys: the names of the other state dicts in the file.
    """

    tensors: dict[str, np.ndarray]
    key: str
    other_keys: list[str]


def read_weights(path: pathlib.Path, key: str | None = None, max_bytes: int = MAX_BYTES) -> Weights:
    """Returns a state dict of a file.

    The first bytes of the file decide how it is read: as safetensors, .npz, or torch.save's zipped or older format. A
    file may be a training checkpoint with one state dict or several.

    Args:
      path: the file; its suffix does not matter.
      key: the name of the state dict in the file; default: the first of STATE_DICT_KEYS that is there.
      max_bytes: the most that the tensors may take together.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is of another kind, damaged or too large, or has no such state dict.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights at {path}")
    try:
        with open(path, "rb") as file:
            content = _read_headers(file, path)
            found = _find_state_dicts(content)
            chosen = _choose(content, found, key)
            arrays = _read_tensors(_without_prefixes(found[chosen]), max_bytes)
    except _Refused as error:
        raise ValueError(f"{path} is refused: {error}") from error
    except Exception as error:  # a damaged file can make its reader raise anything
        raise ValueError(f"{path} cannot be read: {str(error) or type(error).__name__}") from error
    return Weights(arrays, chosen, [name for name in found if name != chosen])


def read_state_dict(path: pathlib.Path, key: str | None = None, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Returns the tensors of read_weights."""
    return read_weights(path, key, max_bytes).tensors


def write_safetensors(
    path: pathlib.Path, state_dict: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes a state dict that PyTorch loads with safetensors.torch.load_file, and the file's metadata.

    Raises:
      OSError: if the file cannot be written; an old file of that name is unchanged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    temporary = path.with_name(f".{path.name}")
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in state_dict.items()}, temporary, metadata)
        temporary.rename(path)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


class _Refused(ValueError):
    """The file is sound, but it does not hold what is expected of it."""


@dataclass(frozen=True, eq=False)
class _Storage:
    """Numbers in the file that a tensor, or several ones, are views of.

    Attributes:
      num_bytes: that reading them takes, from the file's headers.
      read: reads them.
    """

    num_bytes: int
    read: Callable[[], Any]


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor that was not read yet: its storage, and a function from the storage's content to the array."""

    storage: _Storage
    view: Callable[[Any], np.ndarray]


def _read_headers(file: BinaryIO, path: pathlib.Path) -> Any:
    """Returns the content of a file, with a _Tensor for each tensor."""
    start = file.read(9)
    file.seek(0)
    if start.startswith(b"PK"):
        archive = zipfile.ZipFile(file)
        main = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        return _read_zipped(archive, main) if main else _read_npz(archive)
    if start.startswith(b"\x80"):
        return _read_legacy(file, path.stat().st_size)
    if start[8:] == b"{":
        from safetensors import safe_open
        from safetensors.numpy import load_file

        whole = _Storage(path.stat().st_size, lambda: load_file(path))
        with safe_open(path, framework="numpy") as tensors:
            names = list(tensors.keys())
        return {name: _Tensor(whole, operator.itemgetter(name)) for name in names}
    raise _Refused("it is no file of weights; give one of safetensors, of numpy.savez or of torch.save")


def _read_npz(archive: zipfile.ZipFile) -> dict[str, _Tensor]:
    def storage(name: str) -> _Storage:
        def read() -> np.ndarray:
            with archive.open(name) as member:
                return np.lib.format.read_array(member, allow_pickle=False)

        return _Storage(archive.getinfo(name).file_size, read)

    names = [name for name in archive.namelist() if name.endswith(".npy")]
    return {name.removesuffix(".npy"): _Tensor(storage(name), lambda array: array) for name in names}


def _read_zipped(archive: zipfile.ZipFile, main: str) -> Any:
    """The format of torch.save since 1.6: a pickle, and beside it a file for each storage."""
    folder = main.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise _Refused("its numbers are big-endian; save it on another machine")

    def storage(dtype: np.dtype, key: str, count: int) -> _Storage:
        name = f"{folder}data/{key}"
        num_bytes = max(archive.getinfo(name).file_size, count * dtype.itemsize)
        return _Storage(num_bytes, lambda: np.frombuffer(archive.read(name), dtype, count))

    if archive.getinfo(main).file_size > MAX_PICKLE_BYTES:
        raise _Refused(f"{main} has more than {_readable(MAX_PICKLE_BYTES)}")
    return _unpickle(io.BytesIO(archive.read(main)), storage)


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """The format of torch.save before 1.6: five pickles one after the other, then the bytes of the storages."""
    pickles = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    positions: dict[str, int] = {}
    types: dict[str, np.dtype] = {}

    def storage(dtype: np.dtype, key: str, count: int) -> _Storage:
        def read() -> np.ndarray:
            file.seek(positions[key])
            return np.frombuffer(file.read(count * dtype.itemsize), dtype, count)

        types[key] = dtype
        return _Storage(count * dtype.itemsize, read)

    magic, _, _, content, keys = (_unpickle(pickles, storage) for _ in range(5))
    if magic != LEGACY_MAGIC or not isinstance(keys, list):
        raise _Refused("it is no file of torch.save; give one of safetensors, of numpy.savez or of torch.save")
    end = pickles.tell()
    for key in keys:  # each storage begins with the number of its elements
        file.seek(end)
        positions[key] = end + 8
        end += 8 + int(np.frombuffer(file.read(8), "<i8")[0]) * types[key].itemsize
        if not positions[key] <= end <= size:
            raise ValueError("it is cut short")
    return content


class _Inert:
    """An object of any other class: it accepts everything that a pickle may do to it, and does nothing."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


class _Unpickler(pickle.Unpickler):
    """Builds plain containers and the headers of tensors; in the place of any other object there is an _Inert."""

    def __init__(self, file: BinaryIO, storage: Callable[[np.dtype, str, int], _Storage]):
        super().__init__(file, encoding="utf-8")
        self._new_storage = storage
        self._storages: dict[str, tuple[np.dtype, int, _Storage]] = {}
        # A pickle can set attributes of the objects that find_class returns. So each pickle gets a class of its own
        # here, and new functions in find_class: what it sets cannot affect the reading of other files.
        self._inert: Any = type("Inert", (_Inert,), {"__slots__": ()})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: self._tensor(storage, offset, shape, strides)
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return lambda tensor, *_: tensor
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return lambda function, _, arguments, *__: function(*arguments)
        if module == "torch" and name in STORAGE_TYPES:
            return (np.dtype(STORAGE_TYPES[name]),)
        return self._inert

    def persistent_load(self, identifier: Any) -> Any:
        kind, dtype, key, _, count = identifier[:5]
        if kind != "storage" or not isinstance(dtype, tuple):
            return self._inert()
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"a storage has {count!r} elements")
        key = str(key)
        if key not in self._storages:
            self._storages[key] = dtype[0], count, self._new_storage(dtype[0], key, count)
        return self._storages[key]

    def _tensor(self, storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        if not isinstance(storage, tuple):
            return self._inert()
        dtype, count, source = storage
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= count):
            raise ValueError("a tensor reaches beyond its storage")
        steps = [stride * dtype.itemsize for stride in strides]

        def view(values: np.ndarray) -> np.ndarray:
            return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)

        return _Tensor(source, view)


def _unpickle(file: io.BytesIO, storage: Callable[[np.dtype, str, int], _Storage]) -> Any:
    """Reads the next pickle of a file, after a look at its opcodes: they say how much memory reading it can take."""
    start = file.tell()
    opcodes: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(file)
    for number, (opcode, argument, _) in enumerate(opcodes):
        # The unpickler allocates a memo of as many entries as the largest index says.
        if number > MAX_OPCODES or (opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > MAX_OPCODES):
            raise _Refused(f"its pickle asks for more than {MAX_OPCODES:,} objects")
    end = file.tell()
    file.seek(start)
    return _Unpickler(io.BytesIO(file.read(end - start)), storage).load()


def _find_state_dicts(content: Any) -> dict[str, dict[str, _Tensor]]:
    """The dicts that hold tensors, by their keys in the file: model.state_dict is content["model"]["state_dict"]."""
    found: dict[str, dict[str, _Tensor]] = {}
    seen: set[int] = set()

    def search(name: str, part: Any, depth: int) -> None:
        if not isinstance(part, dict) or id(part) in seen:
            return
        seen.add(id(part))
        named = {key: value for key, value in part.items() if isinstance(key, str)}
        if tensors := {key: value for key, value in named.items() if isinstance(value, _Tensor)}:
            found[name] = tensors
        for key, value in named.items() if depth else ():
            search(f"{name}.{key}" if name else key, value, depth - 1)

    search("", content, depth=2)
    return found


def _choose(content: Any, found: dict[str, dict[str, _Tensor]], key: str | None) -> str:
    """The key of the state dict that is asked for."""
    if not isinstance(content, dict):
        kind = "an object" if isinstance(content, _Inert) else f"a {type(content).__name__}"
        kind = "None" if content is None else "one tensor" if isinstance(content, _Tensor) else kind
        raise _Refused(f"it holds {kind}, not a state dict; save model.state_dict()")
    if not found:
        raise _Refused(f"it holds no tensors with names; its keys are {_listed(list(content))}")
    default = next((name for name in STATE_DICT_KEYS if name in found), None)
    chosen = next(iter(found)) if len(found) == 1 and key is None else default if key is None else key
    if chosen is None:
        raise _Refused(f"it holds several state dicts; choose one with --key: {_listed(list(found))}")
    if chosen not in found:
        raise _Refused(f"it has no state dict {chosen!r}; it has {_listed(list(found))}")
    return chosen


def _without_prefixes(tensors: dict[str, _Tensor]) -> dict[str, _Tensor]:
    """The tensors by their names in the network, however often it was wrapped."""
    result: dict[str, _Tensor] = {}
    for name, tensor in tensors.items():
        own = name
        while prefix := next((prefix for prefix in PREFIXES if own.startswith(prefix)), None):
            own = own.removeprefix(prefix)
        if own in result:
            raise _Refused(f"it holds two tensors for {own!r}; one of them is {name!r}")
        result[own] = tensor
    return result


def _read_tensors(tensors: dict[str, _Tensor], max_bytes: int) -> dict[str, np.ndarray]:
    """The arrays of the tensors, which share no more memory than their storages have."""
    storages = {tensor.storage for tensor in tensors.values()}
    if (size := sum(storage.num_bytes for storage in storages)) > max_bytes:
        raise _Refused(f"it holds {_readable(size)} of weights, and at most {_readable(max_bytes)} are expected")
    values = {storage: storage.read() for storage in storages}
    return {name: tensor.view(values[tensor.storage]) for name, tensor in tensors.items()}


def _listed(keys: list[Any], most: int = 10) -> str:
    names = [repr(key)[:80] for key in keys[:most]]
    return ", ".join(names + [f"{len(keys) - most} others"] * (len(keys) > most))


def _readable(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
