"""Checkpoints: asynchronous, atomic, with a checksum of every array stored beside it."""

import json
import pathlib
import shutil
import sys
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from training.state import State


class Checkpoints:
    """The checkpoints of one workdir, below `checkpoints/`, each in a folder named by its step.

    The newest few are kept, and besides them the one of the best accuracy_top1.
    """

    def __init__(self, workdir: pathlib.Path, keep: int = 1, read_only: bool = False):
        """Opens the checkpoints of a workdir.

        Args:
          workdir: the run's folder.
          keep: how many of the newest to keep.
          read_only: change nothing there, not even what is damaged.
        """
        self.directory = pathlib.Path(workdir).resolve() / "checkpoints"
        self._read_only = read_only
        for step in [] if read_only else _steps_with_damaged_metrics(self.directory):
            _report(self.directory, step, "its metrics are unreadable; they are set aside, the rest is used")
            self._set_aside(f"{step}/metrics")
        best = checkpoint_managers.BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False)
        policies = [checkpoint_managers.LatestN(n=keep), best]
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("state", "checksums"),
            options=ocp.CheckpointManagerOptions(
                best_fn=_accuracy,  # without it, Orbax does not store the metrics
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies=policies),
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
                lightweight_initialize=read_only,  # reads no metrics, which may be damaged
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: State, metrics: dict[str, float] | None = None) -> None:
        """Saves the state under its step; returns as soon as it is copied to the host.

        Args:
          state: what to save.
          metrics: the evaluation of this very state, if there was one; accuracy_top1 decides which is the best.

        Raises:
          FloatingPointError: if a value is not finite; nothing is saved.
        """
        # A copy: the next step may write into the memory of this state while the checkpoint is on its way to the disk.
        host = jax.tree.map(np.array, jax.device_get(state))
        for path, leaf in jax.tree.leaves_with_path(host):
            if not np.all(np.isfinite(leaf)):
                raise FloatingPointError(f"{jax.tree_util.keystr(path)} is not finite after step {int(host['step'])}")
        if int(host["step"]) in self._manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(host), checksums=ocp.args.JsonSave(_checksums(host)))
        self._manager.save(int(host["step"]), args=items, metrics=metrics, force=True)

    def restore(self, target: State, step: int | None = None) -> State | None:
        """Returns the newest sound checkpoint, or that of a step; None if there is none at all.

        A damaged checkpoint is reported on standard error and the one before it is taken; once that is restored, and
        unless read_only, the damaged one is moved to the workdir's folder `damaged/`, out of the way of its successor.

        Args:
          target: shapes, types and shardings, as training.state.abstract_state makes them.
          step: the step wanted.

        Raises:
          ValueError: if the step has no checkpoint, if it is damaged, or if all are.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            raise ValueError(f"there is no checkpoint of step {step} in {self.directory}; there are {steps}")
        candidates = steps[::-1] if step is None else [step]
        for candidate in candidates:
            try:
                state = self._restore_checked(candidate, target)
            except Exception as error:  # whatever a broken file makes Orbax raise
                _report(self.directory, candidate, str(error).strip().split("\n")[0][:200] or type(error).__name__)
                continue
            for newer in candidates[: candidates.index(candidate)] if not self._read_only else []:
                self._set_aside(str(newer))
            self._manager.reload()
            return state
        if candidates:
            raise ValueError(f"no sound checkpoint is left in {self.directory}; train into another --workdir")
        return None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def wait(self) -> None:
        """Waits until everything is on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on the disk, and ends the threads."""
        self._manager.close()

    def _restore_checked(self, step: int, target: State) -> State:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), checksums=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        found, stored = _checksums(jax.device_get(restored["state"])), restored["checksums"]
        wrong = [path for path in found if found[path] != stored.get(path)]
        if wrong:
            raise ValueError(f"the checksum of {wrong[0]} does not match (and {len(wrong) - 1} others)")
        return restored["state"]

    def _set_aside(self, part: str) -> None:
        if jax.process_index() == 0:
            destination = self.directory.parent / "damaged" / part
            shutil.rmtree(destination, ignore_errors=True)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(self.directory / part, destination)
        multihost_utils.sync_global_devices(f"set aside {part}")


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Whether there is a checkpoint in the workdir, sound or damaged."""
    return any(path.name.isdecimal() for path in (pathlib.Path(workdir) / "checkpoints").glob("*"))


def _report(directory: pathlib.Path, step: int, reason: str) -> None:
    print(f"checkpoint {step} in {directory} is damaged: {reason}", file=sys.stderr)


def _steps_with_damaged_metrics(directory: pathlib.Path) -> list[int]:
    """Returns the steps whose metrics Orbax would stumble over when it opens the folder."""
    damaged = []
    for path in directory.glob("*/metrics/metrics"):
        try:
            float(_accuracy(json.loads(path.read_bytes())))
        except (ValueError, KeyError, TypeError):
            damaged.append(int(path.parent.parent.name))
    return damaged


def _accuracy(metrics: dict[str, float]) -> float:
    return metrics["accuracy_top1"]


def _checksums(state: Any) -> dict[str, int]:
    """Returns the CRC-32 of each array's bytes by its path in the state."""
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(leaf))
        for path, leaf in jax.tree.leaves_with_path(state)
    }
