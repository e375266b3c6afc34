"""Trains in workdirs and on datasets of an S3 store that fails, and makes the table of docs/clusters.md.

pip install s3fs 'moto[server]' && python benchmarks/stores.py [--only='ROW;ROW'] [--json=FILE] [--docs]

The store is moto's server; a proxy before it makes the faults. Each function whose name is a key of ROWS makes one row
of the table: it yields a problem, or "", for each run that it tried. Its docstring says when a run "held".
"""

import argparse
import contextlib
import functools
import http.client
import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import jax
import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.faults import TRAIN, Bench, Run, result, start_several
from benchmarks.page import put_table
from training.environment import describe_environment
from training.state import make_mesh
from training.transfer import load_weights


class Proxy:
    """Passes HTTP requests on to a server, and makes faults.

    Attributes:
      url: its address.
      fault: what happens to the request of a number: "" nothing; "503"; "slow": 3 s before the answer; "cut request":
        the connection breaks in the middle of the request; "cut answer": in the middle of the answer, or before an
        answer without a body, when the server has done what it was asked; "gone": no answer at all.
      seen, made: how many requests and faults there were.
    """

    def __init__(self, server: str):
        self.fault: Callable[[int], str] = lambda number: ""
        self.seen = self.made = 0
        outer = self

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Is silent about clients that are killed."""

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                outer._answer(self, server)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def _answer(self, request: Any, server: str) -> None:
        self.seen += 1
        fault = self.fault(self.seen)
        self.made += bool(fault)
        request.close_connection = True
        size = int(request.headers.get("Content-Length", 0))
        if fault in ("gone", "cut request"):
            request.rfile.read(size // 2)
            return
        body = request.rfile.read(size)
        if fault == "503":
            request.send_response(503)
            request.send_header("Content-Length", "0")
            request.send_header("Connection", "close")
            return request.end_headers()
        if fault == "slow":
            time.sleep(3)
        connection = http.client.HTTPConnection(server, timeout=60)
        headers = {name: value for name, value in request.headers.items() if name not in ("Expect", "Connection")}
        connection.request(request.command, request.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "cut answer" and not content:
            return
        request.send_response(answer.status)
        lengths = {"content-length": str(len(content))} if request.command != "HEAD" else {}
        ours = {"connection": "close"} | lengths
        theirs = {name.lower(): value for name, value in answer.getheaders() if name.lower() != "transfer-encoding"}
        for name, value in (theirs | ours).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content[: len(content) // 2] if fault == "cut answer" else content)


class Store:
    """A bucket of moto's server behind a proxy, and runs that have their workdirs there."""

    def __init__(self, bench: Bench):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.bench, self.address = bench, f"127.0.0.1:{port}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.proxy = Proxy(self.address)
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ.update(keys)
        self.variables = keys | {"AWS_ENDPOINT_URL": self.proxy.url}
        # The bench itself sees no faults.
        self.files = fsspec.filesystem("s3", endpoint_url=f"http://{self.address}", use_listings_cache=False)
        while True:
            with contextlib.suppress(Exception):
                self.files.mkdir("bucket")
                break

    def close(self) -> None:
        """Ends the server."""
        self._process.kill()
        self._process.wait()

    def new(self) -> str:
        """Returns the URL of a workdir that does not exist yet."""
        return f"s3://bucket/runs/{self.bench.new().name}"

    def options(self, machine: str = "here", timeout: float = 60) -> list[str]:
        """Returns the options of a run on a machine, which has its own folder of local copies."""
        cache = self.bench.folder / "copies" / machine
        options = [f"--config.remote_cache_dir={cache}", f"--config.remote_timeout_seconds={timeout}"]
        return [self.bench.cache, *options, "--config.remote_upload_seconds=0.2"]

    def train(self, url: str, *options: str, **how: Any) -> Run:
        """Starts or resumes the small run."""
        return self.bench.train(url, *options or self.options(), **self.variables, **how)

    def fetch(self, url: str) -> pathlib.Path:
        """Returns a copy of a workdir as the store has it."""
        folder = self.bench.new()
        self.files.get(url, str(folder), recursive=True)
        return folder

    def problem(self, url: str, *options: str) -> str:
        """Gives the command again, without faults; returns the problem if the run does not end as it would locally."""
        self.proxy.fault = lambda number: ""
        problem = self.train(url, *options).problem(0)
        return problem or self.difference(url)

    def difference(self, url: str) -> str:
        """Returns "" if the finished run in the store is equal to that on the local disk, to the bit."""
        folder = self.fetch(url)
        if result(folder) != self.bench.expected:
            return "the result differs from that of a run on the local disk"
        kept = {path.name for path in (self.bench.finished / "checkpoints").iterdir()}
        found = {path.name for path in (folder / "checkpoints").iterdir()}
        locks = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        return f"the store has the checkpoints {found}, not {kept}, and {locks}" if found != kept or locks else ""


