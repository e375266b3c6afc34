"""Trains a network: python train.py --config=configs/resnet50.py [--config.option=value ...] [--workdir=DIR].

If a run stops, the same command resumes it. Exit codes: 0 done; 2 bad flags, config or data; 3 training failed; 4 the
machine failed, for example because the disk is full; 130 and 143 after SIGINT and SIGTERM, with a checkpoint saved.
"""

if __name__ == "__main__":
    import signal
    import sys

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback
    from training import lists

    lists.answer(sys.argv[1:])  # before the imports, which take seconds

import collections
import contextlib
import pathlib
import time
from collections.abc import Collection

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

import input_pipeline
from analysis import memory
from input_pipeline.files import is_remote
from input_pipeline.remote import copy_of
from input_pipeline.training_sizes import unused_sizes
from training import command_line, configuration, conversion, fine_tuning, published_weights
from training.checkpoints import Checkpoints, check_same_arrays, has_checkpoints, list_steps
from training.command_line import say
from training.configuration import smallest_batch
from training.distillation import load_teacher
from training.evaluation import evaluate_each
from training.feed import Feed
from training.interruption import Interruption
from training.metrics import RunLog, write_summary
from training.platform import out_of_memory, prepare_platform
from training.processes import check_same_work, check_shared, join_processes
from training.program import Program, make_program
from training.remote_workdir import kept_in_store, local_copy
from training.state import State, count_parameters, evaluated_variables, make_mesh
from training.step import Sums
from training.transfer import initialize_from, load_source
from training.workdir import (
    check_not_in_use,
    check_workdir,
    default_workdir,
    discard_unstarted,
    exclusive_run,
    nearest_folder,
    read_class_names,
    write_config,
)

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
_WORKDIR = flags.DEFINE(
    command_line.PATH_OR_URL,
    "workdir",
    None,
    "Folder of the run, or s3://bucket/folder or gs://bucket/folder; default: runs/RECIPE/OPTION=VALUE,...",
)
flags.DEFINE_bool("options", False, "Print every option with its default, unit and meaning, and exit.")
flags.DEFINE_bool("list_models", False, "Print the names of all networks, and exit.")
flags.DEFINE_bool("list_recipes", False, "Print the files of configs/ with what each trains, and exit.")
flags.DEFINE_bool("list_datasets", False, "Print the names of the datasets, and exit.")
flags.mark_flag_as_required("config")


def main() -> int:
    """Runs the program; returns its exit code."""
    with command_line.refusing_bad_input((ValueError,)):
        join_processes(_CONFIG.value.process_timeout_seconds)
    jax.config.update("jax_transfer_guard_host_to_device", "disallow")  # a hidden copy to the devices is an error
    flag, config = flags.FLAGS["config"], _CONFIG.value
    path, typed = config_flags.get_config_filename(flag), config_flags.get_override_values(flag)
    given = _WORKDIR.value or str(default_workdir(path, typed))
    url = given if is_remote(given) else None
    with command_line.refusing_bad_input((ValueError,)):
        workdir = copy_of(url, config.remote_cache_dir) if url else pathlib.Path(given)
    with Interruption() as interruption:
        try:
            with contextlib.ExitStack() as held:
                if url:
                    limits = config.remote_timeout_seconds, config.remote_upload_seconds
                    with command_line.refusing_bad_input((ValueError,)):
                        held.enter_context(kept_in_store(url, workdir, *limits, interruption.stop))
                train(config, workdir, interruption, typed, url)
        except FloatingPointError as error:
            advice = "try a lower learning_rate, a warm-up or gradient_clip_norm"
            command_line.fail(f"{error}; {last_good_checkpoint(workdir)}; {advice}")
        except input_pipeline.DamagedImageError as error:
            command_line.refuse(str(error))
        except jax.errors.JaxRuntimeError as error:
            if not (reason := out_of_memory(error)):
                raise
            discard_unstarted(workdir)
            command_line.refuse(
                f"batch_size={config.batch_size} does not fit into memory ({reason}); give a smaller one, or "
                "more accumulation_steps, which cut the batch"
            )
        except OSError as error:
            command_line.machine_failed(
                f"{error}; {last_good_checkpoint(workdir)}; once this is mended, the same command resumes the run"
            )
    return interruption.exit_code


