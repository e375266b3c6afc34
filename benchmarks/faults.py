"""Injects faults into real runs, and counts how many of them end as docs/reliability.md promises.

python benchmarks/faults.py [--size=small] [--only=ROW,ROW] [--json=FILE] [--docs]

Each function whose name is a key of ROWS makes one row of the table: it yields a problem, or "", for each fault that it
tried. Its docstring says when a fault "held". Each process is real: it has its own process id, files and exit code, and
is given TIMEOUT seconds. All random choices follow from the seed 0. The rows are written to the JSON file one by one,
so that --only=ROW repeats a single one.
"""

import argparse
import gzip
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import given, settings, strategies
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from program import TIMEOUT, Program

from benchmarks.page import put_table
from configs import base
from training.environment import describe_environment

STEPS = 24
TRAIN = ["--config=configs/base.py", "--config.dataset=synthetic", "--config.synthetic_examples=96"]
TRAIN += ["--config.num_classes=10", "--config.batch_size=16", f"--config.num_steps={STEPS}"]
TRAIN += ["--config.log_every_steps=1", "--config.checkpoint_every_steps=4"]  # an evaluation every 6 steps
MEMORY_LIMIT = 1e9  # bytes
# Debian's package libfaketime; without it no clock is changed.
FAKE_CLOCK = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class Run(Program):
    """A process of one of the programs."""

    def problem(self, *exit_codes: int, lines: int = 1) -> str:
        """Returns "" if the process ends with one of the exit codes, and if it is not 0 with at most so many lines."""
        code, most, lines = self.end(), lines, self.errors.splitlines()
        if code not in exit_codes or "Traceback" in self.errors or (code and not 1 <= len(lines) <= most):
            hung = f"hung for {TIMEOUT} s" if code is None else f"exit code {code}"
            return f"{hung}, {len(lines)} lines on stderr: {' / '.join(lines[-2:])[:300]}"
        return ""


class Bench:
    """What the rows share: the folder, the size, random numbers, and the result of an uninterrupted run."""

    def __init__(self, folder: pathlib.Path, small: bool):
        self.folder, self.small, self.random, self.count = folder, small, random.Random(0), 0
        self.cache = f"--config.compilation_cache_dir={folder / 'compiled'}"
        self.notes: list[str] = []  # figures for the table of a row
        self.finished = folder / "finished"
        if problem := self.finish(self.finished):
            sys.exit(f"the run without faults failed: {problem}")
        self.expected = result(self.finished)

    def new(self) -> pathlib.Path:
        """Returns a workdir that does not exist yet."""
        self.count += 1
        return self.folder / f"run{self.count}"

    def start(self, program: str, *arguments: object, **how: Any) -> Run:
        """Starts a program."""
        return Run(program, *arguments, **how)

    def train(self, workdir: pathlib.Path, *options: str, **how: Any) -> Run:
        """Starts or resumes the small run in a workdir."""
        return self.start("train.py", *TRAIN, *options or [self.cache], f"--workdir={workdir}", **how)

    def finish(self, workdir: pathlib.Path) -> str:
        """Gives the same command again; returns the problem if the run does not end equal to the uninterrupted one."""
        problem = self.train(workdir).problem(0)
        if problem or workdir == self.finished:
            return problem
        return "" if result(workdir) == self.expected else "the result differs from that of the uninterrupted run"

    def stopped(self) -> pathlib.Path:
        """Makes a workdir of a run that a signal stopped near its end."""
        while True:
            workdir = self.new()
            run = self.train(workdir)
            run.prints(rf"step {STEPS - 3}/")
            if run.end(signal.SIGTERM) == 143:
                return workdir


def result(workdir: pathlib.Path) -> tuple:
    """Returns what must not depend on faults: the checksums of the last state, and the metrics without the clock's."""
    checksums = workdir / "checkpoints" / str(STEPS) / "checksums" / "metadata"
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    clock = {"seconds", "images_per_second", "input_wait_fraction"}
    rows = [{name: value for name, value in row.items() if name not in clock} for row in rows]
    return json.loads(checksums.read_text()), rows, sorted(path.name for path in workdir.iterdir() if path.is_file())


def logged(count: int) -> str:
    """Returns a pattern of so many logged steps."""
    return rf"(step .* loss .*\n(.*validation.*\n)?){{{count}}}"


