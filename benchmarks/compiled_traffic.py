"""Counts the bytes that training steps move through a GPU's memory, from compiled programs; it needs no GPU.

python benchmarks/compiled_traffic.py --models=resnet50,vgg16 [--json=FILE] compiles the product's own step for the GPU
that --target describes and lists its kernels, the bytes that they read and write, and the least time that they take at
the device's rates of copying and multiplying. It needs `pip install "jax[cuda13]"`. Without a GPU XLA cannot autotune,
so the programs have its default kernels and cuBLAS's products; benchmark.py measures the speed on a real machine.

--recipes=resnet50_a1,resnet50_tv2 compiles the steps of recipes instead, at each size of their images, and also lists
the least hours of the whole run and the memory that it needs.
"""

import importlib
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

import models
from analysis import memory, tables
from analysis import rows as row_files
from analysis.compiled_traffic import ROLES, SMALL, bound_seconds, bytes_by_role, find_kernels, target_mesh
from analysis.costs import count_bytes
from analysis.rows import Row
from benchmarks.commands import own_command
from configs import base
from training import command_line, configuration
from training.environment import describe_environment
from training.program import make_program

NETWORKS = ["resnet50", "vgg16", "googlenet_bn_3x3", "inception_v3", "densenet121", "mobilenet_v1"]

IMAGES = {"imagenet2012": (1_281_167, 1000), "imagenette/160px-v2": (9_469, 10)}  # of the training split, and classes

_RECIPES = flags.DEFINE_list("recipes", [], "Recipes, in place of --models; with their own batch, images and type.")
_MODELS = flags.DEFINE_list("models", NETWORKS, "Names of models.REGISTRY.")
_TARGET = flags.DEFINE_string("target", str(ROOT / "benchmarks/h200.txtpb"), "A file with XLA's description of a GPU.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images a step.", lower_bound=1)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Pixels a side; default: the network's own.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Data type of the computation.")
# The defaults were measured on an H100: the copy of a large array, and a bfloat16 product of 8192 x 8192 matrices.
_BYTES = flags.DEFINE_float("bytes_per_second", 3.0e12, "Rate at which the GPU copies, read and written.")
_FLOPS = flags.DEFINE_float("flops_per_second", 790e12, "Rate at which the GPU multiplies matrices of the dtype.")
_JSON = flags.DEFINE_string("json", None, "A file for the rows, and of those of other networks.")


def model_config(model: str) -> ConfigDict:
    """Returns the options of a single step of a network."""
    config = base.get_config()
    config.update({"model": model, "num_classes": models.get_entry(model).num_classes, "dtype": _DTYPE.value})
    config.update({"batch_size": _BATCH_SIZE.value, "image_size": _IMAGE_SIZE.value, "weight_decay": 1e-4})
    config.num_steps = 1
    return configuration.resolve_network(config)


def recipe_config(recipe: str) -> ConfigDict:
    """Returns the resolved options of a recipe; its batches come from the host."""
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.cache = ""
    images, classes = IMAGES[config.dataset]
    return configuration.resolve_run(configuration.resolve_network(config), classes, images)


def measure_recipe(recipe: str, mesh: Mesh) -> list[Row]:
    """Compiles the training step of a recipe at each size of its images and returns a row for each."""
    config = recipe_config(recipe)
    program = make_program(config, mesh, IMAGES[config.dataset][0] / config.batch_size)
    begins = [*program.image_sizes, config.num_steps]
    rows = []
    for first, stop, size in zip(begins, begins[1:], program.image_sizes.values(), strict=False):
        row = measure(config, mesh, size)
        rows.append({"recipe": recipe, **row, "steps": stop - first, "hours": (stop - first) * row["bound_ms"] / 3.6e6})
    return rows


