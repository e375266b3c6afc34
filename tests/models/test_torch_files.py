"""Reads PyTorch's files, written here as torch.save writes them, also with other objects or too much data in them."""

import argparse
import collections
import os
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from torch_pickles import Tensor, dump

from models.torch_files import LEGACY_MAGIC, read_state_dict, read_weights, write_safetensors

pytestmark = pytest.mark.smoke

TENSORS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn.running_var": np.array([1.5, 2.5], np.float64),
    "bn.num_batches_tracked": np.array(7),
}


@pytest.fixture
def torch_pickle():
    """Returns a function that pickles as torch.save does, and one that makes the state dict of TENSORS."""

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
    main = dump(content, legacy=True)
    tensors = TENSORS if b"Storage" in main else {}
    keys = [str(index) for index in range(len(tensors))]
    parts = [pickle.dumps(value, protocol=2) for value in header] + [main, pickle.dumps(keys, protocol=2)]
    for array in tensors.values():
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
def test_code_is_not_run(tmp_path, monkeypatch, torch_pickle, write):
    monkeypatch.chdir(tmp_path)
    dump, state_dict = torch_pickle
    write(tmp_path / "weights.pth", dump, {"state_dict": state_dict(), "extra": Evil()})
    assert_is_all(read_state_dict(tmp_path / "weights.pth"))
    write(tmp_path / "weights.pth", dump, Evil())
    with pytest.raises(ValueError, match="holds an object, not a state dict"):
        read_state_dict(tmp_path / "weights.pth")
    assert not (tmp_path / "evil").exists()


class Thing:
    """An object of a library that is not installed here, pickled by name with a state, items and elements."""

    def __init__(self, value=None):
        self.value = value


class ListLike(list):
    pass


class DictLike(dict):
    pass


class SetLike(set):
    pass


# The contents that common training programs save, made from a state dict with their prefix.
CHECKPOINTS = {
    "torchvision's references": ("", lambda own: {"model": own, "args": argparse.Namespace(lr=0.1), "epoch": 3}),
    "timm": ("", lambda own: {"state_dict": own, "args": argparse.Namespace(model="resnet20"), "metric": 91.0}),
    "MultiStepLR": ("", lambda own: {"model": own, "lr_scheduler": {"milestones": collections.Counter([30, 60])}}),
    "Lightning": ("model.", lambda own: {"state_dict": own, "callbacks": {}, "hyper_parameters": DictLike(a=Thing())}),
    "DataParallel": ("module.", lambda own: {"state_dict": own, "best_acc1": np.float64(0.9)}),
    "torch.compile of DDP": ("_orig_mod.module.", lambda own: {"model": own}),
    "all wrappers": ("model._orig_mod.module.net.", lambda own: own),
    "any objects": (
        "",
        lambda own: {"net": own, "x": [Thing(Thing), ListLike([1]), SetLike([2]), {3}, Thing.__init__]},
    ),
    "nested": ("module.", lambda own: {"model": {"state_dict": own, "config": Thing(1)}}),
}


@pytest.mark.parametrize("write", [write_zipped, write_legacy])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_training_checkpoints(tmp_path, torch_pickle, write, name):
    dump, state_dict = torch_pickle
    prefix, make = CHECKPOINTS[name]
    write(tmp_path / "checkpoint.pth.tar", dump, make(state_dict(prefix)))
    assert_is_all(read_state_dict(tmp_path / "checkpoint.pth.tar"))


