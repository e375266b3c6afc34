"""PyTorch's files, written here as torch.save writes them, and files that want more than tensors."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest

from models.torch_files import LEGACY_MAGIC, read_state_dict, write_safetensors

pytestmark = pytest.mark.smoke

TENSORS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn.running_var": np.array([1.5, 2.5], np.float64),
    "bn.num_batches_tracked": np.array(7),
}


@pytest.fixture
def torch_pickle(monkeypatch):
    """Pickles tensors as PyTorch does: by the names of its functions and storages."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_):
        raise AssertionError("only its name is needed")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    storage_types = {}
    for name, dtype in (("FloatStorage", "f4"), ("DoubleStorage", "f8"), ("LongStorage", "i8")):
        storage_types[np.dtype(dtype)] = type(name, (), {"__module__": "torch"})
        setattr(torch, name, storage_types[np.dtype(dtype)])
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Storage:
        def __init__(self, key, array):
            self.key, self.array = key, array

    class Tensor:
        def __init__(self, key, array):
            self.key, self.array = key, array

        def __reduce__(self):
            strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
            storage = Storage(self.key, self.array)
            hooks = collections.OrderedDict()
            return _rebuild_tensor_v2, (storage, 0, self.array.shape, strides, False, hooks)

    def dump(content, legacy):
        class Pickler(pickle.Pickler):
            def persistent_id(self, value):
                if isinstance(value, Storage):
                    kind = storage_types[value.array.dtype]
                    identifier = ("storage", kind, value.key, "cpu", value.array.size)
                    return (*identifier, None) if legacy else identifier
                return None

        file = io.BytesIO()
        Pickler(file, protocol=2).dump(content)
        return file.getvalue()

    def state_dict(prefix=""):
        pairs = enumerate(TENSORS.items())
        return collections.OrderedDict((prefix + name, Tensor(str(index), array)) for index, (name, array) in pairs)

    return dump, state_dict


def write_zipped(path, dump, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dump(content, legacy=False))
        for index, array in enumerate(TENSORS.values()):
            archive.writestr(f"archive/data/{index}", array.tobytes())


def write_legacy(path, dump, content):
    header = [LEGACY_MAGIC, 1001, {"little_endian": True}]
    keys = [str(index) for index in range(len(TENSORS))]
    parts = [pickle.dumps(value, protocol=2) for value in header] + [dump(content, legacy=True)]
    parts += [pickle.dumps(keys, protocol=2)]
    for array in TENSORS.values():
        parts += [struct.pack("<q", array.size), array.tobytes()]
    path.write_bytes(b"".join(parts))


def assert_is_all(state_dict):
    assert state_dict.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert state_dict[name].dtype == array.dtype
        np.testing.assert_array_equal(state_dict[name], array)


@pytest.mark.parametrize("write", [write_zipped, write_legacy])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_both_formats_of_torch_save(tmp_path, torch_pickle, write, prefix):
    dump, state_dict = torch_pickle
    write(tmp_path / "weights.pth", dump, {"best_prec1": 91.2, "state_dict": state_dict(prefix)})
    assert_is_all(read_state_dict(tmp_path / "weights.pth"))


def test_safetensors_and_npz(tmp_path):
    write_safetensors(tmp_path / "weights.safetensors", TENSORS)
    np.savez(tmp_path / "weights.npz", **TENSORS)
    assert_is_all(read_state_dict(tmp_path / "weights.safetensors"))
    assert_is_all(read_state_dict(tmp_path / "weights.npz"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.npz", "weights.safetensors"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("write", [write_zipped, write_legacy])
def test_code_is_refused_and_not_run(tmp_path, monkeypatch, torch_pickle, write):
    monkeypatch.chdir(tmp_path)
    dump, state_dict = torch_pickle
    write(tmp_path / "weights.pth", dump, {"state_dict": state_dict(), "extra": Evil()})
    with pytest.raises(ValueError, match=r"it asks for (posix|nt|os).system, and only tensors are read"):
        read_state_dict(tmp_path / "weights.pth")
    assert not (tmp_path / "evil").exists()


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path, torch_pickle):
    dump, state_dict = torch_pickle
    content = state_dict()
    wide = np.lib.stride_tricks.as_strided(TENSORS["bn.running_var"], (1000,), (8,))
    content["bn.running_var"].array = wide
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("archive/data.pkl", dump(content, legacy=False).replace(b"M\xe8\x03t", b"K\x02t"))
        for index, array in enumerate(TENSORS.values()):
            archive.writestr(f"archive/data/{index}", array.tobytes())
    with pytest.raises(ValueError, match="beyond its storage|cannot be read"):
        read_state_dict(tmp_path / "weights.pt")


@pytest.mark.parametrize("write", [write_zipped, write_legacy])
def test_damage_is_one_line(tmp_path, torch_pickle, write):
    dump, state_dict = torch_pickle
    path = tmp_path / "weights.pth"
    write(path, dump, state_dict())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="weights.pth") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_of_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        read_state_dict(tmp_path / "missing.pth")
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match="unknown kind; give one of .safetensors"):
        read_state_dict(tmp_path / "weights.h5")
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="torch.save did not write it"):
        read_state_dict(tmp_path / "weights.pth")
