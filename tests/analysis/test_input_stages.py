import pytest

from analysis.input_stages import measure_input
from configs import base
from training.configuration import resolve_network, resolve_run


@pytest.mark.parametrize("options, stages", [
    ({}, ["read", "crop", "batch", "transfer", "all"]),
    ({"dataset": "synthetic", "train_crop": "none"}, ["read", "batch", "transfer", "all"]),
    ({"folder": True, "train_crop": "random_resized"}, ["read", "decode", "crop", "batch", "transfer", "all"]),
])  # fmt: skip
def test_a_row_a_stage(tmp_path, options, stages):
    config = base.get_config()
    if options.pop("folder", False):
        from PIL import Image

        for number in range(6):
            path = tmp_path / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (60, 40)).save(path)
        options["dataset"] = f"image_folder:{tmp_path}"
    config.update(options)
    config.batch_size = 16
    config = resolve_run(resolve_network(config), 10, 100)
    rows = measure_input(config, seconds=0.0)
    assert [row["stage"] for row in rows] == stages
    for row in rows:
        assert row["images_per_second"] >= row["images_per_second_per_core"] > 0
    memory = {row["stage"]: row["peak_memory_bytes"] for row in rows}
    image_bytes = 32 * 32 * config.channels
    assert memory["read"] is None and memory["transfer"] is None
    assert memory["all"] == memory["batch"] + (config.prefetch_batches + 1) * 16 * image_bytes