def measure(config: ConfigDict, mesh: Mesh, image_size: int) -> Row:
    """Compiles a training step and returns its row."""
    traced = make_program(config, mesh, steps_per_epoch=1).trace(image_size)
    # Triton's products need tilings that only a run on a GPU can choose. For some, as in ViT, XLA has no default, so
    # products are cuBLAS's.
    compiled = traced.lower().compile({"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False})
    kernels = find_kernels(compiled.as_text())
    seconds = bound_seconds(kernels, _BYTES.value, _FLOPS.value)
    return {
        "model": config.model,
        "target": pathlib.Path(_TARGET.value).stem,
        "batch_size": config.batch_size,
        "image_size": image_size,
        "dtype": config.dtype,
        "kernels": len(kernels),
        "small_kernels": sum(kernel.moved < SMALL for kernel in kernels),
        "gigabytes": sum(kernel.moved for kernel in kernels) / 1e9,
        "least_gigabytes": count_bytes(traced.jaxpr.jaxpr) / 1e9,
        "bound_ms": 1e3 * seconds,
        "bound_images_per_second": config.batch_size / seconds,
        "memory_gigabytes": compiled.memory_analysis().temp_size_in_bytes / 1e9,
        "total_gigabytes": memory.compiled_bytes(compiled) / 1e9,
        "gigabytes_by_role": {role: moved / 1e9 for role, moved in bytes_by_role(kernels).items()},
        "bytes_per_second": _BYTES.value,
        "flops_per_second": _FLOPS.value,
    }


def recipe_line(recipe: str, rows: list[Row]) -> list[str]:
    """Returns a recipe's line of the table in docs/recipes.md."""
    own = [row for row in rows if row["recipe"] == recipe]
    hours, images = sum(row["hours"] for row in own), sum(row["steps"] * row["batch_size"] for row in own)
    sizes, needed = ", ".join(str(row["image_size"]) for row in own), max(row["total_gigabytes"] for row in own)
    parts, unit = (1, "h") if hours >= 1 else (60, "min") if hours >= 1 / 60 else (3600, "s")
    rate = images / (3600 * hours)
    return [
        f"`{recipe}`",
        sizes,
        f"{own[0]['batch_size']:,}",
        f"{hours * parts:.1f} {unit}",
        f"{rate:,.0f}",
        f"{needed:.1f}",
    ]


def main() -> None:
    """Compiles, prints tables, writes JSON."""
    with command_line.refusing_bad_input():
        if _JSON.value:
            row_files.check_file("json", _JSON.value)
        for model in _MODELS.value:
            models.get_entry(model)
        for recipe in _RECIPES.value:
            recipe_config(recipe)
        mesh = target_mesh(pathlib.Path(_TARGET.value))
    environment = describe_environment()
    command = {"command": own_command(), "git_commit": environment["git_commit"]}
    command |= {f"{name}_version": version for name, version in environment["versions"].items()}
    rows: list[Row] = []
    for name in _RECIPES.value or _MODELS.value:
        if _RECIPES.value:
            found = measure_recipe(name, mesh)
        else:
            config = model_config(name)
            found = [measure(config, mesh, config.image_size)]
        rows += [row | command for row in found]
        for row in rows[-len(found) :] if _JSON.value else ():
            same = ("recipe", "model", "target", "batch_size", "image_size", "dtype")
            row_files.record(pathlib.Path(_JSON.value), row, [key for key in same if key in row])
        jax.clear_caches()
    headings = [
        "network",
        "pixels",
        "kernels",
        "under 4 MB",
        "GB",
        "analytic minimum",
        "bound (ms)",
        "images/s",
        "memory (GB)",
    ]
    lines = []
    for row in rows:
        counts = f"{row['kernels']:,}", f"{row['small_kernels']:,}"
        sizes = (f"{row[key]:.1f}" for key in ("gigabytes", "least_gigabytes", "bound_ms"))
        rate = f"{row['bound_images_per_second']:,.0f}"
        lines.append([row["model"], str(row["image_size"]), *counts, *sizes, rate, f"{row['memory_gigabytes']:.1f}"])
    tables.print_boxed(headings, lines)
    if _RECIPES.value:
        headings = ["recipe", "pixels", "images a step", "least time", "images/s", "memory of the step (GB)"]
        command_line.say(tables.markdown(headings, [recipe_line(name, rows) for name in _RECIPES.value]))
    lines = [[role, *(f"{row['gigabytes_by_role'][role]:.2f}" for row in rows)] for role in ROLES]
    tables.print_boxed(["gigabytes by role", *(row["model"] for row in rows)], lines)


if __name__ == "__main__":
    command_line.run(main)
