"""The training step is compiled once, before the workdir is made; a batch that does not fit into memory is refused."""

import logging

import jax
import pytest

import train
from analysis import memory
from configs import base
from training.interruption import Interruption
from training.program import Program


def small_config(**options):
    config = base.get_config()
    config.update({"num_steps": 2, "batch_size": 16, "eval_batch_size": 360, "compilation_cache_dir": ""} | options)
    return config


@pytest.mark.parametrize("cache", ["", "device"])
def test_the_program_that_is_checked_before_the_run_is_the_one_that_runs(cache, tmp_path, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        train.train(small_config(cache=cache), tmp_path / "run", Interruption())
    name = "cached_train_steps" if cache else "train_step"
    for words in (f"Finished tracing {name} ", f"Finished XLA compilation of jit({name}) "):
        assert sum(text.startswith(words) for text in caplog.messages) == 1, caplog.messages


def test_each_size_of_the_training_images_is_compiled_once_and_announced(tmp_path, caplog, capsys):
    config = small_config(train_sizes=((0, 28), (0.02, 32), (9, 40)), num_steps=3)  # epoch 9 is never reached
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        train.train(config, tmp_path / "run", Interruption())
    for words in ("Finished tracing train_step ", "Finished XLA compilation of jit(train_step) "):
        assert sum(text.startswith(words) for text in caplog.messages) == 2, caplog.messages
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("compiling")]
    assert lines == [f"compiling the training step for images of {size} pixels" for size in (28, 32)]


def refusal(config, workdir, capsys):
    with pytest.raises(SystemExit) as ended:
        train.train(config, workdir, Interruption())
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and not workdir.exists()
    return line


@pytest.mark.parametrize(
    ("most", "options", "advice"),
    [
        (43, {}, "the largest that fits is 40"),
        (43, {"cache": "device"}, "the largest that fits is 40"),
        (43, {"accumulation_steps": 2}, "the largest that fits is 32"),
        (43, {"mixup_alpha": 0.2}, "the largest that fits is 32"),
        (7, {}, "not even 8 fits"),
    ],
)
def test_the_compiler_runs_out_of_memory(most, options, advice, tmp_path, capsys, monkeypatch):
    """There are eight devices, so each batch size is a multiple of eight."""

    def trace(program, image_size):
        if program.config.batch_size > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore lines")
        assert not program.cache or program.abstract_batch()["order"].shape == (2, 1437)
        return Traced()

    class Traced:
        lower = compile = lambda self: self

    monkeypatch.setattr(Program, "trace", trace)
    monkeypatch.setattr(memory, "check_fit", lambda compiled: None)
    line = refusal(small_config(batch_size=64, **options), tmp_path / "run", capsys)
    assert "batch_size=64 does not fit into memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.)" in line
    assert advice in line


def test_the_compiled_program_needs_more_memory_than_there_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 10**6)
    line = refusal(small_config(), tmp_path / "run", capsys)
    assert "batch_size=16 does not fit into memory (the compiled program needs 0.0 GB of 0.0 GB); not even 8" in line
