"""Folders of object stores: faults, files that appear whole, and datasets that are copied once."""

import shutil
import types

import fsspec
import numpy as np
import pytest
from PIL import Image

from configs import base
from input_pipeline import load_dataset, remote
from input_pipeline.remote import Store, check_url, copied_folder, copy_of

URL = "memory://bucket/folder"


class Clock:
    """A clock that moves only when somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(remote, "time", clock)
    return clock


@pytest.fixture
def files():
    """The filesystem of all stores in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


class Faulty:
    """A filesystem in which each call may fail first, as `faults` says for its number."""

    def __init__(self, files, fault):
        self._files, self._fault, self.calls = files, fault, []

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, *arguments[:1]))
            if error := self._fault(len(self.calls)):
                raise error
            return getattr(self._files, name)(*arguments, **options)

        return call


def faulty_store(files, fault, timeout=100.0):
    store = Store(URL, timeout)
    store._files = Faulty(files, fault)
    return store


def test_a_store_that_fails_two_times_of_three(files, clock, tmp_path):
    store = faulty_store(files, lambda number: number % 3 and OSError("503 Slow Down"))
    store.write("a", b"old")
    store.write("a", b"new")
    (tmp_path / "source").write_bytes(b"long")
    store.upload(tmp_path / "source", "deep/b")
    assert store.sizes() == {"a": 3, "deep/b": 4}
    store.download(store.sizes(), tmp_path / "copy")
    assert (tmp_path / "copy/a").read_bytes() == store.read("a") == b"new"
    assert (tmp_path / "copy/deep/b").read_bytes() == b"long"
    store.delete("a")
    assert store.read("a") is None and store.sizes() == {"deep/b": 4}
    store.delete("a")
    assert clock.now > 0


def test_a_store_that_keeps_failing_is_given_up_in_one_line(files, clock, capsys):
    store = faulty_store(files, lambda number: ConnectionError("cut\nby somebody"), timeout=300)
    with pytest.raises(OSError, match=f"^{URL}/config.json cannot be written, and [23].. s did not help: cut$"):
        store.write("config.json", b"")
    assert 200 < clock.now <= 300
    assert "trying again for up to 300 s" in capsys.readouterr().err


@pytest.mark.parametrize("error", [PermissionError("Access Denied"), FileNotFoundError("no such bucket")])
def test_what_does_not_mend_itself_is_raised_at_once(files, clock, error):
    with pytest.raises(type(error), match=f"{URL}/a cannot be written: {error}"):
        faulty_store(files, lambda number: error).write("a", b"")
    assert clock.now == 0


def test_a_permission_that_is_lost_for_a_while_is_waited_for(files, clock):
    store = faulty_store(files, lambda number: 1 < number < 5 and PermissionError("ExpiredToken"))
    store.write("a", b"first")
    store.write("a", b"second")
    assert store.read("a") == b"second" and clock.now > 0


def test_only_one_can_write_a_new_file(files):
    first, second = Store(URL, 1), Store(f"{URL}/", 1)
    first.write("a", b"first", new=True)
    with pytest.raises(FileExistsError):
        second.write("a", b"second", new=True)
    assert second.read("a") == b"first"


def test_a_file_that_arrives_cut_is_read_again_and_never_has_its_name(files, clock, tmp_path):
    Store(URL, 1).write("a", b"whole")
    store, seen = Store(URL, 100), []

    def get_file(path, part):
        seen.append(sorted(file.name for file in tmp_path.iterdir()))
        with open(part, "wb") as file:
            file.write(b"whole"[: 2 + len(seen)])

    store._files = types.SimpleNamespace(get_file=get_file)
    store.download({"a": 5}, tmp_path)
    assert seen == [[], [".a.part"], [".a.part"]]
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a", b"whole")]


def test_names_that_are_no_paths_below_the_folder_are_no_files(files):
    store = Store(URL, 1)
    for name in ("a", "../b", "c/../../d", "e//f"):
        files.pipe_file(f"/bucket/folder/{name}", b"x")
    Store("memory://bucket/folder2", 1).write("g", b"x")
    assert set(store.sizes()) == {"a"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://server/run", "no store that is supported"),
        ("s3://", "names no folder"),
        ("gs:///", "names no folder"),
        ("s3://bucket/../other", "names no folder"),
        ("s3://bucket/run", "needs s3fs, which is not installed; run pip install s3fs"),
        ("gs://bucket/run", "needs gcsfs, which is not installed; run pip install gcsfs"),
    ],
)
def test_urls_that_cannot_be_used(monkeypatch, url, message):
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        check_url(url)


