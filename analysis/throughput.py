"""The speed of a network: one row of the benchmark, measured on the programs that train.py and evaluate.py run.

- train: the training step on a batch that is on the devices already; it is uint8, so normalisation is included.
- infer: the network's logits for such a batch.
- real: the training step, fed from the dataset as in training.
"""

import contextlib
import gc
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import input_pipeline
import models
from analysis import layer_times, memory, nvidia_smi, timing
from analysis.costs import count_bytes, count_flops
from analysis.roofline import Ceilings, data_sheet_peak
from analysis.rows import Row
from training import configuration
from training.environment import describe_environment
from training.inference import make_apply
from training.platform import compiler_options, out_of_memory
from training.program import make_program
from training.state import count_parameters, make_mesh, make_model, select
from training.step import Batch, make_train_step

# So small that the weights stay near their initial values, because NaNs could change the time of a step.
LEARNING_RATE = 1e-6


class Work(NamedTuple):
    """A program and its arguments.

    Attributes:
      program: a jitted function.
      arguments: their shapes, types and shardings.
      begin: turns the compiled program into a function that runs it once more and returns an array to wait for.
      parameters: the number of trainable numbers.
      steps: the training steps of one run of the program.
      single: the same program for one step, to count its costs: the length of a loop is unknown to the trace.
    """

    program: Any
    arguments: tuple
    begin: Callable[[jax.stages.Compiled], Callable[[], Any]]
    parameters: int
    steps: int
    single: Any


def resolve(config: ConfigDict, mode: str) -> ConfigDict:
    """Returns a copy of the config with all values that a mode needs.

    Raises:
      ValueError: if an option does not fit the network, the devices or the dataset.
      FileNotFoundError: if the mode reads a dataset that is not there.
    """
    config = config.copy_and_resolve_references()
    reads_dataset = mode in ("real", "input")
    if not reads_dataset:
        config.dataset, config.cache = "synthetic", ""
        config.learning_rate = LEARNING_RATE
    if mode in ("infer", "input"):  # what needs neighbours or parts of a batch belongs to the training step
        config.update({"bn_virtual_batch_size": 0, "accumulation_steps": 1, "mixup_alpha": 0.0, "cutmix_alpha": 0.0})
    if mode == "infer":
        config.repeated_augmentation = 1
    # The size of a row counts as typed: it is never replaced by that of published weights.
    config = configuration.resolve_network(config, typed=["image_size"])
    classes, images = config.num_classes or models.get_entry(config.model).num_classes, config.batch_size
    if reads_dataset:
        dataset = input_pipeline.load_dataset(config, "train")
        classes, images = dataset.num_classes, len(dataset)
    return configuration.resolve_run(config, classes, images)


def measure(
    config: ConfigDict, mode: str, ceilings: Ceilings, limit_seconds: float, profile: pathlib.Path | None = None
) -> Row:
    """Measures one mode of a network.

    Args:
      config: from resolve.
      mode: train, infer or real.
      ceilings: the peaks of the devices, in the config's dtype.
      limit_seconds: the most time for the iterations.
      profile: a folder for a profile of some steps after the measured ones, which adds the time of each kind of layer
        to the row.

    Raises:
      MemoryError: if the program would not fit; nothing was allocated.
      jax.errors.JaxRuntimeError: if the program failed; with RESOURCE_EXHAUSTED if it did not fit.
    """
    start, peak, mesh = time.perf_counter(), memory.PeakMemory(), make_mesh()
    waits: list[float] = []
    dataset = input_pipeline.load_dataset(config, "train") if mode == "real" else None
    cache = input_pipeline.DeviceCache(dataset, config, mesh) if dataset and config.cache else None
    if dataset and not cache:
        batches = _real_batches(dataset, config, mesh, waits)
    else:
        batches = _cached_batches(cache, config) if cache else _synthetic_batches(config, mesh)
    with contextlib.closing(batches):
        work = _inference(config, mesh, batches) if mode == "infer" else _training(config, mesh, batches, cache)
        compile_start = time.perf_counter()
        traced = work.program.trace(*work.arguments)
        compiled = traced.lower().compile()
        compile_seconds = time.perf_counter() - compile_start
        memory.check_fit(compiled)
        step = work.begin(compiled)
        jax.block_until_ready(step())
        first_step_seconds = time.perf_counter() - start
        with nvidia_smi.measuring_power() as power:
            seconds = timing.time_iterations(step, limit_seconds)
        waited = float(sum(waits[-len(seconds) :]) / seconds.sum()) if mode == "real" else None
        device_bytes, source = peak.device(compiled)
        shares = layer_times.measure(step, compiled, config, profile) if profile else {}

    row = timing.describe(seconds / work.steps, config.batch_size)
    jaxpr = (traced if work.steps == 1 else work.single.trace(*work.arguments)).jaxpr.jaxpr
    flops, moved = (count(jaxpr) / config.batch_size for count in (count_flops, count_bytes))
    achieved = flops * row["images_per_second"]
    promised = data_sheet_peak(jax.devices()[0].device_kind, config.dtype, config.tf32)
    return (
        row
        | {
            "input_wait_share": waited,
            "compile_seconds": compile_seconds,
            "first_step_seconds": first_step_seconds,
            "peak_memory_bytes": device_bytes,
            "peak_memory_source": source,
            "peak_host_memory_bytes": peak.host(),
            "parameters": work.parameters,
            "flops_per_image": flops,
            "bytes_per_image": moved,
            "roofline_share": achieved / ceilings.attainable(flops, moved),
            "mfu": achieved / (promised * mesh.size) if promised else None,
            "ceiling_flops_per_second": ceilings.flops_per_second,
            "ceiling_bytes_per_second": ceilings.bytes_per_second,
            "watts": power.watts,
            "images_per_second_per_watt": power.watts and row["images_per_second"] / power.watts,
        }
        | shares
    )