def sigkill(bench: Bench) -> Iterator[str]:
    """The same command, given again, ends with the weights (to the bit) and metrics of an uninterrupted run; a dataset
    whose preparation was killed is complete once the same command has ended."""
    counts = {"start": 8, "compile": 8, "step": 10, "evaluation": 8, "save": 12}
    moments = [moment for moment, count in counts.items() for _ in range(1 if bench.small else count)]
    moments = moments[1:] if bench.small else moments
    bench.random.shuffle(moments)
    workdir, kills = bench.new(), 0
    while moments:
        moment = moments.pop()
        cache = bench.new()
        cold = [f"--config.compilation_cache_dir={cache}"] if moment == "compile" else []
        run = bench.train(workdir, *cold, imports=moment == "start")
        if moment == "start":
            time.sleep(bench.random.uniform(0, 6))
        elif moment == "compile":
            run.reaches(cache.exists)
        elif moment == "step":
            run.prints(logged(bench.random.randint(1, 3)))
        elif moment == "evaluation":
            run.prints(r"step (6|12|18|24)/24 loss")
        else:
            run.reaches(lambda folder=workdir / "checkpoints": list(folder.glob("*tmp*")))
        time.sleep(bench.random.uniform(0, 2 if moment == "compile" else 0.1))
        ended = run.end(signal.SIGKILL) != -signal.SIGKILL
        kills += not ended
        if ended:  # the run ended before the kill
            moments.append(moment)
        if ended or kills == 4 or not moments:
            problem = bench.finish(workdir)
            yield from [problem] * kills
            workdir, kills = bench.new(), 0
    yield from _kill_preparations(bench, 1 if bench.small else 8)


