"""Trains a network: python train.py --config=configs/resnet50.py [--config.option=value ...] [--workdir=DIR].

The same command goes on where it stopped. Exit codes: 0 done; 2 bad flags, config or data; 3 training failed; 130 and
143 after SIGINT and SIGTERM, with a checkpoint saved.
"""

import collections
import pathlib
from collections.abc import Callable, Iterator

import jax
from absl import flags
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict, config_flags

import input_pipeline
from training import command_line, configuration
from training.checkpoints import Checkpoints, has_checkpoints
from training.evaluation import evaluate
from training.interruption import Interruption
from training.loss import zero_sums
from training.metrics import RunLog, write_summary
from training.optimizer import make_optimizer, make_schedule
from training.platform import join_processes, prepare_platform
from training.state import State, abstract_state, count_parameters, create_state, make_mesh, make_model
from training.step import make_eval_step, make_train_step
from training.transfer import initialize_from

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default: runs/ + config + overrides.")
flags.mark_flag_as_required("config")


def main() -> int:
    """Runs the program; returns its exit code."""
    join_processes()
    flag = flags.FLAGS["config"]
    path, overrides = config_flags.get_config_filename(flag), config_flags.get_override_values(flag)
    workdir = pathlib.Path(_WORKDIR.value or configuration.default_workdir(path, overrides))
    if "model" in overrides and (recipe := configuration.own_recipe(_CONFIG.value.model, path)):
        print(f"note: {_CONFIG.value.model} has a recipe of its own: --config={recipe}")
    with Interruption() as interruption:
        try:
            train(_CONFIG.value, workdir, interruption)
        except FloatingPointError as error:
            steps = Checkpoints(workdir, read_only=True).steps()
            kept = (
                f"the last good checkpoint is {workdir}/checkpoints/{steps[-1]}"
                if steps
                else "no checkpoint was due yet"
            )
            command_line.fail(f"{error}; {kept}; try a lower learning_rate, a warm-up or gradient_clip_norm")
        except input_pipeline.DamagedImageError as error:
            command_line.refuse(str(error))
    return interruption.exit_code


