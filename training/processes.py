"""Several processes that work as one: they join, check that they do the same work, and end together.

JAX's coordination service connects them; it runs inside process 0. Two threads in each process use it: one waits for a
failure that another process reports, and one checks that every process still answers.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # JAX offers no other way to the service's keys and barriers; Orbax uses it too
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from input_pipeline import Dataset
from input_pipeline.files import one_line
from training.environment import describe_versions, git_commit

_JAX_OPTIONS: Any = jax.config  # Any, because type checkers do not know the attributes of jax.config
_OF_A_HOST = ("data_dir", "decode_threads", "prefetch_batches", "compilation_cache_dir", "remote_cache_dir")
"""The options that may differ between processes."""

_DAY = 86_400  # seconds
_watch: "_Watch | None" = None


def join_processes(timeout: float) -> None:
    """Connects this process to the others of a distributed run, if there are several; only the first one prints then.

    There are several processes if JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS (host:port of process
    0) are set, if Slurm or Open MPI started more than one task, or if this is a host of a TPU pod.

    From then on this process ends with one line on standard error if another one fails, with the same exit code, or if
    another one no longer answers, with exit code 4.

    Args:
      timeout: seconds to wait for a process that does not start or does not answer.

    Raises:
      ValueError: if one of the environment variables is missing or invalid, or if this process has other versions of
        Python, of the libraries or of this program than process 0.
    """
    global _watch
    ours: dict[str, Any] = _variables()
    tasks = max(int(os.environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    on_tpu = "tpu" in (_JAX_OPTIONS.jax_platforms or "")  # JAX sets jax_platforms on a TPU's host
    if not (ours or tasks > 1 or on_tpu):
        return

    jax.config.update("jax_enable_preemption_service", False)  # training.interruption handles SIGTERM
    # When JAX itself finds out that a process is lost, it aborts with a long message. So JAX waits longer than we do.
    timeouts: dict[str, Any] = {
        "initialization_timeout": int(timeout) + 60,
        "heartbeat_timeout_seconds": max(100, 3 * int(timeout)),
        "shutdown_timeout_seconds": 30,
    }
    if ours:  # The variables say everything; otherwise JAX would ask Slurm or Kubernetes which GPU this process gets.
        timeouts["cluster_detection_method"] = "deactivate"
    timer = threading.Timer(timeout, _end_waiting, [timeout])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(**ours, **timeouts)
    except ValueError:
        if ours or tasks > 1:
            raise
        return  # a TPU's host that belongs to no pod
    finally:
        timer.cancel()
    if jax.distributed.is_initialized():
        _watch = _Watch(distributed.global_state.client, timeout)
        _watch.check_versions()
        if distributed.global_state.process_id > 0:
            sys.stdout = open(os.devnull, "w")


def leave_processes() -> None:
    """Waits until all processes are done, and disconnects them; without it the first one done would look lost."""
    if _watch:
        _watch.leave()


def end_process(message: str, exit_code: int, lost: bool = False) -> NoReturn:
    """Prints one line on standard error and ends this process, and all others of the run with the same exit code.

    If lost, the message says why another process is taken for lost, and the line begins with that process's name.
    """
    if _watch:
        _watch.end(message, exit_code, lost=lost)
    _print_error(message)
    sys.exit(exit_code)


def is_one_of_several() -> bool:
    """Whether this process has joined others."""
    return _watch is not None


def is_first() -> bool:
    """Whether this process is process 0 or works alone; unlike jax.process_index() it starts no devices."""
    return _watch is None or distributed.global_state.process_id == 0


@contextlib.contextmanager
def in_turn(name: str) -> Iterator[None]:
    """Lets process 0 run the block first, and then all others at once; all of them go on together.

    Args:
      name: of the block, the same in all processes.
    """
    if _watch and not is_first():
        _watch.wait(f"{name}: process 0")
    yield
    if _watch and is_first():
        _watch.wait(f"{name}: process 0")
    if _watch:
        _watch.wait(f"{name}: all")


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error of JAX or Orbax means that another process can no longer be reached."""
    signs = ("Gloo", "NCCL", "Barrier timed out", "UNAVAILABLE", "CoordinationService")
    return _watch is not None and any(sign in str(error) for sign in signs)