def train(
    config: ConfigDict,
    workdir: pathlib.Path,
    interruption: Interruption,
    typed: Collection[str] = (),
    url: str | None = None,
) -> None:
    """Trains to the last step, from the newest checkpoint of the workdir, or from step 0 if there is none.

    Args:
      config: options as typed; this function fills in the defaults that depend on the network and the dataset.
      workdir: the folder for all files of the run.
      interruption: once it is true, the run saves a checkpoint and stops.
      typed: names of the options that were given on the command line.
      url: of the workdir, if the folder is this machine's copy of a remote one.

    Raises:
      SystemExit: with code 2, if the config or the dataset is invalid; nothing is written.
      FloatingPointError: if the loss or a parameter is no longer finite.
      OSError: if the workdir or the dataset can no longer be written or read.
      input_pipeline.DamagedImageError: if an image cannot be decoded.
    """
    with command_line.refusing_bad_input():
        config = configuration.resolve_network(config, typed)
        train_data, eval_data = (input_pipeline.load_dataset(config, split) for split in ("train", "eval"))
        config = configuration.resolve_run(config, train_data.num_classes, len(train_data), typed)
        check_workdir(workdir, config)
        if note := fine_tuning.few_images_note(config, len(train_data), train_data.num_classes):
            say(note)
        if unused := unused_sizes(config, len(train_data) / config.batch_size):
            sizes = ", ".join(map(str, unused))
            say(f"note: the run of {config.num_epochs:g} epochs is too short for the recipe's images of {sizes} pixels")
        if published_weights.is_published(config.init_from):
            brought = ", ".join(f"{name}={config[name]}" for name in published_weights.OPTIONS if name not in typed)
            say(f"{config.init_from} brings along {brought or 'no options, as all were typed'}")
        if (workdir / "config.json").exists():
            input_pipeline.check_same_classes(train_data.class_names, read_class_names(workdir), workdir)
        eval_data = input_pipeline.with_classes_of(eval_data, train_data.class_names)
        check_not_in_use(workdir)

    prepare_platform(config)
    mesh = make_mesh()
    with command_line.refusing_bad_input():
        check_same_work(config, (train_data, eval_data), workdir=url or str(workdir.absolute()))
        if not url:
            check_shared(nearest_folder(workdir))
        if (workdir / "summary.json").exists():
            return say(f"{workdir} is finished, as its summary.json says; a new run needs another --workdir")
        feed = Feed(config, mesh, train_data, eval_data)
        teacher = load_teacher(config, train_data.class_names, mesh)
        program = make_program(config, mesh, feed.steps_per_epoch, feed.cache, teacher)
        compile_step(program)  # refuses a network or a batch size that cannot be trained, before anything is written
        state = None if has_checkpoints(workdir) else start_state(config, program, train_data.class_names)
        check_same_arrays((state, teacher.variables if teacher else None))
    with contextlib.ExitStack() as held:
        with command_line.refusing_bad_input((ValueError,)):
            held.enter_context(exclusive_run(workdir))
            check_workdir(workdir, config)  # again, because another run may have used the workdir since the first check
            write_config(workdir, config, train_data.class_names)
            checkpoints = Checkpoints(workdir, config.keep_checkpoints, is_copy=bool(url))
            state = state or checkpoints.restore(program.target) or start_state(config, program, train_data.class_names)
            check_same_arrays(state)
            state = program.place(state)
        take_steps(workdir, interruption, feed, program, checkpoints, state, typed)


def compile_step(program: Program) -> None:
    """Compiles the training step, once for each size of the images, and checks that it fits into memory.

    Nothing is allocated. The steps use the same compiled programs.

    Raises:
      ValueError: if the network cannot be trained on such a batch, or if the step does not fit into memory; the message
        then names the largest batch size that fits, by the memory that the compiled programs say they need.
    """
    config, start = program.config, time.perf_counter()
    sizes = list(dict.fromkeys(program.image_sizes.values()))

    def why_not(program: Program, image_size: int) -> str:
        try:
            compiled = program.trace(image_size).lower().compile()
            memory.check_fit(compiled)
        except MemoryError as error:
            return str(error)
        except jax.errors.JaxRuntimeError as error:
            if not (reason := out_of_memory(error)):
                raise
            return reason
        return ""

    for size in sizes:
        say("compiling the training step" + f" for images of {size} pixels" * (len(sizes) > 1))
        if reason := why_not(program, size):
            break
    else:
        return say(f"compiled in {time.perf_counter() - start:.1f} s")
    multiple = smallest_batch(config)
    say(f"batch_size={config.batch_size} does not fit into memory; looking for the largest batch size that does")
    largest = memory.largest_that_fits(
        lambda size: not why_not(program.with_batch_size(size), max(sizes)), config.batch_size, multiple
    )
    advice = f"the largest that fits is {largest}" if largest else f"not even {multiple} fits; give smaller images"
    raise ValueError(
        f"batch_size={config.batch_size} does not fit into memory ({reason}); {advice}, or give more "
        "accumulation_steps, which cut the batch"
    )