def every_third(fault: str, number: int) -> str:
    """Returns the fault for every third request; both kinds of cuts take turns."""
    if number % 3:
        return ""
    return fault if fault != "cut" else ("cut request", "cut answer")[number % 2]


def no_fault(store: Store) -> Iterator[str]:
    """The run ends with the weights (to the bit), metrics and checkpoints of a run on the local disk; evaluate.py with
    the URL, and with --step=best, prints what it prints for the local workdir; a second start says that it is
    finished."""
    url = store.new()
    yield store.problem(url)
    local = store.bench.finished
    for step in ((), ("--step=best",)):
        outputs = []
        for workdir in (url, local):
            run = store.bench.start("evaluate.py", f"--workdir={workdir}", "--json=-", *step, **store.variables)
            problem = run.problem(0)
            outputs.append(problem or run.output)
        yield "" if outputs[0] == outputs[1] and not problem else f"evaluate.py {step}: {outputs}"[:300]
    run = store.train(url)
    yield run.problem(0) or ("" if "is finished" in run.output else "a second start does not say that it is finished")


def sigkill(store: Store) -> Iterator[str]:
    """The same command goes on, on the same machine at once and on another one after a minute, and ends equal to the
    bit."""
    for number, moment in enumerate((r"compiling", r"step 1/", r"step 6/24 val", r"step 9/", r"step 13/", r"step 24/")):
        url = store.new()
        run = store.train(url)
        run.prints(moment)
        time.sleep(store.bench.random.uniform(0, 0.5))
        run.end(signal.SIGKILL)
        yield store.problem(url, *store.options("there" if number % 3 == 1 else "here"))


def sigkill_again(store: Store) -> Iterator[str]:
    """One run, killed five times during uploads and started again each time, ends equal to the bit."""
    url = store.new()
    for count in (6, 18, 30, 42, 54):
        last = store.proxy.seen + count
        run = store.train(url)
        run.reaches(lambda last=last: store.proxy.seen >= last)
        run.end(signal.SIGKILL)
    yield store.problem(url)


def sigterm(store: Store) -> Iterator[str]:
    """The run saves, uploads and ends with 143; another machine goes on at once, and ends equal to the bit."""
    url = store.new()
    run = store.train(url)
    run.prints("step 10/")
    code = run.end(signal.SIGTERM)
    problem, start = "" if code == 143 else f"exit code {code}: {run.errors[:300]}", time.monotonic()
    problem = problem or store.problem(url, *store.options("there"))
    yield problem or ("" if time.monotonic() - start < 45 else "the other machine waited for the lease")


