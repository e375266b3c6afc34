"""Reads the collectives of compiled training steps, and estimates the efficiency that they allow.

python benchmarks/scaling.py [--target=cpu] [--json=FILE] compiles the step of train.py for 8, 64 and 1,024 devices,
which need not exist. It lists the collectives and the memory of a device, and compares the time of the collectives on
several kinds of links with the time of a step on one device. For the networks that were measured on a GPU it also says
what a host with eight of them needs. Rows of the JSON file with the same setting and versions are kept, so that
--models=NAME can compile one network after the other.

--target=cpu: virtual devices of this machine. A CPU does not send bfloat16.
--target=tpu: slices of TPU v5p, with the compiler for TPUs; needs `pip install "jax[tpu]"`, and no TPU.
--target=benchmarks/h200.txtpb: GPUs from XLA's description of one (its sources have more, in
xla/backends/gpu/target_config/specs), with the compiler for GPUs; needs `pip install "jax[cuda13]"`, and no GPU.
"""

import itertools
import json
import os
import pathlib
import re
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
# Set before JAX starts: many virtual devices, little optimisation of kernels that never run, no search for a TPU.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1024 --xla_backend_optimization_level=0"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"

import jax
import numpy as np
from absl import flags
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

import models
from analysis import memory, tables
from analysis import rows as row_files
from analysis.collectives import FABRICS, communication_seconds, efficiency, find_collectives
from analysis.summary import trace_train_step
from benchmarks.commands import own_command
from configs import base
from training import command_line, configuration
from training.environment import describe_environment
from training.state import make_mesh
from training.workdir import write_atomically

NETWORKS = ["alexnet", "vgg16", "googlenet", "inception_v3", "resnet50", "densenet121", "mobilenet_v1"]
NETWORKS += ["vit_b_16"]
OPTIMIZERS = {"vit_b_16": "adamw"}  # others: sgd with momentum
TPU_SLICES = {8: "v5p:2x2x2", 64: "v5p:4x4x4", 1024: "v5p:8x8x16"}

# Columns of the table of efficiencies: how many devices, and what connects them. A program's collectives depend on the
# number of devices in no case that was compiled, so the times of 64 and 1,024 devices follow from those of 8.
GPUS, TPUS, *ETHERNETS = FABRICS
COLUMNS = {f"{devices:,} GPUs": (devices, GPUS) for devices in (8, 64, 1024)}
COLUMNS |= {f"1,024 {TPUS}": (1024, TPUS)} | {f"1,024 at {name}": (1024, name) for name in ETHERNETS}

# ILSVRC2012_img_train.tar, and the files in it.
IMAGENET_BYTES, IMAGENET_IMAGES = 147_897_477_120, 1_281_167

