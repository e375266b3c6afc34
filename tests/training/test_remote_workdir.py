"""A workdir in an object store: whatever happens, the store holds a run that can be resumed."""

import contextlib
import json
import shutil
import threading

import fsspec
import pytest

from input_pipeline import remote
from input_pipeline.remote import Store, copy_of
from training import remote_workdir
from training.checkpoints import list_steps
from training.remote_workdir import COMPLETE, complete_steps, kept_in_store, local_copy

URL = "memory://bucket/runs/run"
ROW = {"split": "train", "epoch": 0.0, "loss": 1.0, "accuracy_top5": 1.0, "seconds": 0.0}


class Cut(BaseException):
    """The process is killed: no handler of the program runs. The class is no Exception, as SystemExit is none."""


class Clock:
    """A clock that moves only when somebody sleeps; `on_sleep` is called then."""

    def __init__(self):
        self.now, self.on_sleep = 0.0, lambda: None

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.on_sleep()


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(remote, "time", clock)
    monkeypatch.setattr(remote_workdir, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def files():
    """The filesystem of all stores in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@contextlib.contextmanager
def opened(cache, on_failure=lambda: None):
    """A run of one process; it uploads at its end only."""
    folder = copy_of(URL, str(cache))
    with kept_in_store(URL, folder, 0.0, 1e6, on_failure):
        yield folder


def write_rows(folder, steps):
    rows = [ROW | {"step": step, "accuracy_top1": 1 / (1 + step)} for step in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_checkpoint(folder, step):
    files = {COMPLETE: "{}", "state/manifest.ocdbt": f"manifest {step}", f"state/d/{step}": "numbers" * step}
    for name, text in files.items():
        path = folder / "checkpoints" / str(step) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_run(folder, steps):
    """Writes the files of a run that was trained to the last of the steps and has their checkpoints."""
    (folder / "config.json").write_text('{"config": {"seed": 0}}')
    (folder / "tensorboard/train").mkdir(parents=True, exist_ok=True)
    (folder / "tensorboard/train" / f"events.{steps[-1]}").write_text("events")
    write_rows(folder, range(1, steps[-1] + 1))
    for step in steps:
        write_checkpoint(folder, step)


def contents(folder):
    """Returns the files of a workdir, without hidden ones and those of a checkpoint that is being written."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") or "-tmp" in part for part in path.relative_to(folder).parts)
    }


def stored(files):
    return {name.removeprefix("/bucket/runs/run/"): files.cat_file(name) for name in files.find("/bucket/runs/run")}


def test_the_store_has_every_file_at_the_end_and_another_machine_goes_on(files, tmp_path):
    with opened(tmp_path / "here") as folder:
        write_run(folder, [1, 2])
        shutil.rmtree(folder / "checkpoints/1")
        (folder / "checkpoints/3.orbax-checkpoint-tmp").mkdir()
        (folder / "checkpoints/3.orbax-checkpoint-tmp/part").write_text("not complete")
    here = contents(folder)
    assert stored(files) == here
    with opened(tmp_path / "there") as folder:
        events = {"tensorboard/train/events.2"}  # nobody reads them on this machine
        assert contents(folder) == {name: content for name, content in here.items() if name not in events}
        write_run(folder, [3])
        (folder / "summary.json").write_text("{}")
        shutil.rmtree(folder / "checkpoints/2")
    there = contents(folder)
    assert stored(files) == there | {name: here[name] for name in events}
    with opened(tmp_path / "here") as folder:
        assert contents(folder).keys() - events == there.keys() - {"tensorboard/train/events.3"}
        assert (folder / "metrics.jsonl").read_bytes() == there["metrics.jsonl"]


def test_a_run_without_rows_leaves_nothing_in_the_store(files, tmp_path):
    with opened(tmp_path) as folder:
        (folder / "config.json").write_text("{}")
    assert stored(files) == {}


class Recorded:
    """A filesystem that notes each change, and cuts the process off before change number `last`."""

    def __init__(self, files, last):
        self._files, self._last, self.changes = files, last, []

    def __getattr__(self, name):
        def call(*arguments, **options):
            if name in ("pipe_file", "put_file", "rm_file"):
                if len(self.changes) == self._last:
                    raise Cut
                path = arguments[1 if name == "put_file" else 0]
                self.changes.append((name, path.partition("/run/")[2]))
            return getattr(self._files, name)(*arguments, **options)

        return call


def run_to_the_end(cache, last=None):
    """A run that has the checkpoints 1 and 2 in the store, and adds 3 in place of 1.

    Args:
      cache: the folder of local copies.
      last: how many changes of the store are made before the process is killed; None: all.

    Returns:
      The changes.
    """
    recorded = Recorded(fsspec.filesystem("memory"), last)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fsspec.core, "url_to_fs", lambda url, **_: (recorded, "/bucket/runs/run"))
        with opened(cache) as folder:
            write_run(folder, [2, 3])
            shutil.rmtree(folder / "checkpoints/1", ignore_errors=True)
            (folder / "summary.json").write_text("{}")
    return recorded.changes


