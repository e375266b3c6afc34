"""Every recipe trains: two steps on synthetic images, small, on train.py's own path."""

import importlib
import json
import math
import pathlib

import pytest

import models
import train
from training.interruption import Interruption
from training.state import make_mesh

# They take 20 s and more, for their size or the time to compile them; each has a smaller one of its family beside it.
SLOW = ("densenet121", "inception_resnet_v2", "inception_v4", "resnet101", "resnet152", "vgg16_bn", "xception")
SLOW += ("resnet50_v1", "alexnet_owt", "zfnet", "inception_v3", "googlenet_bn", "cifar10_densenet40_k12")

RECIPES = sorted(path.stem for path in (pathlib.Path(__file__).parent.parent / "configs").glob("[!_]*.py"))


def parameter(name):
    return pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))


@pytest.mark.parametrize("name", map(parameter, RECIPES))
def test_recipe(name, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(1))  # eight copies of VGG would fill the memory
    config = importlib.import_module(f"configs.{name}").get_config()
    config.dataset, config.synthetic_examples, config.num_classes = "synthetic", 8, 10
    config.image_size = min(models.get_entry(config.model).image_size, 96)
    config.batch_size, config.eval_batch_size, config.num_steps, config.warmup_epochs = 8, 8, 2, 0.0
    config.compilation_cache_dir = ""
    train.train(config, tmp_path / name, Interruption())

    summary = json.loads((tmp_path / name / "summary.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    assert summary["step"] == 2 and summary["model"] == config.model
    assert {"train", "validation"} == {row["split"] for row in rows}
    assert all(math.isfinite(row["loss"]) for row in rows)
    heads = [name for name in rows[0] if name.startswith("aux")]
    assert len(heads) == (len(models.get_entry(config.model).aux_heads) if any(config.aux_weight) else 0)
    assert (tmp_path / name / "curves.png").stat().st_size > 1000
