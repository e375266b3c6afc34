"""Checkpoints: saved asynchronously and atomically, with a checksum of every array."""

import contextlib
import errno
import gc
import json
import os
import pathlib
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from input_pipeline.files import printable
from training.output import messages
from training.processes import check_same, first_text, is_lost_connection, is_one_of_several
from training.state import AVERAGED_BATCH_STATS, State

REMOVED = ".removed"
"""The folder in checkpoints/ to which a copy of a remote workdir moves those that it no longer keeps."""


class Checkpoints:
    """The checkpoints of one workdir, in its folder `checkpoints/`, each in a folder named by its step.

    The newest few checkpoints and the best one are kept. training.metrics decides which one is the best, and the caller
    passes its step to `save`.
    """

    def __init__(self, workdir: pathlib.Path, keep: int = 1, read_only: bool = False, is_copy: bool = False):
        """Opens the checkpoints of a workdir.

        Args:
          workdir: the run's folder.
          keep: how many of the newest checkpoints to keep.
          read_only: change no file, and leave damaged checkpoints where they are.
          is_copy: whether the folder is a copy of a remote workdir, of which each machine has its own. Process 0 alone
            writes checkpoints then, and those that are no longer kept are moved to REMOVED for the thread that uploads.

        Raises:
          OSError: if the folder cannot be made or read.
        """
        self.directory = pathlib.Path(workdir).resolve() / "checkpoints"
        self._last_saved = "a checkpoint"
        self._read_only, self._is_copy = read_only, is_copy
        self._policy = _NewestAndBest(keep)
        if not read_only:
            with self._naming_failure("a checkpoint"):
                self.directory.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=self.directory, prefix=".probe"):
                    pass  # an OSError now is better than one after hours of training
            for step in _steps_with_damaged_metrics(self.directory):
                self._set_aside(f"{step}/metrics")
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("state", "checksums"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=not read_only,
                create=not (read_only or is_copy),  # Orbax cannot in one of several processes
                read_only=read_only,
                lightweight_initialize=read_only,  # does not read the metrics that older versions stored here
                # If a thread of Orbax could not make the folder of a checkpoint, its other threads would wait for that
                # folder for ever. So the folder is made before they start.
                async_options=ocp.options.AsyncOptions(
                    create_directories_asynchronously=False,
                    barrier_sync_fn=_barrier if jax.process_count() > 1 and not is_copy else None,
                ),
                multiprocessing_options=_alone() if is_copy else ocp.options.MultiprocessingOptions(),
                todelete_subdir=REMOVED if is_copy else None,
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: State, best_step: int | None = None) -> None:
        """Saves the state under its step; returns as soon as the state is copied to the host.

        Args:
          state: the training state.
          best_step: the step whose checkpoint is kept as the best, this one or an earlier one; None: no best is kept.

        Raises:
          FloatingPointError: if a value is not finite; nothing is saved.
          OSError: if this checkpoint, or the one before, cannot be written.
        """
        self._policy.best_step = best_step
        if self._is_copy and jax.process_count() > 1:
            state = jax.tree.map(_whole_if_sharded, state)
            if jax.process_index() > 0:
                return
        # Copies: the next step may overwrite the memory of this state while a thread still writes it to disk. Process 0
        # writes the arrays that all processes hold whole; of sharded arrays each process writes its shards. On a
        # GPU the axes of a kernel may lie in another order; the file has always the same one.
        jax.device_get([leaf for leaf in jax.tree.leaves(state) if _axis(leaf) is None])  # starts all transfers at once
        copied = jax.tree.map(lambda leaf: leaf.copy() if _axis(leaf) is not None else np.array(leaf, order="C"), state)
        step = int(copied["step"])
        for path, leaf in jax.tree.leaves_with_path(copied):
            if not all(np.all(np.isfinite(part)) for _, part in _parts(leaf)):
                raise FloatingPointError(f"{jax.tree_util.keystr(path)} is not finite after step {step}")
        if step in self._manager.all_steps():
            return
        checksums = _checksums(copied)
        items = ocp.args.Composite(state=ocp.args.StandardSave(copied), checksums=ocp.args.JsonSave(checksums))
        size = f"{sum(leaf.nbytes for leaf in jax.tree.leaves(copied)) / 1e6:,.1f} MB"
        with self._naming_failure(self._last_saved):
            self._manager.wait_until_finished()
        self._last_saved = f"the checkpoint of step {step} ({size})"
        with self._naming_failure(self._last_saved):
            self._manager.save(step, args=items, force=True)

    def restore(self, target: State, step: int | None = None) -> State | None:
        """Restores the newest intact checkpoint, or the checkpoint of a step; returns None if there is no checkpoint.

        A damaged checkpoint is reported on standard error, and the one before it is restored instead. The damaged one
        is then moved to the workdir's folder `damaged/`, unless read_only, so that the run can save a new checkpoint of
        that step.

        Args:
          target: shapes, types and shardings, as training.state.abstract_state makes them. Without opt_state, which is
            valid only if read_only, the optimizer's state is neither read nor checked.
          step: the step of the checkpoint; None for the newest.

        Raises:
          ValueError: if the step has no checkpoint, if its checkpoint is damaged, or if all checkpoints are damaged.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            raise ValueError(f"there is no checkpoint of step {step} in {self.directory}; there are {steps}")
        reasons = {}
        for candidate in steps[::-1] if step is None else [step]:
            state: State = {}
            checksums: dict[str, Any] = {}
            reason = ""
            with _abandoned_reads_are_silent():
                try:
                    state, checksums = self._read(candidate, target)
                except Exception as error:  # Orbax may raise any error when it reads a damaged file
                    if is_lost_connection(error):
                        raise
                    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
                if reason:
                    gc.collect()  # ends the reads of the other arrays, which Orbax has abandoned
            # Each process reads its shards, so one alone may have found the damage.
            if reason := first_text(reason) or first_text(_damage(state, checksums)):
                reasons[candidate] = reason
                continue
            if AVERAGED_BATCH_STATS in target and AVERAGED_BATCH_STATS not in state:
                state[AVERAGED_BATCH_STATS] = jax.tree.map(lambda leaf: leaf.copy(), state["batch_stats"])
            for damaged, reason in reasons.items():
                with messages(sys.stderr):
                    print(printable(f"checkpoint {damaged} in {self.directory} is damaged: {reason}"), file=sys.stderr)
                if not self._read_only:
                    self._set_aside(str(damaged))
            self._manager.reload()
            return state
        if reasons:
            newest = max(reasons)
            raise ValueError(
                f"no sound checkpoint is left in {self.directory}: that of step {newest} is damaged "
                f"({reasons[newest]}), as are all others of {sorted(reasons)}; train into another --workdir"
                if step is None
                else f"checkpoint {step} in {self.directory} is damaged: {reasons[step]}; choose another --step"
            )
        return None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def wait(self) -> None:
        """Waits until all checkpoints are on the disk.

        Raises:
          OSError: if the last checkpoint cannot be written.
        """
        with self._naming_failure(self._last_saved):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until all checkpoints are on the disk, and ends the threads.

        Raises:
          OSError: if the last checkpoint cannot be written.
        """
        with self._naming_failure(self._last_saved):
            self._manager.close()

    def _read(self, step: int, target: State) -> tuple[State, dict[str, Any]]:
        """Returns the state of a checkpoint and its checksums, which have not been compared yet."""
        checksums = self._manager.restore(step, args=ocp.args.Composite(checksums=ocp.args.JsonRestore()))["checksums"]
        # Older versions did not average the batch statistics and evaluated the running ones, so the average starts
        # from the running ones.
        adds_average = AVERAGED_BATCH_STATS in target and not any(AVERAGED_BATCH_STATS in path for path in checksums)
        wanted = {name: part for name, part in target.items() if not (adds_average and name == AVERAGED_BATCH_STATS)}
        whole: Any = ocp.args.StandardRestore(wanted)
        part = ocp.args.PyTreeRestore(
            wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        items = ocp.args.Composite(state=whole if "opt_state" in target else part)
        return self._manager.restore(step, args=items)["state"], checksums

    def _set_aside(self, part: str) -> None:
        if jax.process_index() == 0:
            destination = self.directory.parent / "damaged" / part
            shutil.rmtree(destination, ignore_errors=True)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(self.directory / part, destination)
        multihost_utils.sync_global_devices(f"set aside {part}")

    @contextlib.contextmanager
    def _naming_failure(self, what: str) -> Iterator[None]:
        """Turns the errors that Orbax and TensorStore raise when the disk fails into an OSError with one line."""
        try:
            yield
        except Exception as error:
            if self._read_only or is_lost_connection(error):
                raise
            # TensorStore's message contains the system's message among much else.
            known = (
                os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
            )
            first_line = str(error).strip().split("\n")[0][:200] or type(error).__name__
            reason = getattr(error, "strerror", None) or next(
                (word for word in known if word in str(error)), first_line
            )
            raise OSError(f"{what} cannot be written to {self.directory}: {reason}") from error


@contextlib.contextmanager
def _abandoned_reads_are_silent() -> Iterator[None]:
    """Keeps Python from printing the errors of coroutines that are destroyed before their end.

    Orbax reads arrays in coroutines. If one array is damaged, it abandons the others, and each of these raises an error
    of many lines when the garbage collector destroys it.
    """
    previous = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = previous


def _alone() -> ocp.options.MultiprocessingOptions:
    """Returns the options with which Orbax, in each of several processes, waits for no other process."""
    ours = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=ours, active_processes={ours}, barrier_sync_key_prefix=f"process{ours}"
    )


