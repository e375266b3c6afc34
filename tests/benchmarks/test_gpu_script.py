"""benchmarks/gpu.sh in reduced size on a CPU, with a program that answers as PyTorch's side does."""

import json
import os
import subprocess
import sys

import pytest
from program import COMPILE_QUICKLY, ROOT

PARTS = ["pytorch", "variants", "profile", "vgg16", "vit", "others", "inference", "more", "cache"]
# The parameters that torchvision and timm count; our side refuses other numbers.
STUB = f"""#!{sys.executable}
import json, sys
parameters = {{"resnet50": 25557032, "resnet18": 11689512}}.get(sys.argv[4])
print(json.dumps({{"torch_version": "none", "torch_device": "cpu", "parameters": parameters}}), flush=True)
for line in sys.stdin:
    print(json.dumps({{"seconds": 0.5}}), flush=True)
"""


def run(*words, **environment):
    command = ["sh", "benchmarks/gpu.sh", *map(str, words)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": COMPILE_QUICKLY, "SMALL": "1"} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_the_parts_are_listed_and_others_are_refused(tmp_path):
    assert [line.split()[0] for line in run("--list").stdout.splitlines()] == PARTS
    refused = run(tmp_path, "everything")
    assert refused.returncode == 2 and "there is no part everything" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_each_part_writes_its_rows(part, tmp_path):
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    done = run(tmp_path / "out", part, PYTHON=sys.executable, TORCH_PYTHON=str(stub))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert len(rows.get("step_options", [])) == {"variants": 8, "vgg16": 1, "vit": 1}.get(part, 0)
    assert len(rows.get("against_pytorch", [])) == {"variants": 0, "profile": 0, "vit": 0, "more": 2, "cache": 0}.get(
        part, 1
    )
    assert len(rows.get("throughput", [])) == (part == "profile")
    assert all(
        row.get("status", "ok") == "ok" and row["images_per_second"] > 0 for found in rows.values() for row in found
    )
    if part == "cache":
        assert (tmp_path / "out" / "cache" / "second" / "summary.json").exists()
    if part == "profile":
        assert (tmp_path / "out" / "slowest_operations.txt").stat().st_size