def test_each_url_has_its_own_copy_below_the_cache(tmp_path):
    urls = ["s3://a/b/c", "gs://a/b/c", "s3://x/b/c", "s3://a/b/d", "s3://a/b c", "s3://a/b?c", "s3://a"]
    copies = [copy_of(url, str(tmp_path)) for url in urls]
    assert len(set(copies)) == len(urls) and all(tmp_path in copy.parents for copy in copies)
    assert copy_of("s3://a//b/c/", str(tmp_path)) == copies[0] and copies[0].parts[-2:] == ("b", "c")


def write_images(files, count=12):
    """Puts class folders into the store."""
    for number in range(count):
        with files.open(f"/bucket/folder/{('cat', 'dog')[number % 2]}/{number}.png", "wb") as file:
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(file, "PNG")


def config_of(tmp_path, **options):
    config = base.get_config()
    config.remote_cache_dir, config.remote_timeout_seconds = str(tmp_path / "cache"), 0.0
    config.update(options)
    return config


def test_an_image_folder_in_a_store_is_that_folder(files, tmp_path, monkeypatch):
    write_images(files)
    for path in files.find("/bucket/folder"):
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        files.get_file(path, str(tmp_path / path[1:]))
    here, there = (
        load_dataset(config_of(tmp_path, dataset=f"image_folder:{place}"), "train")
        for place in (tmp_path / "bucket/folder", URL)
    )
    assert here.class_names == there.class_names == ("cat", "dog")
    assert [here.read(record) for record in range(len(here))] == [there.read(record) for record in range(len(there))]
    files.store.clear()  # the second run reads the copy
    again = load_dataset(config_of(tmp_path, dataset=f"image_folder:{URL}"), "train")
    assert len(again) == len(here)


def test_a_copy_that_was_stopped_is_continued(files, tmp_path, monkeypatch):
    write_images(files)
    open_store, stores = fsspec.core.url_to_fs, []

    def faulty(fault):
        def url_to_fs(*arguments, **options):
            found, path = open_store(*arguments, **options)
            stores.append(Faulty(found, fault))
            return stores[-1], path

        monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)

    faulty(lambda number: number > 6 and OSError("gone"))
    with pytest.raises(OSError, match="cannot be read"):
        copied_folder(URL, str(tmp_path), 0.0)
    faulty(lambda number: None)
    root = copied_folder(URL, str(tmp_path), 0.0)
    assert sum(path.is_file() for path in root.rglob("[!.]*")) == 12
    again = sum(name == "get_file" for name, *_ in stores[1].calls)
    assert again == 12 - 5  # a listing and five files came before the fault
    copied_folder(URL, str(tmp_path), 0.0)
    assert len(stores) == 2


def test_what_does_not_fit_on_the_disk_is_refused(files, tmp_path, monkeypatch):
    write_images(files)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10))
    with pytest.raises(OSError, match="needs 0.0 GB in .*, where 0.0 GB are free; set remote_cache_dir"):
        copied_folder(URL, str(tmp_path), 0.0)
    with pytest.raises(FileNotFoundError, match="has no files"):
        copied_folder("memory://bucket/other", str(tmp_path), 0.0)


def test_a_dataset_of_tfds_in_a_store(files, tmp_path):
    """Only the dataset that the config names is copied."""
    for name in ("mine/1.0.0/dataset_info.json", "other/1.0.0/dataset_info.json"):
        files.pipe_file(f"/bucket/folder/{name}", b"{}")
    with pytest.raises((FileNotFoundError, ValueError), match="mine"):  # it has no features.json
        load_dataset(config_of(tmp_path, dataset="mine", data_dir=URL), "train")
    assert [path.parts[-3] for path in (tmp_path / "cache").rglob("*.json")] == ["mine"]
    with pytest.raises(ValueError, match="is remote; give dataset=image_folder:"):
        load_dataset(config_of(tmp_path, dataset=URL), "train")
