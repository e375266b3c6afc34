"""Every recipe trains by train.py, two steps on small synthetic images."""

import importlib
import json
import math
import pathlib

import pytest

import models
import train
from training.interruption import Interruption
from training.state import make_mesh

# Recipes that take 20 s and more, because of their size or compile time, and recipes that differ from another one only
# in the network, which tests/models/ covers.
SLOW = {"alexnet_owt", "cifar10_densenet40_k12", "densenet121", "googlenet_bn", "inception_resnet_v2", "inception_v3"}
SLOW |= {"inception_v4", "resnet101", "resnet152", "resnet50_v1", "vgg16", "vgg16_bn", "xception", "zfnet"}
SLOW |= {"alexnet_ungrouped", "zfnet_wide", "vgg11", "vgg13", "vgg16_c", "vgg19", "vgg11_bn", "vgg13_bn", "vgg19_bn"}
SLOW |= {"googlenet_bn_3x3", "resnet101_v1", "resnet152_v1", "plain18", "densenet169", "densenet201", "squeezenet1_1"}
SLOW |= {"resnet34", "plain34", "nin", "resnet18", "alexnet", "squeezenet1_0", "cifar10_resnet110"}
SLOW |= {"imagenette_googlenet", "finetune"}

RECIPES = sorted(path.stem for path in (pathlib.Path(__file__).parent.parent / "configs").glob("[!_]*.py"))


def parameter(name):
    return pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))


@pytest.mark.parametrize("name", map(parameter, RECIPES))
def test_recipe(name, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(1))  # eight copies of VGG would not fit into memory
    config = importlib.import_module(f"configs.{name}").get_config()
    config.dataset, config.synthetic_examples, config.num_classes = "synthetic", 8, 10
    config.image_size = min(models.get_entry(config.model).image_size, 96)
    config.batch_size, config.eval_batch_size, config.num_steps, config.warmup_epochs = 8, 8, 2, 0.0
    config.compilation_cache_dir, config.init_from = "", ""
    train.train(config, tmp_path / name, Interruption())

    summary = json.loads((tmp_path / name / "summary.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    assert summary["step"] == 2 and summary["model"] == config.model
    assert {"train", "validation"} == {row["split"] for row in rows}
    assert all(math.isfinite(row["loss"]) for row in rows)
    heads = [name for name in rows[0] if name.startswith("aux")]
    assert len(heads) == (len(models.get_entry(config.model).aux_heads) if any(config.aux_weight) else 0)
    assert (tmp_path / name / "curves.png").stat().st_size > 1000
