"""The order in memory that kernels have on a GPU during training: here a CPU is told to keep it too."""

import json

import jax
import numpy as np
import pytest
from interrupted import InterruptedAfter
from jax.experimental.layout import Layout

import train
from configs import base
from training import state
from training.checkpoints import Checkpoints
from training.interruption import Interruption
from training.program import make_program
from training.state import make_mesh

CUDNN = (3, 0, 1, 2)


@pytest.fixture
def cudnn_layouts(monkeypatch):
    monkeypatch.setitem(state.KERNEL_LAYOUTS, "cpu", Layout(CUDNN))


def orders(tree):
    return {leaf.format.layout.major_to_minor for leaf in jax.tree.leaves(tree) if leaf.ndim == 4}


def test_the_step_takes_and_returns_the_same_layouts_and_computes_the_same(make_trainer, make_batches, monkeypatch):
    batches = make_batches(3)
    plain = make_trainer(ema_decay=0.9)
    monkeypatch.setitem(state.KERNEL_LAYOUTS, "cpu", Layout(CUDNN))
    laid_out = make_trainer(ema_decay=0.9)
    np.testing.assert_allclose(laid_out.run(batches), plain.run(batches), rtol=1e-5)
    assert orders(plain.state) == {(0, 1, 2, 3)}
    assert orders(laid_out.state) == orders(laid_out.state["ema"]) == orders(laid_out.state["opt_state"]) == {CUDNN}
    assert laid_out.step._cache_size() == 1


def test_a_state_in_another_layout_is_refused(make_trainer, make_batches, cudnn_layouts):
    trainer = make_trainer()
    trainer.state = jax.device_put(jax.device_get(trainer.state), trainer.mesh.devices.flat[0])
    with pytest.raises(ValueError, match="[Ll]ayout"):
        trainer.run(make_batches(1))


def small_config(**options):
    config = base.get_config()
    config.update({"num_steps": 6, "batch_size": 16, "eval_batch_size": 360, "compilation_cache_dir": ""})
    config.update({"checkpoint_every_steps": 3, "ema_decay": 0.9, **options})
    return config


@pytest.mark.parametrize(
    "options", [{"cache": "device"}, {"train_sizes": ((0, 28), (0.03, 32))}], ids=["cache", "sizes"]
)
def test_a_resumed_run_is_equal_to_the_bit(options, tmp_path, cudnn_layouts, monkeypatch):
    """Training, evaluation, the averages and checkpoints share one state."""
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(1))

    train.train(small_config(**options), tmp_path / "whole", Interruption())
    train.train(small_config(**options), tmp_path / "cut", InterruptedAfter(3))
    assert not (tmp_path / "cut" / "summary.json").exists()
    train.train(small_config(**options), tmp_path / "cut", Interruption())
    whole, cut = (
        json.loads((tmp_path / name / "checkpoints" / "6" / "checksums" / "metadata").read_text())
        for name in ("whole", "cut")
    )
    assert whole == cut


def test_checkpoints_do_not_depend_on_the_layout(make_trainer, tmp_path, cudnn_layouts, monkeypatch):
    trainer = make_trainer()
    assert orders(trainer.state) == {CUDNN}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(trainer.state)
    monkeypatch.delitem(state.KERNEL_LAYOUTS, "cpu")
    target = make_program(trainer.config, make_mesh(1), 10).target
    restored = Checkpoints(tmp_path, read_only=True).restore(target)
    jax.tree.map(np.testing.assert_array_equal, restored, trainer.state)
    assert orders(restored) == {(0, 1, 2, 3)}
