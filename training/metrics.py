"""The metrics of a run: metrics.jsonl, TensorBoard, curves.png, summary.json, and the live line on a terminal."""

import contextlib
import io
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from input_pipeline.files import printable
from training.environment import peak_host_memory
from training.loss import means
from training.output import messages
from training.workdir import naming_failure, run_name, write_atomically

Row = dict[str, Any]
EXPLODED = 20  # losses get a logarithmic axis if the largest one is over this many times the largest median of a curve


class RunLog:
    """Turns sums into rows of metrics and shows them: on the terminal, in metrics.jsonl and to TensorBoard.

    On a terminal one live line shows epoch, step, loss, accuracy, images/s and the remaining time; if the output is not
    a terminal, each row is printed as a line. At the end of the context curves.png is drawn, unless the disk has
    failed. If several processes train together, only the first one writes and prints.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        config: ConfigDict,
        num_images: int,
        start_step: int,
        typed: Iterable[str] = (),
    ):
        """Opens the files, and removes the rows after start_step, because a resumed run writes them again.

        Args:
          workdir: the folder of the files.
          config: resolved options.
          num_images: images in an epoch.
          start_step: the step of the checkpoint from which the run resumes, or 0.
          typed: names of the options that were given on the command line.
        """
        self.workdir = workdir
        self._num_steps, self._keep_best = config.num_steps, config.keep_best
        self._batch_size, self._num_images = config.batch_size, num_images
        self.rows = [row for row in read_rows(workdir) if row["step"] <= start_step]
        write_atomically(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
        self._first = jax.process_index() == 0
        hyperparameters = {name: config[name] for name in typed}
        place = workdir / "tensorboard", start_step, start_step * config.batch_size / num_images
        self._tensorboard = _open_tensorboard(*place, config.to_dict(), hyperparameters) if self._first else None
        self._seconds_before = self.rows[-1]["seconds"] if self.rows else 0.0
        self._start, self._start_step = time.perf_counter(), start_step
        self._console = Console(highlight=False, emoji=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("compiling", total=config.num_steps, completed=start_step, text="")
        self.restart_clock(start_step, 0.0)

    def __enter__(self) -> "RunLog":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._progress.stop()
        failed = kind is not None and issubclass(kind, OSError)
        if self._tensorboard:
            with contextlib.suppress(OSError) if failed else contextlib.nullcontext():  # the first error is reported
                self._tensorboard.close()
        if self._first and not failed:
            plot_curves(self.workdir, self.rows)

    @property
    def seconds(self) -> float:
        """Seconds of the whole run, including those before a resume."""
        return self._seconds_before + time.perf_counter() - self._start

    def restart_clock(self, step: int, wait_seconds: float) -> None:
        """Restarts the measurement of the speed, so that compiling, evaluating and saving do not count as training."""
        self._clock, self._clock_step, self._clock_wait = time.perf_counter(), step, wait_seconds

    def say(self, text: str) -> None:
        """Prints a line above the live line; the run continues even if the terminal or the pipe is closed."""
        with messages():
            self._console.print(printable(text, kept="\n"), markup=False)

    def status(self, text: str) -> None:
        """Shows in the live line what the program does between two steps, as in "saving"."""
        self._progress.update(self._task, description=text)

    def advance(self, step: int, wait_seconds: float) -> None:
        """Moves the bar of the live line, without a wait for the devices; restarts the clock after the first step."""
        self._progress.update(self._task, completed=step)
        if step == self._start_step + 1:
            self.say(f"first step after {time.perf_counter() - self._start:.1f} s")
            self.restart_clock(step, wait_seconds)

    def training(self, step: int, sums: dict[str, Any], learning_rate: float, wait_seconds: float) -> None:
        """Adds a row of training metrics.

        Args:
          step: the last step that the sums cover.
          sums: from the training step, on the host.
          learning_rate: the learning rate of the last step.
          wait_seconds: seconds spent waiting for input since this process began to train.

        Raises:
          FloatingPointError: if the loss is not finite.
        """
        elapsed = max(time.perf_counter() - self._clock, 1e-9)
        row = means(sums) | {"learning_rate": float(learning_rate)}
        self._check_finite(step, row)
        if step > self._clock_step:
            row["images_per_second"] = (step - self._clock_step) * self._batch_size / elapsed
            row["input_wait_fraction"] = min((wait_seconds - self._clock_wait) / elapsed, 1.0)
        self._add(step, "train", row)
        where, text = self._describe(step, row)
        if "images_per_second" in row:
            text += f" {row['images_per_second']:,.0f} images/s"
        self._progress.update(self._task, completed=step, description=where, text=text)
        if not self._console.is_terminal:
            pace = (time.perf_counter() - self._start) / max(step - self._start_step, 1)
            self.say(f"{where} {text} {format_seconds(pace * (self._num_steps - step))} left")

    def evaluation(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Adds a row of evaluation metrics.

        Raises:
          FloatingPointError: if the loss is not finite.
        """
        self._check_finite(step, metrics)
        self._add(step, split, metrics)
        where, text = self._describe(step, metrics)
        raw = metrics.get("accuracy_top1_raw")
        raw = "" if raw is None else f", without averaging top-1 {100 * raw:.2f} %"
        self.say(f"{where} {split}: {text} top-5 {100 * metrics['accuracy_top5']:.2f} %{raw}")

    def evaluated(self, step: int) -> bool:
        """Whether there is a row of an evaluation at that step."""
        return any(row["step"] == step and is_evaluation(row) for row in self.rows)

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation so far, or None before the first."""
        best = best_evaluation(self.rows)
        return best["step"] if best else None

    def farewell(self) -> None:
        """Prints the final accuracy, the folder of the files, and the commands to try next."""
        last = [row for row in self.rows if is_evaluation(row)][-1]
        best = " --step=best" if self._keep_best else ""
        parts = ["curves.png", "summary.json", "metrics.jsonl", "tensorboard/", "checkpoints/"]
        parts = [part for part in parts if (self.workdir / part).exists()]
        self.say(
            f"done: {100 * last['accuracy_top1']:.2f} % top-1 on the {last['split']} images after "
            f"{last['epoch']:.4g} epochs and {format_seconds(self.seconds)}\n"
            f"everything lies in {self.workdir}: {', '.join(parts)}\n"
            f"try next: python evaluate.py --workdir={self.workdir}{best}"
            "; the same --workdir goes to predict.py --images=FILE"
        )

    def _add(self, step: int, split: str, values: dict[str, float]) -> None:
        epoch = step * self._batch_size / self._num_images
        row = {"step": step, "epoch": epoch, "split": split} | values | {"seconds": self.seconds}
        self.rows.append(row)
        # TensorBoard comes first: if the process is killed in between, TensorBoard has one row more than metrics.jsonl,
        # and a resumed run hides that row.
        line = json.dumps(row) + "\n"
        if self._tensorboard:
            group = "train_evaluation" if is_evaluation(row) and split == "train" else split
            with naming_failure(self.workdir / "tensorboard", len(line)):
                self._tensorboard.add(group, values, step, epoch, time.time())
        if self._first:
            path = self.workdir / "metrics.jsonl"
            # The mode r+ makes no new file: if the folder has vanished, the run must not go on without its first rows.
            with naming_failure(path, len(line)), open(path, "r+") as file:
                file.seek(0, os.SEEK_END)
                file.write(line)

    def _describe(self, step: int, row: dict[str, float]) -> tuple[str, str]:
        epoch, last = (count * self._batch_size / self._num_images for count in (step, self._num_steps))
        where = f"epoch {epoch:.2f}/{last:.4g} step {step}/{self._num_steps}"
        return where, f"loss {row['loss']:.4f} top-1 {100 * row['accuracy_top1']:.2f} %"

    def _check_finite(self, step: int, row: dict[str, float]) -> None:
        loss = row.get("total_loss", row["loss"])
        if not math.isfinite(loss):
            first = max((earlier["step"] for earlier in self.rows), default=0) + 1
            raise FloatingPointError(f"the loss became {loss} between steps {min(first, step)} and {step}")


def read_rows(workdir: pathlib.Path) -> list[Row]:
    """Returns the rows of a workdir's metrics.jsonl, without truncated or damaged lines."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(row, dict) and _is_sound(row):
            if "main_loss" in row:  # earlier versions called the sum of all losses `loss`
                row |= {"loss": row.pop("main_loss"), "total_loss": row["loss"]}
            rows.append(row)
    return rows