def _barrier(key: str, timeout_ms: int) -> None:
    """Lets Orbax's threads of all processes wait for each other.

    Raises:
      Exception: the error of this process's thread, if it could not write its part. Orbax would wait here for the
        others, who wait elsewhere for this part, and the run would hang until the timeout.
    """
    if error := sys.exc_info()[1]:
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class _NewestAndBest:
    """A policy for Orbax that says which checkpoints to keep: the newest few, and the one of best_step."""

    def __init__(self, keep: int):
        self._keep = keep
        self.best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = {info.step for info in checkpoints[-self._keep :]}
        return [info.step in newest or info.step == self.best_step for info in checkpoints]


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Whether there is a checkpoint in the workdir, intact or damaged."""
    return bool(list_steps(workdir))


def list_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps that have a checkpoint, intact or damaged, oldest first; none if the folder cannot be read."""
    try:
        names = [path.name for path in (pathlib.Path(workdir) / "checkpoints").iterdir()]
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def _steps_with_damaged_metrics(directory: pathlib.Path) -> list[int]:
    """Returns the steps whose metrics, stored by older versions, are damaged: Orbax would fail to open them."""
    damaged = []
    for path in directory.glob("*/metrics/metrics"):
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            damaged.append(int(path.parent.parent.name))
    return damaged


