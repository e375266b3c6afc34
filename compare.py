"""Compares runs: python compare.py RUN [RUN ...] [--out=DIR] [--baseline=RUN] [--reach=90,95].

RUN is a folder that train.py made, a folder of such folders, or a pattern such as 'runs/googlenet/*'; runs may be
unfinished or running. The table has the options in which the runs differ, the final and the best top-1 accuracy, the
loss and the time, as mean ± standard deviation where only the seed differs. Runs of different datasets or splits are in
different tables. --out writes the page comparison.html, which needs no other file and no network, and comparison.md.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback

import math
import pathlib

from absl import flags

from analysis import runs, runs_report
from training import command_line

_OUT = flags.DEFINE(command_line.PATH, "out", None, "A folder for comparison.html and comparison.md, with curves.")
_BASELINE = flags.DEFINE(command_line.PATH, "baseline", None, "A run, from which the differences are shown.")
_REACH = flags.DEFINE_list("reach", [], "Top-1 accuracies in %: show the steps and the time to reach each.")
_SORT = flags.DEFINE_string("sort", None, "A column to sort by; default: top-1, the highest first.")
_FILTER = flags.DEFINE_multi_string("filter", [], "OPTION=VALUE, with wildcards: leave other runs out.")


def main(*patterns: str) -> None:
    """Runs the program."""
    with command_line.refusing_bad_input():
        targets = [_accuracy(text) for text in _REACH.value]
        found = runs.filter_runs(runs.find_runs(patterns), _FILTER.value)
        groups = runs.group_runs(found)
        baseline = runs.find_setting(groups, _BASELINE.value) if _BASELINE.value else None
        tables = [(group, runs_report.make_table(group, targets, _SORT.value, baseline)) for group in groups]
        command_line.say(runs_report.describe(tables, baseline))
        if _OUT.value:
            pages = runs_report.write(pathlib.Path(_OUT.value), tables, baseline)
            command_line.say(f"\nwritten: {', '.join(map(str, pages))}")


def _accuracy(text: str) -> float:
    """Returns a share of 1 from a text in percent; raises ValueError if it is none."""
    try:
        percent = float(text)
    except ValueError:
        percent = math.nan
    if not 0 < percent <= 100:
        raise ValueError(f"--reach={text} is no accuracy; give percentages, as in --reach=90,95")
    return percent / 100


if __name__ == "__main__":
    command_line.run(main, argument="RUN ...")
