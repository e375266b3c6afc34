"""Workdirs in object stores: the run works in a local copy, and a thread uploads every change to the store's folder.

An object store has no lock, no rename and no appending, so everything that the run writes goes to the copy first. The
order of the uploads ensures that the run in the store can be resumed at any moment. The rows of metrics come before the
checkpoint that follows them. Of a checkpoint the file `COMPLETE` comes last, because a checkpoint without this file is
ignored. summary.json, which marks the run as finished, comes at the very end. If several processes train together,
process 0 does all of this.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from configs import base
from input_pipeline.files import is_remote, local_path
from input_pipeline.remote import Store
from training.checkpoints import REMOVED, list_steps
from training.command_line import say
from training.metrics import best_evaluation, read_rows
from training.processes import in_turn, is_first

COMPLETE = "_CHECKPOINT_METADATA"
"""The file of a checkpoint that is uploaded last and removed first: in the store a checkpoint without it is ignored."""

SMALL_FILES = ("config.json", "metrics.jsonl", "summary.json")  # what a program reads besides checkpoints
BEAT_SECONDS, LEASE_SECONDS = 15.0, 60.0


@contextlib.contextmanager
def kept_in_store(
    url: str, folder: pathlib.Path, timeout: float, upload_seconds: float, on_failure: Callable[[], None]
) -> Iterator[None]:
    """Copies a workdir from a store into a folder, and uploads to the store what the run writes into the folder.

    At the end of the context the store has everything that the run wrote. If the last run was killed, its copy may have
    files that the store lacks: they are uploaded first. During the context process 0 holds a lease on the store's
    folder. All processes must enter the context.

    Args:
      url: the workdir in the store.
      folder: the local copy, from `copy_of`.
      timeout: seconds after which a store that keeps failing is given up.
      upload_seconds: time between two uploads.
      on_failure: is called, in another thread, when the store is given up; the run should save a checkpoint and stop.

    Raises:
      ValueError: if another run uses the workdir, or if there is no such bucket or no permission to use it.
      OSError: if the store cannot be read or written; the copy stays for the next run.
    """
    store = Store(url, timeout)
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with in_turn("copy the workdir"):
                if is_first():
                    if not held.enter_context(_only_one(folder.with_name(f".{folder.name}.lock"))):
                        raise ValueError(f"{url} is in use by another process of this machine; wait for it")
                    copy = _Copy(store, folder)
                    lease = held.enter_context(_Lease(store, copy.identity, on_failure))
                    copy.update()
                    mirror = _Mirror(store, copy, lease, upload_seconds, on_failure)
                    mirror.clean()
                    mirror.upload()
                else:
                    with _only_one(folder.with_name(f".{folder.name}.others"), wait=True):
                        _Copy(store, folder).update(may_be_ahead=False)
        except (FileNotFoundError, PermissionError) as error:
            raise ValueError(str(error)) from error
        if not is_first():
            yield
            return
        with mirror:
            yield
        say(f"everything is in {url}")


@contextlib.contextmanager
def local_copy(
    workdir: str,
    step: int | str | None = None,
    count: int = 1,
    timeout: float = base.OPTIONS["remote_timeout_seconds"].default,
) -> Iterator[pathlib.Path]:
    """Yields a workdir as a folder of this machine, for reading; of one in a store, a temporary copy with a checkpoint.

    Args:
      workdir: a path or a URL.
      step: a checkpoint's step, "best", or None for the newest ones.
      count: how many of the newest.
      timeout: seconds after which a store that keeps failing is given up.

    Raises:
      ValueError: if the step has no checkpoint.
      FileNotFoundError: if the store's folder is no workdir.
      OSError: if the store cannot be read.
    """
    if not is_remote(workdir):
        yield local_path(workdir)
        return
    store = Store(workdir, timeout)
    with tempfile.TemporaryDirectory(prefix="convnets-") as name:
        folder = pathlib.Path(name) / store.url.rpartition("/")[2]
        for attempt in (1, 2):
            sizes = store.sizes()
            if "config.json" not in sizes:
                raise FileNotFoundError(
                    f"{workdir} is no workdir: it has no config.json; give the folder that train.py made"
                )
            store.download({name: sizes[name] for name in SMALL_FILES if name in sizes}, folder)
            steps = chosen = complete_steps(sizes)
            if step == "best":
                best = best_evaluation(read_rows(folder))
                chosen = [best["step"]] if best and best["step"] in steps else steps[-1:]
            elif step is not None:
                chosen = [each for each in steps if each == step]
                if not chosen:
                    raise ValueError(f"there is no checkpoint of step {step} in {workdir}; there are {steps}")
            try:
                for each in chosen[-count:]:
                    _download_checkpoint(store, folder, each, sizes)
                break
            except FileNotFoundError:  # a run that trains has just removed it
                if attempt == 2:
                    raise
        yield folder


def complete_steps(sizes: Mapping[str, int]) -> list[int]:
    """Returns the steps whose checkpoint is complete in the store, oldest first.

    Args:
      sizes: from Store.sizes.
    """
    names = [name.split("/") for name in sizes if name.startswith("checkpoints/") and name.endswith(f"/{COMPLETE}")]
    return sorted(int(parts[1]) for parts in names if len(parts) == 3 and parts[1].isdecimal())


class _Copy:
    """The local copy of a workdir.

    Attributes:
      folder: where it lies.
      identity: a name that no other copy has.
      fetched: the version (from `version`) of each of SMALL_FILES that was downloaded, and so equals the store's.
    """

    def __init__(self, store: Store, folder: pathlib.Path):
        self._store, self.folder, self.fetched = store, folder, dict[str, Any]()
        self._record = folder / ".copy.json"
        try:
            self._facts = json.loads(self._record.read_text())
        except (OSError, ValueError):
            self._facts = {"url": store.url, "identity": uuid.uuid4().hex}
            self.note_upload(False)
        self.identity: str = self._facts["identity"]

    def note_upload(self, was_uploaded: bool = True) -> None:
        """Records on disk whether this run has been uploaded.

        If the run has been uploaded and the store no longer has it, somebody has removed it there. `update` then
        empties the copy instead of uploading it again.
        """
        if self._facts.get("was_uploaded") != was_uploaded:
            self._facts["was_uploaded"] = was_uploaded
            self._record.write_text(json.dumps(self._facts))

    def version(self, name: str) -> tuple[int, int]:
        """Returns what tells two versions of a file apart: size and time of the last change."""
        status = (self.folder / name).stat()
        return status.st_size, status.st_mtime_ns

    def update(self, may_be_ahead: bool = True) -> None:
        """Makes the copy equal to the store, except for what a run that was killed here had not uploaded yet.

        Args:
          may_be_ahead: whether checkpoints that are newer than the store's are kept, with the files that belong to
            them; otherwise they are removed.
        """
        sizes, theirs = self._store.sizes(), self._store.read("config.json")
        config = self.folder / "config.json"
        never_saved = not list_steps(self.folder)
        is_gone = theirs is None and (never_saved or self._facts["was_uploaded"])
        if is_gone or (theirs is not None and config.exists() and config.read_bytes() != theirs):
            self._empty()  # the copy is of a run that has been removed from the store, or of another one
        stored, ours = complete_steps(sizes), list_steps(self.folder)
        newest = max(stored, default=-1)
        ahead = may_be_ahead and max(ours, default=-1) >= newest and bool(ours)
        for step in ours:
            if not _is_same(self.folder, step, sizes) if step in stored else not (ahead and step > newest):
                shutil.rmtree(self.folder / "checkpoints" / str(step))
        for name in SMALL_FILES:
            if not (ahead and (self.folder / name).exists()):
                (self.folder / name).unlink(missing_ok=True)
        wanted = {name: sizes[name] for name in SMALL_FILES if name in sizes and not (self.folder / name).exists()}
        self._store.download(wanted, self.folder)
        self.fetched = {name: self.version(name) for name in wanted}
        for step in stored:
            # If the copy is ahead, the run has removed the others, here but not yet in the store.
            if step not in list_steps(self.folder) and (step in ours or not ahead):
                say(f"copying checkpoint {step} of {self._store.url}")
                _download_checkpoint(self._store, self.folder, step, sizes)
        if theirs is not None:
            self.note_upload()

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path != self._record:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.note_upload(False)


class _Mirror:
    """The thread that uploads what is new in a local copy, and the order in which it does that."""

    def __init__(
        self, store: Store, copy: _Copy, lease: "_Lease", upload_seconds: float, on_failure: Callable[[], None]
    ):
        self._store, self._copy, self._lease, self._folder = store, copy, lease, copy.folder
        self._seconds, self._on_failure = upload_seconds, on_failure
        self._uploaded: dict[str, Any] = dict(copy.fetched)
        # The checkpoints that are complete in the store: from the step to the inode number of the local folder.
        self._stored: dict[int, int] = {}
        self._ending, self._failure = threading.Event(), ""
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Uploads the rest; after an error too, but not if the user is waiting for the end of the process."""
        self._ending.set()
        if kind and not issubclass(kind, Exception):
            return
        self._thread.join()
        self._failure = self._failure or self._lease.failure
        if not self._failure:
            self._try()
        if self._failure and not kind:
            raise OSError(f"{self._failure}; {self._folder} has all files")
        if self._failure:
            say(f"note: {self._failure}; {self._folder} has all files")

    def clean(self) -> None:
        """Removes the checkpoints that a killed run has left half uploaded or half removed."""
        sizes = self._store.sizes()
        ours = self._folders()
        self._stored = {step: ours.get(step, 0) for step in complete_steps(sizes)}
        for name in sizes:
            folder, _, rest = name.partition("/")
            step = rest.partition("/")[0]
            if folder == "checkpoints" and not (step.isdecimal() and int(step) in self._stored):
                self._store.delete(name)

    def upload(self) -> None:
        """Uploads once what is new, and removes checkpoints from the store that the run no longer keeps.

        Raises:
          OSError: if the store cannot be written, or another run has taken over.
        """
        folder, ours = self._folder, self._folders()
        if not ours and not _size(folder / "metrics.jsonl"):
            return  # a run that may still be discarded
        is_finished = (folder / "summary.json").exists() and "summary.json" not in self._uploaded
        changed = self._changed()
        if not changed and ours == self._stored and not is_finished:
            return
        self._lease.check()
        for name in changed:
            self._write(name)
        for step in sorted(ours, reverse=True):
            if self._stored.get(step) != ours[step]:
                self._upload_checkpoint(step, ours[step])
        kept = self._folders()
        if self._stored.keys() & kept:
            for step in self._stored.keys() - kept:
                self._remove_checkpoint(step)
        shutil.rmtree(folder / "checkpoints" / REMOVED, ignore_errors=True)
        if is_finished:
            self._write("summary.json")

    def _work(self) -> None:
        while not self._ending.wait(self._seconds):
            self._try()
            if self._failure:
                return self._on_failure()

    def _try(self) -> None:
        try:
            self.upload()
        except Exception as error:
            self._failure = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"

    def _changed(self) -> list[str]:
        """Returns the names of the files that have changed, config.json first, without checkpoints and summary.json."""
        names = []
        for path, folders, files in os.walk(self._folder):
            inner = pathlib.Path(path).relative_to(self._folder)
            folders[:] = [name for name in folders if not name.startswith(".") and name != "checkpoints"]
            names += [str(inner / name) for name in files if not name.startswith(".")]
        order = [*SMALL_FILES[:1], *sorted(set(names) - set(SMALL_FILES)), *SMALL_FILES[1:2]]
        return [name for name in order if name in names and self._copy.version(name) != self._uploaded.get(name)]

    def _write(self, name: str) -> None:
        version = self._copy.version(name)
        self._store.write(name, (self._folder / name).read_bytes())
        self._uploaded[name] = version
        self._copy.note_upload()

    def _folders(self) -> dict[int, int]:
        """Returns a dict from the step of each local checkpoint to the inode number of its folder.

        The number shows whether a checkpoint was written again, because it was damaged: its folder is then a new one.
        """
        found = {}
        for step in list_steps(self._folder):
            with contextlib.suppress(FileNotFoundError):  # the run has just removed it
                found[step] = (self._folder / "checkpoints" / str(step)).stat().st_ino
        return found

    def _upload_checkpoint(self, step: int, number: int) -> None:
        """Uploads a checkpoint, even if the run removes it meanwhile: then it goes on from where it was moved to."""
        if step in self._stored:
            self._remove_checkpoint(step)
        folder, removed = (self._folder / "checkpoints" / place / str(step) for place in ("", REMOVED))
        try:
            names = _files(folder)
        except FileNotFoundError:
            names = _files(removed)
        for name in sorted(names, key=lambda name: name == COMPLETE):
            if name == COMPLETE:
                self._lease.check()
            try:
                self._store.upload(folder / name, f"checkpoints/{step}/{name}")
            except FileNotFoundError:
                self._store.upload(removed / name, f"checkpoints/{step}/{name}")
        self._stored[step] = number

    def _remove_checkpoint(self, step: int) -> None:
        self._lease.check()
        self._store.delete(f"checkpoints/{step}/{COMPLETE}")
        del self._stored[step]
        for name in self._store.sizes():
            if name.startswith(f"checkpoints/{step}/"):
                self._store.delete(name)


