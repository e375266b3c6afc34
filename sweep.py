"""Trains one recipe with several values of options: python sweep.py --config=FILE --vary=OPTION=VALUES [--vary=...].

python sweep.py --config=configs/googlenet.py --vary=aux_weight=0,0.1,(0.3,0.4) --vary=seed=0:3 trains nine runs: each
weight with the seeds 0, 1 and 2. Values are separated by commas; a tuple has brackets; A:B means A, A+1, ..., B-1.
Options for all runs are typed as for train.py: --config.num_epochs=5; runs where such an option has no effect are
trained without it. Runs go into the folders that train.py would choose, or into folders of the same names in --workdir,
with their output in FOLDER.log. The same command skips finished runs and continues those that were cut. At the end
comes the table of compare.py.

Exit codes: 0 all runs are finished; 1 a run failed, and the last line names it; 2 bad flags; 130 and 143 after SIGINT
and SIGTERM, once the runs in progress have saved a checkpoint.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback

import pathlib

import jax
from absl import flags
from ml_collections import config_flags

from analysis import runs, runs_report
from training import command_line, sweep

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
_VARY = flags.DEFINE_multi_string("vary", [], "OPTION=VALUES: train with each value; several: each combination.")
_WORKDIR = flags.DEFINE(command_line.PATH, "workdir", None, "Folder of the runs' folders; default: runs/RECIPE.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at the same time, which share the machine.", lower_bound=1)
_PRINT = flags.DEFINE_bool("print", False, "Only print the commands of unfinished runs, for a cluster's queue.")
flags.mark_flag_as_required("config")


def main() -> int:
    """Runs the program; returns its exit code."""
    flag = flags.FLAGS["config"]
    recipe, common = config_flags.get_config_filename(flag), config_flags.get_override_values(flag)
    jax.config.update("jax_platforms", "cpu")  # of this process only: the runs need the accelerators
    with command_line.refusing_bad_input():
        folder = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None
        trials = sweep.list_trials(recipe, common, _VARY.value, _CONFIG.value, folder)
        if _PRINT.value:
            command_line.say("\n".join(trial.command for trial in trials if not trial.is_finished))
            return 0
        failed, exit_code = sweep.train_all(trials, _JOBS.value)
        if found := [runs.read_run(trial.workdir) for trial in trials if (trial.workdir / "config.json").exists()]:
            tables = [(group, runs_report.make_table(group, [], None, None)) for group in runs.group_runs(found)]
            command_line.say(f"\n{runs_report.describe(tables, None)}")
    for trial in failed:
        command_line.say(f"failed: {trial.command}; its output is in {trial.log}")
    return exit_code


if __name__ == "__main__":
    command_line.run(main)
