"""Sweeps, with a small program in the place of train.py."""

import functools
import json
import os
import pathlib
import signal
import threading

import pytest

from configs import base
from training import sweep
from training.configuration import resolve_network, resolve_run

# Finishes, except for seed 1, which fails once it has started, and seed 9, which waits for a signal.
PROGRAM = """
import pathlib, signal, sys
words = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
workdir = pathlib.Path(words["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
with open(workdir / "starts", "a") as file:
    file.write(words["config.seed"])
if words["config.seed"] == "1":
    sys.exit("train.py: error: the loss became nan")
if words["config.seed"] == "9":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("ready", flush=True)
    signal.pause()
(workdir / "summary.json").write_text("{}")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a train.py, where runs/ will be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(sweep, "SECONDS_BETWEEN_LOOKS", 0.01)
    (tmp_path / "train.py").write_text(PROGRAM)
    return tmp_path


def list_trials(*varied, **common):
    config = base.get_config()
    config.update(common)
    return sweep.list_trials("configs/base.py", common, varied, config)


def test_every_combination_is_a_command_with_a_folder_of_its_own(folder):
    trials = list_trials("aux_weight=0,(0.3,0.4)", "seed=0:2", num_epochs=2.0)
    assert [trial.name for trial in trials] == [
        "aux_weight=0,seed=0",
        "aux_weight=0,seed=1",
        "aux_weight=(0.3,0.4),seed=0",
        "aux_weight=(0.3,0.4),seed=1",
    ]
    assert trials[0].command == (
        "python train.py --config=configs/base.py --config.num_epochs=2.0 --config.aux_weight=0 --config.seed=0"
    )
    assert trials[3].workdir == pathlib.Path("runs/base/aux_weight=0.3+0.4,num_epochs=2.0,seed=1")


def test_the_runs_may_have_another_folder(folder):
    config = base.get_config()
    (trial,) = sweep.list_trials("configs/base.py", {}, ["seed=3"], config, pathlib.Path("somewhere"))
    assert trial.workdir == pathlib.Path("somewhere/seed=3")
    assert trial.command.endswith("--config.seed=3 --workdir=somewhere/seed=3")
    assert sweep.train_all([trial], jobs=1) == ([], 0)
    assert (folder / "somewhere/seed=3/summary.json").exists()


def test_a_common_option_is_left_out_of_the_runs_where_it_has_no_effect(folder):
    plain, headed = list_trials("aux_weight=0,0.3", aux_heads=("conv3",))
    assert "aux_heads" not in plain.command and plain.workdir == pathlib.Path("runs/base/aux_weight=0")
    assert "--config.aux_heads=conv3" in headed.command and "aux_heads=conv3" in headed.workdir.name
    with pytest.raises(ValueError, match="aux_heads=conv3 has no effect: it needs aux_weight"):
        list_trials("seed=0,1", aux_heads=("conv3",))


@pytest.mark.parametrize(
    ("varied", "message"),
    [
        (["seeds=1"], "there is no option seeds; did you mean seed?"),
        (["seed=x"], "seed=x is invalid; give at least 0"),
        (["seed=1,1"], "--vary gives seed=1 more than once"),
        (["seed="], "--vary=seed= has no values"),
        (["seed=1", "seed=2"], "give each option once"),
        (["num_epochs=1,2"], "give each option once"),  # it is typed for all runs too
        (["dropout_rate=0.5,2"], "dropout_rate=2.0 is out of range"),
        (["rmsprop_decay=0.5"], "rmsprop_decay=0.5 has no effect: it needs optimizer=rmsprop"),
        (["log_every_steps=1,2"], "log_every_steps does not change the result"),
        ([], "--vary is missing"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(varied, message):
    with pytest.raises(ValueError) as raised:
        list_trials(*varied, num_epochs=2.0)
    assert message in str(raised.value)


def test_a_failed_run_stops_no_other_and_finished_runs_are_not_repeated(folder, capsys):
    trials = list_trials("seed=0:3")
    failed, exit_code = sweep.train_all(trials, jobs=2)
    assert ([trial.name for trial in failed], exit_code) == (["seed=1"], 1)
    assert "seed=1: failed: train.py: error: the loss became nan" in capsys.readouterr().out
    assert trials[1].log == pathlib.Path("runs/base/seed=1.log") and trials[1].log.exists()
    sweep.train_all(trials, jobs=1)
    assert [(trial.workdir / "starts").read_text() for trial in trials] == ["0", "11", "2"]


def finish(trial, config):
    """Writes the workdir of a finished run on the digits."""
    trial.workdir.mkdir(parents=True)
    (trial.workdir / "summary.json").write_text("{}")
    resolved = resolve_run(resolve_network(config), num_classes=10, num_images=1437)
    (trial.workdir / "config.json").write_text(json.dumps({"config": json.loads(resolved.to_json())}))


def test_a_finished_run_of_another_recipe_is_refused(folder):
    """Its folder has the name of the new run, but its learning rate was another one."""
    config = base.get_config()
    config.num_epochs = 2.0
    list_runs = functools.partial(sweep.list_trials, "configs/base.py", {"num_epochs": 2.0}, ["seed=0"])
    (trial,) = list_runs(config)
    finish(trial, config)
    assert list_runs(config)[0].is_finished
    config.learning_rate = 0.125
    with pytest.raises(ValueError, match=r"seed=0 belongs to a run with learning_rate=0.05, not 0.125"):
        list_runs(config)


def test_a_finished_run_without_an_option_that_has_no_effect_there_is_its_own(folder):
    """Momentum has no effect with AdamW, so that run was trained without it."""
    config = base.get_config()
    config.momentum = 0.5
    list_runs = functools.partial(sweep.list_trials, "configs/base.py", {"momentum": 0.5}, ["optimizer=sgd,adamw"])
    own = base.get_config()
    own.optimizer = "adamw"
    finish(list_runs(config)[1], own)
    assert [trial.is_finished for trial in list_runs(config)] == [False, True]


def test_a_signal_reaches_the_runs_and_no_other_starts(folder):
    trials = list_trials("seed=9,0")

    def send_when_ready():
        while not (trials[0].log.exists() and "ready" in trials[0].log.read_text()):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send_when_ready).start()
    failed, exit_code = sweep.train_all(trials, jobs=1)
    assert (failed, exit_code) == ([], 143)
    assert not trials[1].workdir.exists() and not trials[0].is_finished