class _Lease:
    """The right to write into a store's folder: an object, `.lock`, that its holder writes anew every few seconds.

    If the holder is killed, the object stays but no longer changes. Then the next run takes it over: at once, if it
    uses the same local copy, and otherwise after LEASE_SECONDS. No clocks are compared.

    Attributes:
      failure: why the lease is lost, or "".
    """

    def __init__(self, store: Store, identity: str, on_loss: Callable[[], None]):
        self._store, self._identity, self._on_loss, self.failure = store, identity, on_loss, ""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "_Lease":
        """Takes the lease.

        Raises:
          ValueError: if another run holds it.
          OSError: if the store cannot be read or written.
        """
        try:
            self._store.write(".lock", self._content(), new=True)
        except FileExistsError:
            self._await_end_of_other()
            self._store.write(".lock", self._content())
            self.check()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ending.set()
        if kind and issubclass(kind, OSError):
            return  # the store may be gone: do not try again for minutes
        with contextlib.suppress(OSError):  # the next run finds the lease of this copy, or waits
            if self._holder().get("identity") == self._identity:
                self._store.delete(".lock")

    def check(self) -> None:
        """Raises OSError if another run has taken the lease over, or if the store cannot be read."""
        holder = self._holder()
        if holder and holder["identity"] != self._identity:
            raise OSError(f"{self._store.url} is now used by {holder['holder']}, which took this run for dead")

    def _await_end_of_other(self) -> None:
        first = holder = self._holder()
        start = time.monotonic()
        while holder and holder["identity"] != self._identity:
            if holder == first and time.monotonic() - start > LEASE_SECONDS:
                return
            if holder != first:
                raise ValueError(
                    f"{self._store.url} is in use by {holder['holder']}; wait for it, or choose another --workdir"
                )
            if time.monotonic() - start < 1:
                limit = f"waiting {LEASE_SECONDS:g} s to see whether it still runs"
                say(f"{self._store.url} is in use by {holder['holder']}, or was when that was killed; {limit}")
            time.sleep(LEASE_SECONDS / 30)
            holder = self._holder()

    def _beat(self) -> None:
        while not self._ending.wait(BEAT_SECONDS):
            try:
                self.check()
                self._store.write(".lock", self._content())
            except OSError as error:
                self.failure = str(error)
                return self._on_loss()

    def _content(self) -> bytes:
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        return json.dumps({"holder": holder, "identity": self._identity, "beat": uuid.uuid4().hex}).encode()

    def _holder(self) -> dict[str, Any]:
        with contextlib.suppress(ValueError):  # not written by this program
            return json.loads(self._store.read(".lock") or "{}")
        return {}


