"""The table of single convolutions has those of the paper, in each direction."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_has_the_convolutions_of_lenet5(tmp_path):
    """LeCun 1998, section II.B: 5x5 kernels from 1 to 6, 16 and 120 features, on maps of 32, 14 and 5 pixels."""
    words = ["--models=lenet5", "--batch_size=2", "--rounds=1", "--seconds=0.0001", f"--json={tmp_path / 'rows.json'}"]
    program = str(ROOT / "benchmarks" / "convolutions.py")
    for _ in range(2):  # the second time replaces the rows of the first
        subprocess.run([sys.executable, program, *words], check=True, capture_output=True)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["maps"], row["kernel"]) for row in rows if row["direction"] == "forward"] == [
        ("2x32x32x1", "5x5x1x6"),
        ("2x14x14x6", "5x5x6x16"),
        ("2x5x5x16", "5x5x16x120"),
    ]
    # The gradient of the image is not needed.
    assert [row["direction"] for row in rows].count("input gradient") == 2
    assert [row["direction"] for row in rows].count("kernel gradient") == 3
    # 28 x 28 outputs of 5 x 5 x 1 products, for 6 features and 2 images, counted as multiplication and addition.
    first = rows[0]
    assert round(first["flops_per_second"] * first["ours_seconds"]) == 2 * 2 * 28 * 28 * 25 * 6