def make_step(config: ConfigDict, mode: str) -> tuple[Callable[[], Any], int]:
    """Compiles a mode's program for a synthetic batch, for other benchmarks.

    Args:
      config: from resolve.
      mode: train or infer.

    Returns:
      A function that runs it once more and returns an array to wait for; and the number of parameters.
    """
    mesh = make_mesh()
    batches = _synthetic_batches(config, mesh)
    work = _inference(config, mesh, batches) if mode == "infer" else _training(config, mesh, batches, None)
    return work.begin(work.program.trace(*work.arguments).lower().compile()), work.parameters


def guarded(measured: Callable[[], list[Row]]) -> list[Row]:
    """Returns the rows with the status ok, or if measuring failed one row with the status out_of_memory or error.

    The failure of one network does not end the benchmark, and leaves no arrays in memory.
    """
    try:
        return [{"status": "ok", "error": None} | row for row in measured()]
    except Exception as error:
        name = "" if isinstance(error, (ValueError, MemoryError)) else f"{type(error).__name__}: "
        message = f"{name}{' '.join(str(error).split())}"[:300]
        full = isinstance(error, MemoryError) or out_of_memory(error)
        return [{"status": "out_of_memory" if full else "error", "error": message}]
    finally:
        gc.collect()
        jax.clear_caches()


def largest_batch_size(attempt: Callable[[int], Row], first: int, smallest: int, multiple: int) -> Iterator[Row]:
    """Yields a row for each batch size that is tried in search of the largest that fits, within 1/8.

    The search doubles or halves, then bisects.

    Args:
      attempt: measures a batch size; the row's status is ok, out_of_memory or error.
      first: the batch size to begin with.
      smallest: the least batch size to try.
      multiple: batch sizes between two others are multiples of this.
    """
    fits, full, size = 0, 0, first  # 0: no batch size known that fits, or that does not
    while size:
        yield (row := attempt(size))
        if row["status"] == "ok":
            fits = size
        elif row["status"] == "out_of_memory":
            full = size
        else:
            return
        if not full:
            size = 2 * fits
        elif not fits:
            size = full // 2 if full // 2 >= smallest else 0
        else:
            between = (fits + full) // 2 // multiple * multiple
            size = between if full - fits > fits / 8 and between > fits else 0


def describe_machine() -> Row:
    """Returns the columns that say where a row was measured: hardware, driver, versions, compiler flags, git commit."""
    environment = describe_environment()
    hardware = environment["hardware"]
    row = {
        "platform": hardware["platform"],
        "device": hardware["devices"][0],
        "device_count": len(hardware["devices"]),
        "processor": hardware["processor"],
        "cpu_cores": hardware["cpu_cores"],
        "driver": nvidia_smi.driver_version(),
        "git_commit": environment["git_commit"],
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "libtpu_init_args": os.environ.get("LIBTPU_INIT_ARGS"),
    }
    return row | {f"{name.replace('-', '_')}_version": value for name, value in environment["versions"].items()}