def faulty(fault: str, store: Store) -> Iterator[str]:
    """The run ends as without faults, with exit code 0 and equal to the bit, and so does the same run resumed."""
    for stop in (False, True):
        url = store.new()
        store.proxy.fault = functools.partial(every_third, fault)
        if stop:
            run = store.train(url)
            run.prints("step 10/")
            run.end(signal.SIGTERM)
        run = store.train(url)
        problem = run.problem(0, lines=99)
        store.proxy.fault = lambda number: ""
        yield problem or store.difference(url)


def away(store: Store) -> Iterator[str]:
    """The store does not answer for 20 s: the run goes on meanwhile, and ends equal to the bit."""
    url = store.new()
    run = store.train(url)
    run.prints("step 3/")
    store.proxy.fault = lambda number: "gone"
    problem = "" if run.prints("step 24/24 val") else "the run did not go on"
    time.sleep(20)
    store.proxy.fault = lambda number: ""
    yield problem or run.problem(0, lines=99) or store.difference(url)


def gone(store: Store) -> Iterator[str]:
    """The run saves on the local disk and ends with exit code 4 and a line that names the object; what was complete in
    the store stays; the same command, once the store answers, goes on from the local checkpoint and ends equal to the
    bit. At the start of a run the same holds."""
    for moment in ("step 5/", "step 11/", "step 24/24 val"):
        url = store.new()
        run = store.train(url, *store.options(timeout=5))
        run.prints(moment)
        store.proxy.fault = lambda number: "gone"
        code, line = run.end(), run.errors.strip().split("\n")[-1]
        problem = "" if code == 4 and "train.py: error: " + url in line else f"exit code {code}: {line[:300]}"
        yield problem or store.problem(url)
    store.proxy.fault = lambda number: "gone"
    run = store.train(url := store.new(), *store.options(timeout=5))
    code, line = run.end(), run.errors.strip().split("\n")[-1]
    yield "" if code == 4 and url in line else f"at the start: exit code {code}: {line[:300]}"
    store.proxy.fault = lambda number: ""


def refused(store: Store) -> Iterator[str]:
    """A second run in the same workdir, on the same machine and on another one, and a bucket that does not exist: exit
    code 2 and one line; the first run goes on."""
    url = store.new()
    long = *store.options(), "--config.num_steps=100000"
    run = store.train(url, *long)
    run.prints("step 1/")
    yield store.train(url, *long).problem(2)
    yield store.train(url, *long, *store.options("there")).problem(2)
    code = run.end(signal.SIGTERM)
    yield "" if code == 143 else f"exit code {code} of the first run"
    yield store.train("s3://nobucket/run").problem(2)


def two_processes(store: Store) -> Iterator[str]:
    """Two processes with separate local disks and shard_params: killed and started again, they end as two processes on
    a shared local disk do, to the bit."""
    options = ("--config.num_classes=1000", "--config.shard_params=True")

    def run(workdir: Any, kill_at: str = "") -> list[int | None]:
        machines = iter(("first", "second"))

        def train(workdir: Any, *options: str, **how: Any) -> Run:
            return store.train(workdir, *store.options(next(machines)), *options, **how)

        runs = start_several(types.SimpleNamespace(train=train), workdir, 2, *options)
        if kill_at:
            runs[0].prints(kill_at)
            for each in runs[::-1]:
                os.kill(each.process.pid, signal.SIGKILL)
        return [each.end() for each in runs]

    local, url = store.bench.new(), store.new()
    for moment in ("step 9/", "step 15/"):
        run(url, moment)
    codes = run(url) + run(local)
    if codes != [0, 0, 0, 0]:
        yield f"exit codes {codes}"
        return
    fetched = store.fetch(url)
    same = result(fetched)[1:] == result(local)[1:] and weights(fetched) == weights(local)
    yield "" if same else "the result differs from that on a shared local disk"


def weights(workdir: pathlib.Path) -> list[bytes]:
    """Returns the bytes of the weights of a run's last checkpoint."""
    _, params, batch_stats, _ = load_weights(workdir, make_mesh(1))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((params, batch_stats))]