def check_same_arrays(tree: Any) -> None:
    """Checks that all processes hold the same arrays, if there are several; all of them must call it.

    Raises:
      ValueError: in every process, if an array differs; the message names it.
    """
    if is_one_of_several():
        check_same({f"checksum of {path}": value for path, value in _checksums(tree).items()})


def _damage(state: State, checksums: dict[str, Any]) -> str:
    """Returns the name of an array that does not have its checksum, in a phrase, or ""; all processes must call it."""
    found = _checksums(state, checksums)
    wrong = [path for path in found if found[path] != checksums.get(path)]
    return f"the checksum of {wrong[0]} does not match (and {len(wrong) - 1} others)" if wrong else ""


def _axis(leaf: Any) -> int | None:
    """Returns the axis along which an array is sharded, or None if each device holds the whole array."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_replicated:
        return None
    assert isinstance(leaf.sharding, NamedSharding)
    return next(axis for axis, name in enumerate(leaf.sharding.spec) if name)


def _parts(leaf: Any, axis: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the parts of an array that this process has to check: where each starts along the axis, and its values."""
    if not isinstance(leaf, jax.Array):
        yield 0, leaf
        return
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            yield shard.index[axis].start or 0 if leaf.ndim else 0, np.asarray(shard.data)


def _checksums(state: Any, stored: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns a dict from each array's path in the state to its checksum; all processes must call it.

    The checksum of an array that every device holds is the CRC-32 of its bytes. The checksum of a sharded array is
    [axis, sum]. The array is cut into slices along the axis. The CRC-32 of each slice starts from the slice's index
    instead of 0, and all of them are added up modulo 2^32. Each process adds up its own slices, so the sum is the same
    for any number of devices.

    Args:
      state: nested dicts of arrays.
      stored: checksums to compare with. If an array was sharded when it was saved, and is not now, or the other way
        round, its checksum is made as it was then.
    """
    found: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        axis = _axis(leaf)
        if stored is not None:
            axis = stored[name][0] if isinstance(stored.get(name), list) else None
        if axis is None:
            found[name] = zlib.crc32(np.ascontiguousarray(_whole(leaf)).data)
            continue
        slices = (
            (start + number, row)
            for start, part in _parts(leaf, axis)
            for number, row in enumerate(np.ascontiguousarray(np.moveaxis(part, axis, 0)))
        )
        found[name] = [axis, sum(zlib.crc32(row.data, number) for number, row in slices) % 2**32]
    sharded = [name for name in found if isinstance(found[name], list)]
    if jax.process_count() > 1 and sharded:
        sums = multihost_utils.process_allgather(np.array([found[name][1] for name in sharded], np.uint32))
        for name, total in zip(sharded, sums.sum(0, dtype=np.uint64) % 2**32, strict=True):
            found[name] = [found[name][0], int(total)]
    return found


def _whole_if_sharded(leaf: Any) -> Any:
    """Returns a sharded array as one whole array on the host, and every other array unchanged."""
    return leaf if leaf.is_fully_replicated else _whole(leaf)


def _whole(leaf: Any) -> np.ndarray:
    """Returns an array on the host; parts that other processes hold are fetched."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_replicated or leaf.is_fully_addressable:
        return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)