def test_killed_before_any_of_its_uploads_a_run_can_be_resumed(files, tmp_path, monkeypatch):
    with opened(tmp_path / "before") as folder:
        write_run(folder, [1, 2])
    before = dict(files.store)
    monkeypatch.setattr(remote_workdir, "LEASE_SECONDS", 0.001)
    changes = run_to_the_end(tmp_path / "whole")
    names = [name for _, name in changes]
    assert names[0] == names[-1] == ".lock" and names[-2] == "summary.json"
    assert names.index("metrics.jsonl") < names.index(f"checkpoints/3/{COMPLETE}") == names.index("summary.json") - 4
    after = stored(files)
    for last in range(1, len(changes)):
        files.store.clear()
        files.store.update(before)
        cache = tmp_path / f"cut{last}"
        with pytest.raises(Cut):
            run_to_the_end(cache, last)
        # Another machine sees a run that is whole.
        with opened(tmp_path / f"other{last}") as folder:
            steps = list_steps(folder)
            assert steps[-1] in (2, 3) and (steps[-1] == 3 or 2 in steps)
            for step in steps:
                assert len(list((folder / "checkpoints" / str(step)).rglob("*"))) == 5
            rows = (folder / "metrics.jsonl").read_text().splitlines()
            assert len(rows) >= steps[-1]
            if (folder / "summary.json").exists():
                assert contents(folder).keys() == after.keys() - {f"tensorboard/train/events.{n}" for n in (2, 3)}
        # This machine uploads what it has.
        with opened(cache) as folder:
            assert list_steps(folder) == [2, 3]
        run_to_the_end(cache)
        assert stored(files) == after


def test_a_run_that_was_removed_from_the_store_does_not_come_back(files, tmp_path):
    with opened(tmp_path) as folder:
        write_run(folder, [1])
    files.store.clear()
    with opened(tmp_path) as folder:
        assert contents(folder) == {}
    assert stored(files) == {}


def test_another_run_of_the_same_name_replaces_the_copy(files, tmp_path):
    with opened(tmp_path / "old") as folder:
        write_run(folder, [1, 9])
    files.store.clear()
    with opened(tmp_path / "new") as folder:
        write_run(folder, [2])
        (folder / "config.json").write_text('{"config": {"seed": 1}}')
    with opened(tmp_path / "old") as folder:
        assert list_steps(folder) == [2] and "1}}" in (folder / "config.json").read_text()


def test_a_lasting_failure_stops_the_run_and_keeps_the_files(files, tmp_path, monkeypatch):
    stopped = threading.Event()
    with opened(tmp_path) as folder:
        write_run(folder, [1])
    with pytest.raises(OSError, match=r"run/.* cannot be written.*: the store is gone; .* has all files"):
        with kept_in_store(URL, copy_of(URL, str(tmp_path)), 0.0, 0.0, stopped.set):
            with monkeypatch.context() as patched:

                def fail(*_, **__):
                    raise OSError("the store is gone")

                patched.setattr(type(files), "pipe_file", fail)
                write_rows(folder, range(1, 9))
                assert stopped.wait(60)
                write_checkpoint(folder, 8)  # the run saves before it stops
    with opened(tmp_path) as folder:
        assert list_steps(folder) == [1, 8]
    assert complete_steps(dict.fromkeys(stored(files), 0)) == [1, 8]


def test_a_run_in_use_is_refused_and_a_dead_one_is_taken_over(files, tmp_path, clock):
    def beat():
        store = Store(URL, 0.0)
        store.write(".lock", json.dumps(json.loads(store.read(".lock")) | {"beat": clock.now}).encode())

    with opened(tmp_path / "first") as folder:
        write_run(folder, [1])
        clock.on_sleep = beat
        with pytest.raises(ValueError, match=f"{URL} is in use by process .*; wait for it"):
            with opened(tmp_path / "second"):
                pass
        with pytest.raises(ValueError, match="is in use by another process of this machine"):
            with opened(tmp_path / "first"):
                pass
        clock.on_sleep = lambda: None
    assert stored(files)
    start = clock.now
    with pytest.raises(OSError, match=f"{URL} is now used by process .*, which took this run for dead"):
        with opened(tmp_path / "first") as folder:
            with opened(tmp_path / "second"):  # the first one does not beat for a minute
                assert clock.now - start > remote_workdir.LEASE_SECONDS
                write_checkpoint(folder, 5)
                lock = files.cat_file("/bucket/runs/run/.lock")
            files.pipe_file("/bucket/runs/run/.lock", lock)
    assert complete_steps(dict.fromkeys(stored(files), 0)) == [1]


def test_reading_takes_only_the_checkpoint_that_is_needed(files, tmp_path):
    with opened(tmp_path) as folder:
        write_run(folder, [1, 2, 3])
    for step, count, steps in ((None, 1, [3]), (None, 2, [2, 3]), (2, 1, [2]), ("best", 1, [1])):
        with local_copy(URL, step, count) as copy:
            assert list_steps(copy) == steps and (copy / "config.json").exists() and copy.name == "run"
        assert not copy.exists()
    with pytest.raises(ValueError, match=rf"no checkpoint of step 7 in {URL}; there are \[1, 2, 3\]"):
        with local_copy(URL, 7):
            pass
    with pytest.raises(FileNotFoundError, match="memory://bucket/nothing is no workdir"):
        with local_copy("memory://bucket/nothing"):
            pass
    with local_copy(str(tmp_path)) as copy:
        assert copy == tmp_path