def _is_sound(row: Row) -> bool:
    needed = {"step", "epoch", "split", "loss", "accuracy_top1", "accuracy_top5", "seconds"}
    if not needed <= row.keys() or not isinstance(row["step"], int):
        return False
    return all(isinstance(value, str if name == "split" else (int, float)) for name, value in row.items())


def _open_tensorboard(*arguments: Any) -> Any:
    """Opens TensorBoard's event files; if tensorboardX is not installed, prints a note and returns None."""
    try:
        from training.tensorboard import TensorBoard
    except ImportError:
        with messages():
            print("note: no TensorBoard files, as tensorboardX is not installed")
        return None
    return TensorBoard(*arguments)


def _plain(text: str) -> str:
    """A text that matplotlib shows as it is: dollar signs would begin a formula."""
    return printable(text).replace("$", r"\$")


def is_evaluation(row: Row) -> bool:
    """Whether a row is of an evaluation; the split may be any, even train."""
    return "learning_rate" not in row


def best_evaluation(rows: list[Row]) -> Row | None:
    """Returns the row of the evaluation with the highest accuracy_top1, the latest among equals; None if there is none.

    This function alone decides which checkpoint is kept as the best, what --step=best means, and which step
    summary.json names as the best.
    """
    return max(filter(is_evaluation, rows), key=lambda row: (row["accuracy_top1"], row["step"]), default=None)