@contextlib.contextmanager
def _only_one(path: pathlib.Path, wait: bool = False) -> Iterator[bool]:
    """Locks a file for this process; yields False if another one holds the lock, unless this one is to wait for it."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _download_checkpoint(store: Store, folder: pathlib.Path, step: int, sizes: Mapping[str, int]) -> None:
    """Copies a checkpoint into the folder of a workdir, where it appears whole."""
    arriving, prefix = folder / ".arriving", f"checkpoints/{step}/"
    shutil.rmtree(arriving, ignore_errors=True)
    store.download({name: size for name, size in sizes.items() if name.startswith(prefix)}, arriving)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (arriving / prefix).replace(folder / "checkpoints" / str(step))


def _is_same(folder: pathlib.Path, step: int, sizes: Mapping[str, int]) -> bool:
    """Whether a checkpoint has the same files here as in the store."""
    prefix = f"checkpoints/{step}/"
    here = {f"{prefix}{name}": _size(folder / prefix / name) for name in _files(folder / prefix)}
    return here == {name: size for name, size in sizes.items() if name.startswith(prefix)}


def _files(folder: pathlib.Path) -> list[str]:
    """Returns the names of all files in a folder and below it; raises FileNotFoundError if it vanishes meanwhile."""

    def fail(error: OSError) -> None:
        raise error

    found = os.walk(folder, onerror=fail)
    return [str((pathlib.Path(path) / name).relative_to(folder)) for path, _, names in found for name in names]


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0