def _training(
    config: ConfigDict, mesh: Mesh, batches: Iterator[Batch], cache: input_pipeline.DeviceCache | None
) -> Work:
    """Returns the same step that train.py runs or, if the dataset is on the devices, train.py's loop of steps."""
    program = make_program(config, mesh, steps_per_epoch=config.num_steps / config.num_epochs, cache=cache)
    single = config.copy_and_resolve_references()
    single.steps_per_dispatch = 1
    single_step = make_train_step(single, program.model, program.optimizer, mesh, cache)
    replicated, _ = _shardings(mesh)

    def begin(compiled: jax.stages.Compiled) -> Callable[[], Any]:
        state, sums = program.place(program.initial_state()), program.zero_sums()

        def step() -> Any:
            nonlocal state, sums
            state, sums = compiled(state, sums, next(batches) | program.constants)
            return sums

        return step

    arguments = program.target, _abstract(program.sums, replicated), program.abstract_batch()
    parameters, steps = count_parameters(program.target["params"]), config.steps_per_dispatch if cache else 1
    return Work(program.train_step, arguments, begin, parameters, steps, single_step)


def _inference(config: ConfigDict, mesh: Mesh, batches: Iterator[Batch]) -> Work:
    """Returns the program of the logits, which adds them to the previous ones so that only one batch runs at a time."""
    model = make_model(config, training=False)
    apply, (replicated, split) = make_apply(config, model), _shardings(mesh)
    variables = [nnx.to_pure_dict(part) for part in nnx.state(model, nnx.Param, nnx.BatchStat)]

    def infer(params, batch_stats, total, images):
        return total + apply(params, batch_stats, images)

    images = _abstract_batch(config, mesh)["image"]
    variables = tuple(_abstract(part, replicated) for part in variables)
    total = _abstract(jax.eval_shape(apply, *variables, images), split)
    program = jax.jit(
        infer,
        in_shardings=(replicated, replicated, split, split),
        out_shardings=split,
        compiler_options=compiler_options(config),
    )

    def begin(compiled: jax.stages.Compiled) -> Callable[[], Any]:
        values = models.initial_values(model, config.seed)
        params, batch_stats = (jax.device_put(select(values, part), replicated) for part in variables)
        logits = jax.device_put(np.zeros(total.shape, total.dtype), split)

        def step() -> Any:
            nonlocal logits
            logits = compiled(params, batch_stats, logits, next(batches)["image"])
            return logits

        return step

    return Work(program, (*variables, total, images), begin, count_parameters(variables[0]), 1, program)


def _synthetic_batches(config: ConfigDict, mesh: Mesh) -> Generator[Batch]:
    """The same random batch repeatedly; it is put on the devices once, when the first one is taken."""
    random = np.random.default_rng(config.seed)
    image, label = _abstract_batch(config, mesh).values()
    batch = {
        "image": random.integers(0, 256, image.shape, image.dtype),
        "label": random.integers(0, config.num_classes, label.shape, label.dtype),
    }
    batch = jax.device_put(batch, image.sharding)
    while True:
        yield batch


def _real_batches(
    dataset: input_pipeline.Dataset, config: ConfigDict, mesh: Mesh, waits: list[float]
) -> Generator[Batch]:
    """The batches of the dataset as in train.py; appends the seconds of waiting for each to waits."""
    batches = input_pipeline.train_batches(dataset, config)
    with input_pipeline.to_device(batches, mesh, config.prefetch_batches) as batches:
        while True:
            before = batches.wait_seconds
            batch = next(batches)
            waits.append(batches.wait_seconds - before)
            yield batch


def _cached_batches(cache: input_pipeline.DeviceCache, config: ConfigDict) -> Generator[Batch]:
    """The arguments of consecutive calls of the step for a dataset that is on the devices; no call waits for input."""
    yield from cache.batches(0, itertools.count(config.steps_per_dispatch, config.steps_per_dispatch))


def _abstract_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    shape, (_, split) = (config.batch_size, config.image_size, config.image_size, config.channels), _shardings(mesh)
    return {
        "image": jax.ShapeDtypeStruct(shape, np.uint8, sharding=split),
        "label": jax.ShapeDtypeStruct(shape[:1], np.int32, sharding=split),
    }


def _abstract(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Replicated on every device, and split over the devices along the first axis."""
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