def plot_curves(workdir: pathlib.Path, rows: list[Row]) -> None:
    """Draws loss, top-1 accuracy and learning rate over the epochs into curves.png.

    The loss is the main classifier's; the total loss and those of auxiliary classifiers have a panel of their own.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        with messages():
            print("note: no curves.png, as matplotlib is not installed")
        return
    panels: list[tuple[str, tuple[str, ...], int]] = [
        ("loss of the main classifier (nats)", ("loss",), 1),
        ("top-1 accuracy (%)", ("accuracy_top1",), 100),
        ("learning rate", ("learning_rate",), 1),
    ]
    if others := list(dict.fromkeys(name for row in rows for name in row if is_other_loss(name))):
        panels.insert(1, ("other losses of the training (nats)", tuple(others), 1))
    figure = Figure(figsize=(13 / 3 * len(panels), 4), layout="constrained")
    for axes, (label, names, scale) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for split, evaluated in dict.fromkeys((row["split"], is_evaluation(row)) for row in rows):
            for name in names:
                chosen = [row for row in rows if (row["split"], is_evaluation(row)) == (split, evaluated)]
                if points := [(row["epoch"], scale * row[name]) for row in chosen if name in row]:
                    marker = "o" if evaluated or len(points) == 1 else None
                    curve = split if len(names) == 1 else name
                    axes.plot(*np.transpose(points), label=_plain(curve), marker=marker, markersize=3)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if "loss" in label:
            scale_losses(axes)
            if rows:
                axes.legend()
    figure.suptitle(_plain(run_name(workdir)))
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    write_atomically(workdir / "curves.png", picture.getvalue())


def is_other_loss(name: str) -> bool:
    """Whether a metric is the total loss or that of an auxiliary classifier."""
    return name == "total_loss" or bool(re.fullmatch(r"aux\d+_loss", name))


def scale_losses(axes: Any) -> None:
    """Gives a panel of losses a logarithmic axis if a loss exploded, so that the other losses can still be seen."""
    lines = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    positive = [line[line > 0] for line in lines if (line > 0).any()]
    if positive and max(line.max() for line in positive) > EXPLODED * max(np.median(line) for line in positive):
        axes.set_yscale("log")
        axes.set_ylabel(f"{axes.get_ylabel()}, logarithmic")


def write_summary(
    workdir: pathlib.Path,
    config: ConfigDict,
    log: RunLog,
    parameters: int,
    num_eval_images: int,
    bad_images: int,
) -> dict[str, Any]:
    """Writes summary.json, which marks a run as finished, and returns its content.

    Args:
      workdir: the run's folder.
      config: resolved options.
      log: with at least one evaluation.
      parameters: the network's number of parameters.
      num_eval_images: images of the evaluation split, including damaged ones.
      bad_images: damaged training images that were replaced by others since the run was last started or resumed.
    """
    evaluations = [row for row in log.rows if is_evaluation(row)]
    speeds = [row["images_per_second"] for row in log.rows if "images_per_second" in row]
    best, last = best_evaluation(log.rows) or evaluations[-1], evaluations[-1]
    summary: dict[str, Any] = {
        "model": config.model,
        "dataset": config.dataset,
        "parameters": parameters,
        "step": last["step"],
        "epoch": last["epoch"],
        "split": last["split"],
        "loss": last["loss"],
        "accuracy_top1": last["accuracy_top1"],
        "accuracy_top5": last["accuracy_top5"],
        **{name: last[name] for name in ("loss_raw", "accuracy_top1_raw", "accuracy_top5_raw") if name in last},
        "best": {"step": best["step"], "accuracy_top1": best["accuracy_top1"]},
        "examples": last["examples"],
        "bad_images": bad_images,
        "bad_eval_images": num_eval_images - last["examples"],
        "images_per_second_median": float(np.median(speeds)) if speeds else None,
        "seconds": log.seconds,
        "peak_host_memory_bytes": peak_host_memory(),
    }
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def format_seconds(seconds: float) -> str:
    """Returns a duration in a readable form: 12 s, 3:05 min or 2:10:00 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(math.ceil(seconds), 60)
    return f"{minutes}:{seconds:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{seconds:02} h"