def test_one_of_several_state_dicts_is_chosen_by_key(tmp_path, torch_pickle):
    dump, state_dict = torch_pickle
    averaged = collections.OrderedDict(list(state_dict("module.").items())[:1])
    path = tmp_path / "last.ckpt"
    write_zipped(path, dump, {"state_dict_ema": averaged, "state_dict": state_dict(), "epoch": 3})
    weights = read_weights(path)
    assert_is_all(weights.tensors)
    assert (weights.key, weights.other_keys) == ("state_dict", ["state_dict_ema"])
    assert read_state_dict(path, "state_dict_ema").keys() == {"conv.weight"}
    with pytest.raises(ValueError, match="has no state dict 'ema'; it has 'state_dict_ema', 'state_dict'"):
        read_state_dict(path, "ema")
    write_zipped(path, dump, {"student": state_dict(), "teacher": state_dict()})
    with pytest.raises(ValueError, match="several state dicts; choose one with --key: 'student', 'teacher'"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        (None, "holds None, not a state dict"),
        (Thing(), "holds an object, not a state dict; save model.state_dict()"),
        ({"epoch": 3, "a\x1b[31m": [4]}, r"holds no tensors with names; its keys are 'epoch', 'a\\x1b\[31m'"),
        ({number: number for number in range(30)}, "its keys are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20 others"),
    ],
)
@pytest.mark.parametrize("write", [write_zipped, write_legacy])
def test_other_contents_are_refused_in_one_line(tmp_path, torch_pickle, write, content, message):
    write(tmp_path / "weights.pth", torch_pickle[0], content)
    with pytest.raises(ValueError, match=message) as caught:
        read_state_dict(tmp_path / "weights.pth")
    assert str(caught.value).isprintable()


def test_half_precision(tmp_path):
    for dtype in (np.float16, ml_dtypes.bfloat16):
        array = np.array([1.5, -2.0], dtype)
        write_safetensors(tmp_path / "half", {"a": array})
        read = read_state_dict(tmp_path / "half")["a"]
        assert read.dtype == dtype and read.tolist() == [1.5, -2.0]


HUGE = 300 * 2**20  # bytes


def write_inflating_storage(path, dump, state_dict):
    write_zipped(path, dump, state_dict())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", dump(state_dict(), legacy=False))
        for index, array in enumerate(TENSORS.values()):
            archive.writestr(f"archive/data/{index}", array.tobytes() + bytes(HUGE))


def write_inflating_array(path, *_):
    np.savez_compressed(path.with_suffix(".npz"), **{"conv.weight": np.zeros(HUGE, np.uint8)})
    path.with_suffix(".npz").rename(path)


def write_inflating_pickle(path, dump, state_dict):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02(" + b"]" * (HUGE // 4) + b"l.")


def write_many_objects(path, dump, state_dict):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x04(" + b"\x8f" * 3_000_000 + b"l.")


def write_large_memo(path, dump, state_dict):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02Nr" + struct.pack("<I", 2**26) + b".")


def write_long_string(path, dump, state_dict):
    path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"abc.")


@pytest.mark.parametrize(
    "write",
    [write_inflating_storage, write_inflating_array, write_inflating_pickle]
    + [write_many_objects, write_large_memo, write_long_string],
)
def test_files_that_would_fill_the_memory_are_refused(tmp_path, torch_pickle, write):
    path = tmp_path / "weights.pth"
    write(path, *torch_pickle)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is refused|cannot be read"):
            read_state_dict(path, max_bytes=2**20)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


def test_an_optimizers_state_is_not_read(tmp_path, torch_pickle):
    dump, state_dict = torch_pickle
    path = tmp_path / "checkpoint.pth"
    momenta = collections.OrderedDict(list(state_dict().items())[1:])
    model = collections.OrderedDict(list(state_dict().items())[:1])
    write_zipped(path, dump, {"model": model, "optimizer": {"state": {0: momenta}}})
    # The model's 24 float32 are 96 bytes; with the optimizer's three numbers it would be 120.
    assert read_state_dict(path, max_bytes=96).keys() == {"conv.weight"}
    with pytest.raises(ValueError, match="holds 0.0 MB of weights, and at most 0.0 MB are expected"):
        read_state_dict(path, max_bytes=95)


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
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match="no file of weights; give one of safetensors"):
        read_state_dict(tmp_path / "weights.pth")
    for content in (pickle.dumps({"a": 1}), b"".join(pickle.dumps(number) for number in range(5))):
        (tmp_path / "weights.pth").write_bytes(content)
        with pytest.raises(ValueError, match="no file of torch.save|cannot be read"):
            read_state_dict(tmp_path / "weights.pth")