def check_same_work(config: ConfigDict, datasets: Sequence[Dataset], **others: Any) -> None:
    """Checks that all processes have the same options, numbers of images, class names and other facts.

    All of them must call it. They wait for each other as long as it takes: one may have to copy its dataset first.

    Raises:
      ValueError: in every process, if a process differs from process 0.
    """
    if _watch:
        _watch.wait("same work")
    facts: dict[str, Any] = {f"images of {dataset.split}": len(dataset) for dataset in datasets}
    facts |= {f"class {number}": name for number, name in enumerate(datasets[0].class_names)}
    options = json.loads(config.to_json())
    check_same(facts | {name: value for name, value in options.items() if name not in _OF_A_HOST} | others)


def first_text(text: str) -> str:
    """Returns the first text that is not empty of those of all processes, or ""; all of them must call it."""
    texts = [each.rstrip("\n") for each in _gather(text + "\n")] if is_one_of_several() else [text]
    return next(filter(None, texts), "")


def check_same(facts: Mapping[str, Any]) -> None:
    """Checks that the facts are the same in all processes; all of them must call it.

    Args:
      facts: names and values that JSON can hold.

    Raises:
      ValueError: in every process, if a process has another fact than process 0.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(facts)
    digests = _gather(hashlib.sha256(text.encode()).hexdigest())
    other = next((number for number, digest in enumerate(digests) if digest != digests[0]), None)
    if other is None:
        return
    texts = _gather(text)
    first, second = json.loads(texts[0]), json.loads(texts[other])
    names = [name for name in first | second if first.get(name) != second.get(name)]
    hosts = _gather(socket.gethostname())
    differing = "; ".join(f"{name}={second.get(name)!r}, not {first.get(name)!r}" for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise ValueError(
        f"process {other} on {hosts[other]} has {differing}{more} as process 0 on {hosts[0]}; start all processes with "
        "the same options on the same data"
    )


def check_shared(folder: pathlib.Path) -> None:
    """Checks that an existing folder is the same one in all processes; all of them must call it.

    Raises:
      ValueError: in every process, if a process does not see the file that process 0 makes there.
    """
    if jax.process_count() == 1:
        return
    # The name is a new one, because network file systems remember for a while that a file did not exist.
    token = secrets.token_hex(8)
    if jax.process_index() == 0:
        (folder / f".shared-{token}").touch()
    file = folder / f".shared-{_gather(token)[0]}"
    seen, hosts = _gather(str(file.exists())), _gather(socket.gethostname())
    if jax.process_index() == 0:
        file.unlink()
    if "False" in seen:
        other = seen.index("False")
        raise ValueError(
            f"folder {folder} of process {other} on {hosts[other]} is not that of process 0 on {hosts[0]}; give a "
            "--workdir on a file system that all processes share"
        )


class _Watch:
    """The two threads that end this process if another one fails or no longer answers."""

    def __init__(self, client: Any, timeout: float):
        self._client = client
        self._number = distributed.global_state.process_id
        self._timeout, self._leaving, self._ending = timeout, threading.Event(), threading.Lock()
        self._client.key_value_set(f"host/{self._number}", socket.gethostname())
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._await_failure, self._await_loss)]
        for thread in self._threads:
            thread.start()

    def check_versions(self) -> None:
        """Raises ValueError if process 0 runs other software; collectives between two versions of JAX may hang."""
        ours = describe_versions() | {"git_commit": git_commit()}
        if self._number == 0:
            self._client.key_value_set("versions", json.dumps(ours))
            return
        theirs = json.loads(self._client.blocking_key_value_get("versions", int(self._timeout * 1000)))
        names = [name for name in ours if theirs.get(name) and ours[name] and theirs[name] != ours[name]]
        if names:
            differing = "; ".join(f"{name} {ours[name]}, not {theirs[name]}" for name in names)
            raise ValueError(
                f"{self._name(self._number)} runs {differing} as {self._name(0)}; install the same versions everywhere"
            )

    def wait(self, name: str) -> None:
        """Waits until all processes have come to the barrier of this name."""
        self._client.wait_at_barrier(name, _DAY * 1000)

    def leave(self) -> None:
        """Waits until all processes call it, then disconnects this one and ends the threads."""
        self.wait("done")
        self._leaving.set()
        jax.distributed.shutdown()
        for thread in self._threads:
            thread.join()

    def end(self, message: str, exit_code: int, report: bool = True, lost: bool = False) -> NoReturn:
        """Prints one line, tells the other processes if report is true, and ends this process; see end_process."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # another thread is ending this process
        if not lost:
            _print_error(message)
        if report:
            failure = {"process": self._number, "message": message, "exit_code": exit_code, "lost": lost}
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process has reported before
                self._client.key_value_set("failure", json.dumps(failure))
        # All wait until all know, so that nobody sees a connection break before it knows why.
        missing = "another process"
        try:
            self._client.wait_at_barrier("failure", 5_000)
        except jax.errors.JaxRuntimeError as error:  # a process is lost
            missing = self._missing(error)
        if lost:
            _print_error(f"{missing} is lost: {message}")
        if self._number == 0:
            time.sleep(1)  # The service must outlive the other processes, or JAX aborts them.
        os._exit(exit_code)  # sys.exit would wait for the other processes, which may be waiting for this one

    def _await_failure(self) -> None:
        try:
            failure = json.loads(self._client.blocking_key_value_get("failure", _DAY * 1000 * 365))
        except jax.errors.JaxRuntimeError:
            return  # this process is leaving, or the service is gone, which the other thread reports
        if failure["process"] == self._number:
            return
        if failure["lost"]:
            self.end(failure["message"], failure["exit_code"], report=False, lost=True)
        name = self._name(failure["process"])
        self.end(f"{name} has ended with: {failure['message']}", failure["exit_code"], report=False)

    def _await_loss(self) -> None:
        while not self._leaving.wait(min(5, self._timeout / 4)):
            try:
                self._client.wait_at_barrier("alive", int(self._timeout * 1000))
            except jax.errors.JaxRuntimeError as error:
                if self._leaving.is_set():
                    return
                names = self._missing(error)
                advice = "start all processes again; training resumes from its newest checkpoint"
                self.end(
                    f"{names} has not answered for {self._timeout:g} s (process_timeout_seconds); {advice}", 4, True
                )

    def _missing(self, error: jax.errors.JaxRuntimeError) -> str:
        """Returns the names of the processes that did not come to a barrier, as its error lists them."""
        missing = re.findall(r"^(?:.*task:)?(\d+)$", str(error), re.MULTILINE)
        return ", ".join(self._name(int(number)) for number in missing) or "another process"

    def _name(self, process: int) -> str:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return f"process {process} on {self._client.key_value_try_get(f'host/{process}')}"
        return f"process {process}"