def datasets(store: Store) -> Iterator[str]:
    """A folder of images and a dataset of TFDS in the store: killed while they are copied, with every third request
    failing with 503, a run ends with the metrics of a run on the local disk."""
    folder, prepared = store.bench.folder / "images", store.bench.folder / "prepared"
    numbers = np.random.default_rng(0)
    for number in range(300):
        path = folder / ("train" if number % 5 else "val") / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (32, 32), np.uint8)).save(path)
    store.bench.start("prepare.py", str(folder), f"--data_dir={prepared}").end()
    for place in (folder, prepared):
        store.files.put(str(place), f"bucket/{place.name}", recursive=True)
    places = {
        "image_folder": (f"--config.dataset=image_folder:{folder}", "--config.dataset=image_folder:s3://bucket/images"),
        "data_dir": (f"--config.data_dir={prepared}", "--config.data_dir=s3://bucket/prepared"),
    }
    for kind, (local, remote) in places.items():
        more = ["train.py", *(word for word in TRAIN if "synthetic" not in word and "num_classes" not in word)]
        more += ["--config.dataset=images"] if kind == "data_dir" else []
        expected, workdir = store.bench.new(), store.bench.new()
        problem = store.bench.start(*more, store.bench.cache, local, f"--workdir={expected}").problem(0)
        store.proxy.fault = functools.partial(every_third, "503")
        for kill in (True, False):
            run = store.bench.start(*more, *store.options(kind), remote, f"--workdir={workdir}", **store.variables)
            if kill:
                run.prints("copying s3")
                time.sleep(1)
                run.end(signal.SIGKILL)
        problem = problem or run.problem(0, lines=99)
        store.proxy.fault = lambda number: ""
        yield problem or ("" if result(expected) == result(workdir) else "the result differs")


ROWS: dict[str, Callable[[Store], Iterator[str]]] = {
    "no fault": no_fault,
    "SIGKILL": sigkill,
    "SIGKILL during uploads": sigkill_again,
    "SIGTERM": sigterm,
    "every third request: 503": functools.partial(faulty, "503"),
    "every third answer 3 s late": functools.partial(faulty, "slow"),
    "every third connection cut": functools.partial(faulty, "cut"),
    "store away for 20 s": away,
    "store gone": gone,
    "second run, no bucket": refused,
    "two processes": two_processes,
    "datasets": datasets,
}


def main() -> None:
    """Runs the rows, writes them to the JSON file, and prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names of rows, with semicolons between them; default: all")
    parser.add_argument("--json", type=pathlib.Path, help="a file that the rows are added to")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/clusters.md")
    arguments = parser.parse_args()
    rows = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Bench(pathlib.Path(folder), small=True))
        try:
            for name in arguments.only.split(";") if arguments.only else ROWS:
                start, store.proxy.made = time.monotonic(), 0
                problems = list(ROWS[name](store))
                row = {"tried": len(problems), "held": problems.count(""), "faults": store.proxy.made}
                row |= {"seconds": round(time.monotonic() - start), "problems": list(filter(None, problems))}
                print(f"{name}: {row}", flush=True)
                rows[name] = row | {"environment": describe_environment()}
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
                shutil.rmtree(store.bench.folder / "copies", ignore_errors=True)
        finally:
            store.close()
    table = ['| fault | runs | held | faults made | seconds | "held" means |', "|---|---|---|---|---|---|"]
    for name in filter(rows.get, ROWS):
        row, function = rows[name], ROWS[name]
        means = " ".join((getattr(function, "func", function).__doc__ or "").split())
        counts = (str(row[key]) for key in ("tried", "held", "faults", "seconds"))
        table.append(f"| {name} | {' | '.join(counts)} | {means} |")
    print("", *table, sep="\n")
    if arguments.docs:
        put_table(ROOT / "docs" / "clusters.md", "stores", "\n".join(table))


if __name__ == "__main__":
    main()