def train(config: ConfigDict, workdir: pathlib.Path, interruption: Interruption) -> None:
    """Trains from the newest checkpoint of the workdir, or from the beginning, to the last step.

    Args:
      config: options as typed; natural values are filled in here.
      workdir: where everything of the run is kept.
      interruption: once it is true, the run saves and stops.

    Raises:
      SystemExit: with code 2, on a config or a dataset that will not do; nothing is written.
      FloatingPointError: if the loss or a parameter is no longer finite.
      input_pipeline.DamagedImageError: if an image cannot be decoded.
    """
    with command_line.refusing_bad_input():
        config = configuration.resolve_network(config)
        train_data, eval_data = (input_pipeline.load_dataset(config, split) for split in ("train", "eval"))
        config = configuration.resolve_run(config, train_data.num_classes, len(train_data))
        configuration.check_workdir(workdir, config)
        if (workdir / "summary.json").exists():
            return print(f"{workdir} is finished, as its summary.json says; a new run needs another --workdir")

    prepare_platform(config)
    mesh = make_mesh()
    steps_per_epoch = len(train_data) / config.batch_size
    schedule = make_schedule(config, steps_per_epoch)
    optimizer = make_optimizer(config, schedule)
    model = make_model(config, training=True)
    eval_step = make_eval_step(config, make_model(config, training=False), mesh)
    no_sums = jax.device_put(zero_sums(len(config.aux_heads)), NamedSharding(mesh, PartitionSpec()))
    learning_rate = jax.jit(lambda steps_done: schedule(steps_done - 1))

    with command_line.refusing_bad_input():
        cache = input_pipeline.DeviceCache(train_data, config, mesh) if config.cache else None
        cached_eval_batches = input_pipeline.cached_eval_batches(eval_data, config, mesh) if config.cache else None
        target = abstract_state(config, model, optimizer, mesh)
        state = None if has_checkpoints(workdir) else start_state(config, target, model, mesh)
        configuration.write_config(workdir, config, train_data.class_names)
        checkpoints = Checkpoints(workdir, config.keep_checkpoints)
        state = state or checkpoints.restore(target)
    start = int(state["step"])
    train_step = make_train_step(config, model, optimizer, mesh, cache)

    def evaluation_is_due(step):
        return step == config.num_steps or is_due(step, config.evaluate_every_epochs * steps_per_epoch)

    def save_is_due(step):
        best_may_be = config.keep_best and evaluation_is_due(step)
        return best_may_be or step == config.num_steps or is_due(step, config.checkpoint_every_steps)

    def stop_is_due(step):
        return evaluation_is_due(step) or save_is_due(step) or is_due(step, config.log_every_steps)

    def evaluate_state():
        variables = state.get("ema", state["params"]), state["batch_stats"]
        if cache:
            return evaluate(eval_step, *variables, cached_eval_batches, interruption)
        batches = input_pipeline.eval_batches(eval_data, config)
        with input_pipeline.to_device(batches, mesh, config.prefetch_batches) as batches:
            return evaluate(eval_step, *variables, batches, interruption)

    if cache:
        print(f"cache: {len(train_data):,} images, {cache.num_bytes / 2**20:,.1f} MiB on each device")
        steps = list(last_steps(config, start, stop_is_due))
        batches = cache.batches(start, steps)
    else:
        steps = range(start + 1, config.num_steps + 1)
        batches = input_pipeline.train_batches(train_data, config, start_step=start, num_steps=config.num_steps)
        batches = input_pipeline.to_device(batches, mesh, config.prefetch_batches)
        print(f"input: {batches.host.threads} threads, at most {batches.num_bytes / 2**20:,.1f} MiB of batches")

    with RunLog(workdir, config, len(train_data), start) as log, batches, checkpoints:
        if start and evaluation_is_due(start) and not log.evaluated(start):  # a signal came in its midst
            metrics = evaluate_state()
            if metrics is None:
                return
            log.evaluation(start, eval_data.split, metrics)

        sums, in_flight = no_sums, collections.deque()
        for step in steps:
            state, sums = train_step(state, sums, next(batches))
            # The host runs ahead by no more calls than batches are kept ready: what it then waits for is the input.
            in_flight.append(sums)
            if len(in_flight) > config.prefetch_batches or step == start + 1:
                jax.block_until_ready(in_flight.popleft())
            log.advance(step, batches.wait_seconds)

            if not (stop_is_due(step) or interruption):
                continue
            interruption.agree()
            log.training(step, jax.device_get(sums), jax.device_get(learning_rate(state["step"])), batches.wait_seconds)
            sums, metrics = no_sums, None
            if evaluation_is_due(step) and not interruption:
                log.status("evaluating")
                metrics = evaluate_state()
                if metrics:
                    log.evaluation(step, eval_data.split, metrics)
            stopping = bool(interruption)
            if save_is_due(step) or stopping:
                log.status("saving")
                checkpoints.save(state, metrics)
            if stopping:
                return
            log.restart_clock(step, batches.wait_seconds)

        bad_images = input_pipeline.count_bad_images(batches.host, train_data)
        checkpoints.wait()  # a summary says that the run is finished, its last checkpoint included
        write_summary(workdir, config, log, count_parameters(state["params"]), len(eval_data), bad_images)
    log.farewell()


def start_state(config: ConfigDict, target: State, model: nnx.Module, mesh: Mesh) -> State:
    """Returns the state before the first step: initial values, or the weights of config.init_from."""
    state = create_state(target, model, config.seed)
    if config.init_from:
        state, new = initialize_from(state, pathlib.Path(config.init_from), mesh)
        print(f"weights are those of {config.init_from}, but for {', '.join(new) or 'nothing'}")
    return state


def last_steps(config: ConfigDict, start: int, stop_is_due: Callable[[int], bool]) -> Iterator[int]:
    """Yields the last step of each call where one takes several: a log, evaluation or checkpoint ends it early.

    The first call takes one step, after which the speed is measured.
    """
    step = start
    while step < config.num_steps:
        most = min(step + (config.steps_per_dispatch if step > start else 1), config.num_steps)
        inner = range(step + 1, most)
        step = next((n for n in inner if stop_is_due(n)), most)
        yield step


def is_due(step: int, period: float) -> bool:
    """Whether a multiple of the period, a fraction maybe, lies in (step - 1, step]; a period of 0 is never due."""
    return period > 0 and step // period > (step - 1) // period


if __name__ == "__main__":
    command_line.run(main)