def take_steps(
    workdir: pathlib.Path,
    interruption: Interruption,
    feed: Feed,
    program: Program,
    checkpoints: Checkpoints,
    state: State,
    typed: Collection[str],
) -> None:
    """Trains to the last step and writes the summary; once the interruption is true, saves a checkpoint and stops."""
    config, steps_per_epoch = program.config, feed.steps_per_epoch
    start, no_sums, constants = int(state["step"]), program.zero_sums(), program.constants

    def evaluation_is_due(step: int) -> bool:
        return step == config.num_steps or is_due(step, config.evaluate_every_epochs * steps_per_epoch)

    def save_is_due(step: int) -> bool:
        best_may_be = config.keep_best and evaluation_is_due(step)
        return best_may_be or step == config.num_steps or is_due(step, config.checkpoint_every_steps)

    def stop_is_due(step: int) -> bool:
        return evaluation_is_due(step) or save_is_due(step) or is_due(step, config.log_every_steps)

    def evaluate_state() -> dict[str, float] | None:
        variables = [evaluated_variables(state)]
        if "ema" in state:
            variables.append((state["params"], state["batch_stats"]))
        with feed.eval_batches() as batches:
            results = evaluate_each(program.eval_step, variables, batches, interruption)
        if results is None:
            return None
        metrics, *raw = results
        return metrics | {f"{name}_raw": other[name] for other in raw for name in other if name != "examples"}

    batches = feed.train_batches(start, stop_is_due)
    say(batches.description)
    with RunLog(workdir, config, feed.num_images, start, typed) as log, batches, checkpoints:
        # If a signal ended the last run during an evaluation, the checkpoint exists but its evaluation does not.
        if start and evaluation_is_due(start) and not log.evaluated(start):
            metrics = evaluate_state()
            if metrics is None:
                return
            log.evaluation(start, feed.eval_split, metrics)

        in_flight: collections.deque[Sums] = collections.deque()
        sums = no_sums
        for step, batch in batches:
            state, sums = program.train_step(state, sums, batch | constants)
            # The host starts at most prefetch_batches calls ahead of the devices, which limits the memory of batches.
            in_flight.append(sums)
            if len(in_flight) > config.prefetch_batches or step == start + 1:
                jax.block_until_ready(in_flight.popleft())
            log.advance(step, batches.wait_seconds)

            if not (stop_is_due(step) or interruption):
                continue
            interruption.agree()
            learning_rate = jax.device_get(program.learning_rate(state["step"]))
            log.training(step, jax.device_get(sums), learning_rate, batches.wait_seconds)
            sums, metrics = no_sums, None
            if evaluation_is_due(step) and not interruption:
                log.status("evaluating")
                metrics = evaluate_state()
                if metrics:
                    log.evaluation(step, feed.eval_split, metrics)
            stopping = bool(interruption)
            if save_is_due(step) or stopping:
                log.status("saving")
                checkpoints.save(state, log.best_step if config.keep_best else None)
            if stopping:
                return
            log.restart_clock(step, batches.wait_seconds)

        bad_images = batches.count_bad_images()
    # The summary is the last file: if it exists, the run is finished, with its last checkpoint and its curves.
    write_summary(workdir, config, log, count_parameters(state["params"]), feed.num_eval_images, bad_images)
    log.farewell()


def start_state(config: ConfigDict, program: Program, class_names: tuple[str, ...]) -> State:
    """Returns the state before the first step: initial values, or the weights of config.init_from."""
    state = program.initial_state()
    if config.init_from:
        if published_weights.is_published(config.init_from):
            source = conversion.load_published(config)
        else:
            with local_copy(config.init_from, timeout=config.remote_timeout_seconds) as folder:
                source = load_source(folder, program.mesh)
        start = initialize_from(state, source, config, class_names)
        reason = f", which stay new: {start.differing_classes}" if start.differing_classes else ""
        say(f"weights are those of {config.init_from}, but for {', '.join(start.new) or 'nothing'}{reason}")
        return start.state
    return state


def last_good_checkpoint(workdir: pathlib.Path) -> str:
    """Returns a phrase that names the checkpoint from which a failed run can resume."""
    steps = list_steps(workdir)
    return f"the last good checkpoint is {workdir}/checkpoints/{steps[-1]}" if steps else "there is no checkpoint yet"


def is_due(step: int, period: float) -> bool:
    """Whether a multiple of the period lies in (step - 1, step]; the period may be a fraction; 0 means never."""
    return period > 0 and step // period > (step - 1) // period


if __name__ == "__main__":
    command_line.run(main)