def _kill_preparations(bench: Bench, count: int) -> Iterator[str]:
    source = bench.folder / "pictures"
    for number in range(200):
        path = source / f"{'train' if number < 150 else 'val'}" / f"class{number % 5}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)).save(path)

    def prepare(target: pathlib.Path) -> Run:
        return bench.start("prepare.py", source, f"--data_dir={target}")

    def content(target: pathlib.Path) -> dict[str, str]:
        files = [path for path in (target / "pictures").rglob("*") if path.is_file() and path.name != ".lock"]
        return {str(path.relative_to(target)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    start = time.monotonic()
    first = bench.new()
    if problem := prepare(first).problem(0):
        yield problem
        return
    seconds, expected = time.monotonic() - start, content(first)
    while count:
        target = bench.new()
        run = prepare(target)
        time.sleep(bench.random.uniform(0, seconds))
        if run.end(signal.SIGKILL) == -signal.SIGKILL:
            count -= 1
            differs = "the dataset differs from one that was prepared at once"
            yield prepare(target).problem(0) or ("" if content(target) == expected else differs)


def signals(bench: Bench) -> Iterator[str]:
    """SIGTERM ends the run with exit code 143, SIGINT with 130, and the last step is saved; the same command, given
    again, ends equal to the bit."""
    left = 2 if bench.small else 20
    while left:
        workdir, problems = bench.new(), []
        while left and len(problems) < 4:
            run, number = bench.train(workdir), (signal.SIGTERM, signal.SIGINT)[left % 2]
            run.prints(logged(bench.random.randint(1, 4)))
            code = run.end(number)
            if code == 0:
                break  # the run ended before the signal
            step = max(map(int, re.findall(rf"step (\d+)/{STEPS} loss", run.output)), default=0)
            saved = (workdir / "checkpoints" / str(step)).exists()
            problems.append(
                "" if code == 128 + number and saved else f"{number.name}: exit code {code}, saved: {saved}"
            )
            left -= 1
        problem = bench.finish(workdir)
        yield from [earlier or problem for earlier in problems]


def damage(bench: Bench) -> Iterator[str]:
    """The damaged checkpoint is noticed, or its damaged file is not needed; the run goes on from the one before, and
    ends equal to the bit."""

    def flip(path: pathlib.Path) -> None:
        content = bytearray(path.read_bytes())
        content[bench.random.randrange(len(content))] ^= 1 << bench.random.randrange(8)
        path.write_bytes(content)

    damages = {
        "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
        "emptied": lambda path: os.truncate(path, 0),
        "flipped": flip,
        "missing": lambda path: path.unlink(),
        "garbage": lambda path: path.write_bytes(bench.random.randbytes(path.stat().st_size)),
    }
    source = bench.stopped()
    newest = max((source / "checkpoints").iterdir(), key=lambda path: int(path.name))
    files = sorted(path.relative_to(source) for path in newest.rglob("*") if path.is_file())
    cases = [(file, name) for file in files for name in damages]
    for file, name in bench.random.sample(cases, 2) if bench.small else cases:
        workdir = bench.new()
        shutil.copytree(source, workdir)
        damages[name](workdir / file)
        problem = bench.finish(workdir)
        yield problem and f"{file} {name}: {problem}"


def disk_full(bench: Bench) -> Iterator[str]:
    """The run ends with one line and exit code 4, or has room enough; once there is room, the same command goes on and
    ends equal to the bit."""
    sizes = [8 * 1.8**power for power in range(10)]  # kB; the run needs about 1,700
    for size in sizes[5:6] if bench.small else sizes:
        disk = bench.new()
        disk.mkdir()
        options, limit = f"size={int(size)}k,nr_inodes=1000", {}
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True).returncode:
            limit = {"file_limit": int(size) * 1024 // 4}  # no mounting here: limit the size of each file instead
        try:
            problem = bench.train(disk / "run", **limit).problem(0, 4)
            if not limit:
                subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
            problem = problem or bench.finish(disk / "run")
        finally:
            if not limit:
                subprocess.run(["umount", "-l", disk], check=True)
        yield problem and f"{size:.0f} kB: {problem}"


def two_runs(bench: Bench) -> Iterator[str]:
    """One run trains and ends equal to the bit; the other one is refused in one line, or finds the run finished."""
    for _ in range(1 if bench.small else 6):
        workdir = bench.new()
        first = bench.train(workdir)
        time.sleep(bench.random.uniform(0, 2))
        second = bench.train(workdir)
        problem = first.problem(0, 2) or second.problem(0, 2)
        trained = sum("done: " in run.output for run in (first, second))
        yield problem or bench.finish(workdir) or ("" if trained == 1 else f"{trained} runs trained")


def unwritable(bench: Bench) -> Iterator[str]:
    """The run ends with one line and exit code 2 (at the start) or 4 (later); once the part is mended, the same command
    ends equal to the bit."""
    names = ["config.json", "metrics.jsonl", "curves.png", "summary.json", "checkpoints", "tensorboard"]
    for name in names[-2:-1] if bench.small else names:
        workdir, source = bench.new(), bench.stopped()
        shutil.copytree(source, workdir)
        shutil.rmtree(workdir / name, ignore_errors=True)
        (workdir / name).unlink(missing_ok=True)
        (workdir / name).mkdir() if "." in name else (workdir / name).write_text("a file")
        problem = bench.train(workdir).problem(2, 4)
        shutil.rmtree(workdir / name) if "." in name else (workdir / name).unlink()
        if (source / name).exists():
            (shutil.copytree if (source / name).is_dir() else shutil.copy)(source / name, workdir / name)
        problem = problem or bench.finish(workdir)
        yield problem and f"{name} of the wrong kind: {problem}"
    file = bench.new()
    file.write_text("a file")
    yield bench.train(file / "run").problem(2)
    for name in ["."] if bench.small else [".", "metrics.jsonl", "."]:
        workdir = bench.new()
        run = bench.train(workdir)
        run.prints(rf"step {bench.random.randint(2, 15)}/")
        os.kill(run.process.pid, signal.SIGSTOP)  # a fast run would end while its folder is removed
        shutil.rmtree(workdir) if name == "." else (workdir / name).unlink()
        os.kill(run.process.pid, signal.SIGCONT)
        problem = run.problem(4)
        shutil.rmtree(workdir, ignore_errors=True)
        problem = problem or bench.finish(workdir)
        yield problem and f"{name} removed: {problem}"


def options(bench: Bench) -> Iterator[str]:
    """The options are resolved, or refused in one line; never a traceback. These checks run in one process."""
    from tests.training.test_options import ODD, check_resolves_or_is_refused

    tried: list[str] = []

    def attempt(*words: str) -> None:
        try:
            check_resolves_or_is_refused(*words)
            tried.append("")
        except Exception as error:
            tried.append(f"{words}: {type(error).__name__}: {error}"[:300])

    names = list(base.OPTIONS)
    for name in names[:1] if bench.small else names:
        for value in ODD:
            attempt(f"--config.{name}={value}")
    word = strategies.builds("--config.{}={}".format, strategies.sampled_from(names), strategies.sampled_from(ODD))
    quick = settings(max_examples=10 if bench.small else 300, deadline=None, derandomize=True, database=None)
    quick(given(strategies.lists(word, min_size=2, max_size=6))(lambda words: attempt(*words)))()
    yield from tried


def untrusted(bench: Bench) -> Iterator[str]:
    """The program reads the file or refuses it in one line, runs no code of it, and takes less than 1 GB of memory."""
    from tests.input_pipeline.test_decoding import BOMBS, claims
    from tests.models import test_torch_files as torch_files

    folder = bench.new()
    folder.mkdir()
    cases = []
    for number, (form, width, height) in enumerate(BOMBS[:1] if bench.small else [*BOMBS, ("BMP", 13_000, 13_000)]):
        path = folder / f"{number} of {width} x {height} pixels.{form.lower()}"
        path.write_bytes(claims(form, width, height))
        cases.append(("predict.py", path, [f"--workdir={bench.finished}", f"--images={path}"]))
    path = folder / "PostScript.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(evil) (w) file\n")
    cases.append(("predict.py", path, [f"--workdir={bench.finished}", f"--images={path}"]))
    bombs = [write for name, write in vars(torch_files).items() if name.startswith(("write_inflating", "write_l"))]
    contents: dict[Callable, Any] = {torch_files.write_zipped: {"x": torch_files.Evil()}}
    contents |= {write: lambda: {"conv.weight": torch_files.Tensor("0", np.zeros(3))} for write in bombs}
    contents[torch_files.write_legacy] = {"state_dict": {}, "extra": torch_files.Evil()}
    for write in list(contents)[:2] if bench.small else contents:
        path = folder / f"{write.__name__}.pth"
        write(path, torch_files.dump, contents[write])
        cases.append(
            ("convert.py", path, ["--config=configs/base.py", f"--weights={path}", f"--workdir={bench.new()}"])
        )
    path = folder / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(20 if bench.small else 2000):
            file.write(bytes(2**20))
    cases.append(("prepare.py", path, ["cifar10", f"--archive={path}", f"--data_dir={bench.new()}"]))
    peaks = {}
    for program, path, arguments in cases:
        run = bench.start(program, *arguments)
        # predict.py has a line for each file that it cannot read, and ends with exit code 1.
        problem = run.problem(0, 1, 2, lines=2) if program == "predict.py" else run.problem(0, 2)
        peaks[path.name] = run.peak_memory
        if not problem and run.peak_memory > MEMORY_LIMIT:
            problem = f"{run.peak_memory / 1e6:,.0f} MB of memory"
        if (ROOT / "evil").exists():
            problem = "code in the file was run"
        yield problem and f"{path.name}: {problem}"
    largest = max(peaks, key=lambda name: peaks[name])
    bench.notes.append(f"at most {peaks[largest] / 1e6:,.0f} MB ({largest})")


def start_several(
    bench: Bench, workdir: pathlib.Path, count: int, *options: str, odd: int = -1, **of_the_odd: Any
) -> list[Run]:
    """Starts several processes of one run, connected over loopback; one of them, the last, in a way of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [
        bench.train(
            workdir,
            *options or [bench.cache],
            JAX_PROCESS_ID=str(index),
            **variables,
            **of_the_odd if index == odd % count else {},
        )
        for index in range(count)
    ]


def end_several(runs: list[Run], victim: int, exit_code: int) -> str:
    """Waits for all processes but the victim; returns "" if each ends within 60 s, with one line that names it."""
    start = time.monotonic()
    for number, run in enumerate(runs):
        if number == victim:
            continue
        problem = run.problem(exit_code)
        if not problem and f"process {victim} on" not in run.errors:
            problem = f"no line names process {victim}: {run.errors[:200]}"
        if problem:
            return f"process {number}: {problem}"
    seconds = time.monotonic() - start
    return "" if seconds <= 60 else f"the others ended after {seconds:.0f} s"


def processes(bench: Bench) -> Iterator[str]:
    """One of two or four processes is killed (SIGKILL), hangs for two minutes (SIGSTOP), or cannot write its shards of
    a checkpoint: the others end within 60 s, with exit code 4 and one line that names it. If process 0 is killed, JAX
    ends the others, with a message of its own. A process that starts 15 s late is waited for. The same command, given
    again, ends with exit code 0. Clocks that differ by a day change nothing."""
    cases = [(2, 1, "SIGKILL"), (4, 3, "SIGKILL"), (4, 1, "SIGKILL"), (4, 2, "SIGSTOP"), (4, 0, "SIGKILL")]
    for count, victim, name in () if bench.small else cases:
        workdir = bench.new()
        runs = start_several(bench, workdir, count)
        runs[0].prints(r"step \d+/")
        os.kill(runs[victim].process.pid, signal.Signals[name])
        stopped = time.monotonic()
        if victim == 0:
            codes = [run.end() for run in runs[1:]]
            problem = f"exit codes {codes}" if None in codes or 0 in codes else ""
            slow = time.monotonic() - stopped > 60
            problem = problem or ("the others ended after more than 60 s" if slow else "")
        else:
            problem = end_several(runs, victim, 4)
        if name == "SIGSTOP":
            time.sleep(max(0, 120 - (time.monotonic() - stopped)))
            os.kill(runs[victim].process.pid, signal.SIGCONT)
        runs[victim].end()
        again = [run.end() for run in start_several(bench, workdir, count)] if not problem else []
        problem = problem or ("" if again == [0] * count else f"again: exit codes {again}")
        yield problem and f"{name} to process {victim} of {count}: {problem}"
    yield from () if bench.small else _process_without_room(bench)
    yield from () if bench.small else _late_process(bench)
    yield from () if bench.small or not FAKE_CLOCK else _other_clock(bench)


def _process_without_room(bench: Bench) -> Iterator[str]:
    """With 1,000 classes the last layer is large enough to be sharded."""
    workdir, options = bench.new(), (bench.cache, "--config.num_classes=1000", "--config.shard_params=True")
    problem = end_several(start_several(bench, workdir, 2, *options, file_limit=50_000), 1, 4)
    again = [run.end() for run in start_several(bench, workdir, 2, *options)] if not problem else []
    problem = problem or ("" if again == [0, 0] else f"again: exit codes {again}")
    yield problem and f"no room for the shards of process 1: {problem}"


def _late_process(bench: Bench) -> Iterator[str]:
    workdir = bench.new()
    first, second = start_several(bench, workdir, 2)
    os.kill(second.process.pid, signal.SIGSTOP)
    time.sleep(15)
    os.kill(second.process.pid, signal.SIGCONT)
    codes = [first.end(), second.end()]
    yield "" if codes == [0, 0] else f"a process that starts late: exit codes {codes}"


def _other_clock(bench: Bench) -> Iterator[str]:
    """The clock of process 0 is a day ahead; later, after SIGTERM, that of process 1 is a day behind."""
    expected, workdir = bench.new(), bench.new()
    codes = [run.end() for run in start_several(bench, expected, 2)]

    def clock(days: str) -> dict[str, Any]:
        variables = {"LD_PRELOAD": str(FAKE_CLOCK), "FAKETIME": days, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        return {"imports": True, **variables}

    ahead = start_several(bench, workdir, 2, odd=0, **clock("+1d"))
    ahead[0].prints(r"step 9/")
    codes += [run.end(signal.SIGTERM if run is ahead[0] else None) for run in ahead]
    codes += [run.end() for run in start_several(bench, workdir, 2, **clock("-1d"))]
    problem = "" if codes == [0, 0, 143, 143, 0, 0] else f"exit codes {codes}"
    yield problem or ("" if result(workdir) == result(expected) else "other clocks give another result")


def soak(bench: Bench) -> Iterator[str]:
    """In 5,000 steps with 27 evaluations and 20 checkpoints nothing grows: after 500 steps, the smallest memory and
    numbers of threads and open files, and the median CPU time of a step, are in the second half at most 1.1 times those
    in the first."""
    steps = 300 if bench.small else 5000
    epochs = 4 if bench.small else 31  # epochs of six steps; the first evaluation opens files, before the first sample
    options = [f"--config.num_steps={steps}", f"--config.log_every_steps={steps // 100}"]
    options += [f"--config.checkpoint_every_steps={steps // 20}", f"--config.evaluate_every_epochs={epochs}"]
    run = bench.train(bench.new(), *options, bench.cache)
    samples: list[tuple[int, dict[str, float]]] = []
    process = pathlib.Path("/proc") / str(run.process.pid)

    def sample() -> None:
        found = re.findall(r"step (\d+)/\d+ loss", run.output)
        if found and (not samples or int(found[-1]) > samples[-1][0]):
            status = dict(re.findall(r"(\w+):\s+(\d+)", (process / "status").read_text()))
            clock = (process / "stat").read_text().rpartition(")")[2].split()
            figures = {"memory": int(status["VmRSS"]), "threads": int(status["Threads"])}
            figures |= {"files": len(os.listdir(process / "fd")), "cpu": (int(clock[11]) + int(clock[12])) / 100}
            samples.append((int(found[-1]), figures))

    end = time.monotonic() + 10 * TIMEOUT
    while run.process.is_alive() and time.monotonic() < end:
        try:
            sample()
        except (OSError, KeyError):
            break  # the process has just ended
        time.sleep(0.1)
    if problem := run.problem(0):
        yield problem
        return
    samples = [(step, figures) for step, figures in samples if step > steps // 10]
    rates = [(b["cpu"] - a["cpu"]) / (m - n) for (n, a), (m, b) in zip(samples, samples[1:], strict=False)]
    half = len(samples) // 2
    for name in ("memory", "threads", "files") if bench.small else ("memory", "threads", "files", "cpu"):
        values = rates if name == "cpu" else [figures[name] for _, figures in samples]
        middle = statistics.median if name == "cpu" else min  # saves open files for a moment
        first, second = middle(values[:half]), middle(values[half:])
        bench.notes.append(f"{name} {first:.4g} to {second:.4g}")
        yield f"{name}: {first:.4g}, then {second:.4g}" if second > 1.1 * first else ""


ROWS: dict[str, Callable[[Bench], Iterator[str]]] = {
    "SIGKILL": sigkill,
    "SIGTERM and SIGINT": signals,
    "damaged checkpoint files": damage,
    "disk full": disk_full,
    "two runs at once": two_runs,
    "unwritable parts": unwritable,
    "options": options,
    "untrusted files": untrusted,
    "one of several processes dies": processes,
    "soak": soak,
}


def run_row(name: str, bench: Bench) -> dict:
    """Returns the row of a name: faults tried and held, what "held" means, seconds, and the problems."""
    start, bench.notes = time.monotonic(), []
    problems = list(ROWS[name](bench))
    return {
        "row": name,
        "tried": len(problems),
        "held": problems.count(""),
        "means": " ".join((ROWS[name].__doc__ or "").split()),
        "notes": ", ".join(bench.notes),
        "seconds": round(time.monotonic() - start),
        "problems": [problem for problem in problems if problem],
    }


def main() -> None:
    """Runs the rows, writes them to the JSON file, and prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--only", default="", help="names of rows, with commas between them; default: all")
    parser.add_argument("--json", type=pathlib.Path, help="a file that the rows are added to")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/reliability.md")
    arguments = parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(pathlib.Path(folder), arguments.size == "small")
        for name in arguments.only.split(",") if arguments.only else ROWS:
            row = run_row(name, bench)
            print(f"{name}: {row['held']} of {row['tried']} held, {row['seconds']} s {row['notes']}", flush=True)
            for problem in row["problems"]:
                print(f"  {problem}", flush=True)
            if arguments.json and arguments.json.exists():
                rows = json.loads(arguments.json.read_text())
            rows[name] = {"size": arguments.size, "environment": describe_environment()} | row
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    table = ['| fault | tried | held | seconds | "held" means |', "|---|---|---|---|---|"]
    for name in filter(rows.get, ROWS):
        row = rows[name]
        means = row["means"] + (f" Measured: {row['notes']}." if row["notes"] else "")
        table.append(f"| {name} | {row['tried']} | {row['held']} | {row['seconds']:,} | {means} |")
    print("", *table, sep="\n")
    if arguments.docs:
        put_table(ROOT / "docs" / "reliability.md", "faults", "\n".join(table))


if __name__ == "__main__":
    main()