_MODELS = flags.DEFINE_list("models", NETWORKS, "Names of models.REGISTRY.")
_SHARDED = flags.DEFINE_list("sharded", ["vgg16", "vit_b_16"], "Networks that also get rows with shard_params.")
_STATISTICS = flags.DEFINE_list(
    "bn_virtual_batch_size", ["32", "0"], "Images over which batch normalisation takes statistics; 0: the whole batch."
)
_DEVICES = flags.DEFINE_list("devices", ["8", "64", "1024"], "Numbers of devices, at most 1,024 each.")
_TARGET = flags.DEFINE_string("target", "cpu", "cpu, tpu, or a file with XLA's description of a GPU.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "The data type of the computation.")
_IMAGES = flags.DEFINE_integer(
    "images_per_device", 256, "Images of a step per device, a multiple of 32.", lower_bound=32
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels a side; default: the network's. It changes no collective."
)
_STEP_MS = flags.DEFINE_list("step_ms", ["25", "100"], "Milliseconds of a step on a device alone, to compare with.")
_JSON = flags.DEFINE_string("json", None, "A file for the figures.")


def target_mesh(devices: int) -> Mesh:
    """Returns a mesh of that many of the target's devices; raises ValueError or OSError if the target has none."""
    if _TARGET.value == "cpu":
        if devices > jax.device_count():
            raise ValueError(f"--devices={devices} is more than the {jax.device_count():,} of --target=cpu; give less")
        return make_mesh(devices)
    if _TARGET.value == "tpu":
        if devices not in TPU_SLICES:
            raise ValueError(
                f"--devices={devices} is no slice of --target=tpu; choose {', '.join(map(str, TPU_SLICES))}"
            )
        topology = topologies.get_topology_desc(TPU_SLICES[devices], platform="tpu")
    else:
        if not pathlib.Path(_TARGET.value).is_file():
            raise FileNotFoundError(f"--target={_TARGET.value} is no file; give cpu, tpu or benchmarks/h200.txtpb")
        description = pathlib.Path(_TARGET.value).read_text()
        if devices % 8:
            raise ValueError(f"--devices={devices} fills no machines of 8 GPUs; give a multiple of 8")
        shape = f"1x{devices // 8}x8"  # machines of 8 GPUs
        topology = topologies.get_topology_desc(shape, platform="cuda", topology=shape, target_config=description)
    return Mesh(np.array(topology.devices), ("data",), axis_types=(AxisType.Auto,))


def list_cases() -> list[tuple[ConfigDict, Mesh]]:
    """Returns the options and the devices of each row; raises ValueError or OSError if a flag is invalid."""
    if _JSON.value:
        row_files.check_file("json", _JSON.value)
    if _IMAGES.value % 32:
        raise ValueError(f"--images_per_device={_IMAGES.value} is no multiple of 32")
    if wrong := [word for word in _STATISTICS.value if word not in ("0", "32")]:
        raise ValueError(f"--bn_virtual_batch_size={wrong[0]} is not 32 or 0")
    for flag, words, pattern in (("devices", _DEVICES.value, r"\d+"), ("step_ms", _STEP_MS.value, r"\d*\.?\d+")):
        for word in words:
            if not re.fullmatch(pattern, word) or not float(word):
                raise ValueError(f"--{flag}={word} is no number above 0; give one, or several with commas: 8,64")
    meshes, cases = [target_mesh(int(word)) for word in _DEVICES.value], []
    for model in _MODELS.value:
        normalised = nnx.to_flat_state(nnx.state(models.create_model(model, abstract=True), nnx.BatchStat)).leaves
        sharded = (False, True) if model in _SHARDED.value else (False,)
        for bn_virtual_batch_size, shard_params, mesh in itertools.product(
            map(int, _STATISTICS.value) if normalised else (0,), sharded, meshes
        ):
            config = base.get_config()
            config.update({"optimizer": OPTIMIZERS.get(model, "sgd"), "shard_params": shard_params})
            config.update({"model": model, "num_classes": 1000, "dtype": _DTYPE.value, "image_size": _IMAGE_SIZE.value})
            config.update({"bn_virtual_batch_size": bn_virtual_batch_size, "batch_size": _IMAGES.value * mesh.size})
            cases.append((configuration.resolve_network(config), mesh))
    return cases


def read_collectives(config: ConfigDict, mesh: Mesh) -> dict:
    """Returns a row: the collectives of a network's training step."""
    start = time.perf_counter()
    step = trace_train_step(config, mesh).lower()
    # Autotuning, and Triton's matrix products, would need a GPU; they change no collective.
    on_gpu = _TARGET.value not in ("cpu", "tpu")
    compiled = step.compile({"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False} if on_gpu else None)
    collectives = find_collectives(compiled.as_text())
    kinds = sorted({each.kind for each in collectives})
    return {
        "model": config.model,
        "bn_virtual_batch_size": config.bn_virtual_batch_size,
        "shard_params": config.shard_params,
        "devices": mesh.size,
        "state_bytes": compiled.memory_analysis().alias_size_in_bytes,  # the state is what the step takes and returns
        "device_bytes": memory.compiled_bytes(compiled),
        "compile_seconds": time.perf_counter() - start,
        "count": {kind: sum(each.repeats for each in collectives if each.kind == kind) for kind in kinds},
        "bytes": {kind: sum(each.repeats * each.bytes for each in collectives if each.kind == kind) for kind in kinds},
        "seconds": {
            name: communication_seconds(collectives, devices, FABRICS[links])
            for name, (devices, links) in COLUMNS.items()
        },
    }


def host_demand() -> list[dict]:
    """Returns what a host with eight GPUs takes from its loader and its storage, at rates that were measured.

    The rates are those of results/against_pytorch_gpu.json (one GPU, no loading) and of results/input_pipelines.json;
    a core of the loader is taken to need as much longer as ImageNet's files are larger.
    """
    gpu, loading = (
        json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        for name in ("against_pytorch_gpu", "input_pipelines")
    )
    ours = next(row for row in loading["rows"] if row["pipeline"] == "ours")
    kilobytes = IMAGENET_BYTES / IMAGENET_IMAGES / 1e3
    a_core = ours["images_per_second"] / ours["cores"] * ours["mean_kilobytes"] / kilobytes
    return [
        {
            "model": row["model"],
            "device": row["device"],
            "images_per_second": 8 * row["images_per_second"],
            "images_per_second_of_a_core": a_core,
            "cores": 8 * row["images_per_second"] / a_core,
            "gigabytes_per_second": 8 * row["images_per_second"] * kilobytes / 1e6,
            "device_hours_of_90_epochs": 90 * IMAGENET_IMAGES / row["images_per_second"] / 3600,
        }
        for row in gpu
        if row["mode"] == "train"
    ]


def main() -> None:
    """Compiles, prints tables, writes JSON after each program."""
    with command_line.refusing_bad_input():
        cases = list_cases()
    rows, demand = [], host_demand()
    for config, mesh in cases:
        rows.append(read_collectives(config, mesh))
        jax.clear_caches()
        if _JSON.value:
            write_json(rows[-1], demand)

    columns = "images/s of 8 GPUs", "cores to decode", "GB/s to read", "device hours of 90 epochs of ImageNet"
    lines = []
    for row in demand:
        figures = f"{row['images_per_second']:,.0f}", f"{row['cores']:,.0f}", f"{row['gigabytes_per_second']:.1f}"
        lines.append([row["model"], row["device"], *figures, f"{row['device_hours_of_90_epochs']:.1f}"])
    a_core = f"{demand[0]['images_per_second_of_a_core']:,.0f}"
    title = f"A host with 8 GPUs; a core decodes {a_core} of ImageNet's images in a second"
    tables.print_boxed(["network", "device", *columns], lines, title)

    names, lines = {0: "whole batch", 32: "32 images"}, []
    labels = "network", "state", "batch statistics", "devices"

    def label(row: dict) -> tuple[str, ...]:
        state = "sharded" if row["shard_params"] else "whole"
        return row["model"], state, names[row["bn_virtual_batch_size"]], f"{row['devices']:,}"

    for row in rows:
        counts = ", ".join(f"{count} {kind}" for kind, count in row["count"].items())
        megabytes = ", ".join(f"{row['bytes'][kind] / 1e6:,.2f}" for kind in row["count"])
        sizes = f"{row['state_bytes'] / 1e6:,.0f}", f"{row['device_bytes'] / 1e6:,.0f}"
        lines.append([*label(row), *sizes, counts, megabytes, f"{row['compile_seconds']:.0f}"])
    columns = "state, MB a device", "step, MB a device", "collectives", "MB", "seconds to compile"
    tables.print_boxed([*labels, *columns], lines)
    lines = []
    for row in (row for row in rows if row["devices"] == min(row["devices"] for row in rows)):
        cells = [
            [100 * efficiency(float(ms) / 1e3, row["seconds"][name])[0] for ms in _STEP_MS.value] for name in COLUMNS
        ]
        lines.append([*label(row)[:-1], *(" / ".join(f"{value:.0f}" for value in values) for values in cells)])
    title = f"Efficiency, %, without overlap of communication, if a step alone takes {' / '.join(_STEP_MS.value)} ms"
    tables.print_boxed([*labels[:-1], *COLUMNS], lines, title)


def write_json(row: dict, demand: list[dict]) -> None:
    """Adds a row to the file, or replaces the row of the same program, if the file has this setting and versions."""
    path, target = pathlib.Path(_JSON.value), pathlib.Path(_TARGET.value).stem
    setting = {"target": target, "dtype": _DTYPE.value, "images_per_device": _IMAGES.value}
    environment = describe_environment()
    setting |= {"image_size": _IMAGE_SIZE.value, "versions": environment["versions"]}
    before = json.loads(path.read_text()) if path.exists() else {}
    if any(before.get(name) != value for name, value in setting.items()):
        before = {"commands": [], "rows": []}
    program = ("model", "bn_virtual_batch_size", "shard_params", "devices")
    rows = [other for other in before["rows"] if any(other[name] != row[name] for name in program)]
    rows = sorted([*rows, row], key=lambda row: NETWORKS.index(row["model"]) if row["model"] in NETWORKS else 99)
    commands = list(dict.fromkeys([*before["commands"], own_command()]))
    content = {"commands": commands, "git_commit": environment["git_commit"], **setting}
    content |= {"rows": rows, "host_with_8_gpus": demand}
    write_atomically(path, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    command_line.run(main)