def _variables() -> dict[str, int]:
    """Returns num_processes and process_id from JAX's environment variables, or nothing if these name no others."""
    values = {name: os.environ.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")}
    if values["JAX_NUM_PROCESSES"] in ("", "0", "1"):
        return {}
    for name, value in values.items():
        if not value.isdecimal():
            raise ValueError(f"{name}={value} is invalid; give a whole number")
    count, number = (int(value) for value in values.values())
    if number >= count:
        raise ValueError(f"JAX_PROCESS_ID={number} is invalid; of {count} processes the last is {count - 1}")
    if not re.fullmatch(r".+:\d+", os.environ.get("JAX_COORDINATOR_ADDRESS", "")):
        address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
        raise ValueError(f"JAX_COORDINATOR_ADDRESS={address} is invalid; give host:port of process 0")
    return {"num_processes": count, "process_id": number}


def _gather(text: str) -> list[str]:
    """Returns the texts of all processes, in their order."""
    encoded = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.process_allgather(np.int32(encoded.size)).max())
    rows = multihost_utils.process_allgather(np.pad(encoded, (0, size - encoded.size)))
    return [row.tobytes().rstrip(b"\0").decode() for row in rows]


def _end_waiting(seconds: float) -> NoReturn:
    state, reason = distributed.global_state, f"waited for {seconds:g} s (process_timeout_seconds)"
    name = f"process {state.process_id} of {state.num_processes} at {state.coordinator_address}"
    _print_error(f"not all processes have started: {name} {reason}; see what the others print, and start all again")
    os._exit(4)


def _print_error(message: str) -> None:
    with contextlib.suppress(OSError):  # standard error may be a closed pipe or a full disk
        print(f"{pathlib.Path(sys.argv[0]).name}: error: {one_line(message)}", file=sys.stderr, flush=True)
