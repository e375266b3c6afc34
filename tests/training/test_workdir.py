"""The folder of a run: its name, the run that it belongs to, and its config.json."""

import json

import pytest

from configs import base, resnet50
from training.configuration import resolve_network, resolve_run
from training.workdir import check_workdir, default_workdir, read_config, write_config


def resolve(config=None, dataset_classes=10, **options):
    config = config or base.get_config()
    config.update(options)
    return resolve_run(resolve_network(config), dataset_classes, num_images=1000)


def test_the_workdir_names_what_changes_the_result():
    overrides = {"model": "googlenet", "aux_weight": (0.3,), "data_dir": "/data", "log_every_steps": 5}
    assert str(default_workdir("configs/resnet50.py", overrides)) == "runs/resnet50,model=googlenet,aux_weight=0.3"
    assert str(default_workdir("configs/resnet50.py", {})) == "runs/resnet50"
    folder = default_workdir("configs/resnet50.py", {"dataset": "image_folder:/data/birds"})
    assert len(folder.parts) == 2


def test_a_workdir_belongs_to_one_config(tmp_path):
    write_config(tmp_path, resolve(), ("a", "b"))
    check_workdir(tmp_path, resolve())
    check_workdir(tmp_path, resolve(log_every_steps=7, prefetch_batches=5, steps_per_dispatch=3))
    with pytest.raises(ValueError, match=r"belongs to a run with learning_rate=0.05, not 0.1"):
        check_workdir(tmp_path, resolve(learning_rate=0.1))
    with pytest.raises(ValueError, match=r"belongs to a run with cache="):
        check_workdir(tmp_path, resolve(cache="device"))


def test_the_config_comes_back_whole(tmp_path):
    config = resolve(resnet50.get_config(), dataset_classes=1000, bn_virtual_batch_size=32)
    write_config(tmp_path, config, ("a",) * 1000)
    assert read_config(tmp_path).to_dict() == config.to_dict()
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["versions"]["jax"] and content["hardware"]["platform"] == "cpu"


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        check_workdir(tmp_path / "file" / "run", resolve())
