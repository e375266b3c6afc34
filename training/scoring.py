"""The probabilities that one network or several give to each image of a dataset, every image once."""

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import input_pipeline
from input_pipeline import DamagedImageError, Dataset, match_classes
from training.averaging import batch_statistics, mean_weights, statistics_batches
from training.checkpoints import list_steps
from training.inference import one_behind
from training.state import make_model
from training.transfer import load_weights
from training.views import loaded_as, make_scorer
from training.workdir import read_class_names


class Member(NamedTuple):
    """A network with its weights; several of them are an ensemble.

    Attributes:
      workdir: the folder or the URL of its run.
      step: of the checkpoint; of several, the newest.
      config: resolved options.
      params: its parameters, on the mesh.
      batch_stats: its running statistics, on the mesh.
      class_names: in the order of its logits.
    """

    workdir: pathlib.Path | str
    step: int
    config: ConfigDict
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    class_names: list[str]


class Scores(NamedTuple):
    """What the networks say about some images.

    Attributes:
      records: (N,) positions in the dataset, ascending.
      labels: (N,) classes.
      log_probabilities: (members, N, classes).
    """

    records: np.ndarray
    labels: np.ndarray
    log_probabilities: np.ndarray


def load_member(workdir: pathlib.Path, mesh: Mesh, step: int | str | None = None) -> Member:
    """Loads a checkpoint of a workdir; the arguments and errors are those of load_weights."""
    config, params, batch_stats, found = load_weights(workdir, mesh, step)
    return Member(workdir, found, config, params, batch_stats, read_class_names(workdir))


def load_average(workdir: pathlib.Path, mesh: Mesh, count: int) -> Member:
    """Loads the mean of the weights of the newest checkpoints; the batch statistics still have to be estimated anew.

    Raises:
      ValueError: if the run keeps fewer of the newest checkpoints, or one of them is damaged.
      FileNotFoundError: if the folder is not a workdir.
    """
    steps = list_steps(workdir)[-count:]
    if 0 < len(steps) < count:
        raise ValueError(
            f"{workdir} has {len(steps)} checkpoints, not {count}; give a smaller --average, or train with a larger "
            "keep_checkpoints"
        )
    newest = load_member(workdir, mesh, steps[-1] if steps else None)
    if count > newest.config.keep_checkpoints:  # the best checkpoint is kept too, however old
        raise ValueError(
            f"{workdir} keeps the newest {newest.config.keep_checkpoints} checkpoints, not {count}; give a smaller "
            "--average, or train with a larger keep_checkpoints"
        )
    others = [load_member(workdir, mesh, step) for step in steps[:-1]]
    return newest._replace(params=mean_weights([newest.params, *(member.params for member in others)]))


def with_new_statistics(member: Member, mesh: Mesh, watch: Callable[[Iterable, int], Iterable]) -> Member:
    """Returns the member with batch statistics estimated anew on training images; without batch norm, the member.

    Args:
      member: a network with other weights than its batch statistics belong to.
      mesh: the devices.
      watch: takes the training batches and their number and returns the same batches, to show the progress.
    """
    if not jax.tree.leaves(member.batch_stats):
        return member
    batches, count = statistics_batches(member.config, mesh)
    with batches:
        watched = watch(batches, count)
        batch_stats = batch_statistics(member.config, member.params, member.batch_stats, watched, mesh)
    return member._replace(batch_stats=batch_stats)


def check_classes(members: Sequence[Member]) -> list[list[int]]:
    """Returns for each member the positions of the first member's classes among its own.

    Raises:
      ValueError: if the members do not have the same classes.
    """
    first, *_ = members
    positions = []
    for member in members:
        try:
            positions.append(match_classes(first.class_names, member.class_names, by_number=False))
        except ValueError as error:
            raise ValueError(f"{member.workdir} has other classes than {first.workdir}: {error}") from error
        if len(member.class_names) > len(first.class_names):
            raise ValueError(
                f"{member.workdir} has {len(member.class_names)} classes, but {first.workdir} only "
                f"{len(first.class_names)}; an ensemble needs networks with the same classes"
            )
    return positions


class Inputs:
    """The loaders of the images that the members need.

    Members and sizes whose images are loaded in the same way (image_size, eval_resize, interpolation, channels and
    exif_orientation) share a loader, so each image is decoded once for all of them.

    Attributes:
      configs: for each member its configs, one for each size, from training.views.at_sizes.
      views: one of training.views.VIEWS.
      loaded: a config for each loader, that is, for each different way of loading; all other options are the first
        member's.
    """

    def __init__(self, configs: Sequence[Sequence[ConfigDict]], views: str):
        """Finds the ways of loading; reads nothing."""
        self.configs, self.views, self.loaded = configs, views, list[ConfigDict]()
        self._numbers: list[list[int]] = []
        known: dict[tuple, int] = {}
        names = "image_size", "eval_resize", "interpolation", "channels", "exif_orientation"
        for member_configs in configs:
            self._numbers.append([])
            for config in (loaded_as(config, views) for config in member_configs):
                options = {name: config[name] for name in names}
                number = known.setdefault(tuple(options.values()), len(known))
                if number == len(self.loaded):
                    self.loaded.append(configs[0][0].copy_and_resolve_references())
                    self.loaded[-1].update(options)
                self._numbers[-1].append(number)

    def batches(self, datasets: Sequence[Dataset]) -> Iterator[dict[str, np.ndarray]]:
        """Returns host batches with `label`, `mask`, and the images of each way of loading: `image0`, `image1`, ...

        Args:
          datasets: the same records for each way of loading.
        """
        loaders = [
            input_pipeline.eval_batches(dataset, config) for dataset, config in zip(datasets, self.loaded, strict=True)
        ]

        def together() -> Iterator[dict[str, np.ndarray]]:
            with contextlib.ExitStack() as stack:
                for loader in loaders:
                    stack.enter_context(loader)
                for batches in zip(*loaders, strict=True):
                    images = {f"image{number}": batch["image"] for number, batch in enumerate(batches)}
                    yield {"label": batches[0]["label"], "mask": batches[0]["mask"]} | images

        return together()

    def of_member(self, number: int, batch: dict[str, jax.Array]) -> list[jax.Array]:
        """Returns a member's images, one array a size."""
        return [batch[f"image{loader}"] for loader in self._numbers[number]]


def score(members: Sequence[Member], inputs: Inputs, datasets: Sequence[Dataset], mesh: Mesh) -> Iterator[Scores]:
    """Yields the scores of all images that can be decoded, batch by batch and in the dataset's order.

    While the devices compute a batch, the host prepares the next ones and reads the results of the one before.

    Args:
      members: the networks, with the classes of the first one in any order.
      inputs: what the members take.
      datasets: the same records for each way of loading, with the first member's classes.
      mesh: the devices.

    Raises:
      DamagedImageError: if an image cannot be decoded and on_bad_image is 'raise', or if no image can be decoded.
      FloatingPointError: if a network computes NaN.
    """
    positions = check_classes(members)
    scorers = [
        make_scorer(configs, make_model(member.config, training=False), mesh, inputs.views)
        for member, configs in zip(members, inputs.configs, strict=True)
    ]
    # Each process loads its rows of a batch, and all need the whole batch.
    gather = jax.jit(lambda *arrays: arrays, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def start(batch: dict[str, jax.Array]) -> tuple:
        scores = [
            scorer(member.params, member.batch_stats, inputs.of_member(number, batch))
            for number, (member, scorer) in enumerate(zip(members, scorers, strict=True))
        ]
        return gather(batch["label"], batch["mask"]), scores

    def finish(first: int, started: tuple) -> Scores:
        (labels, mask), scores = jax.device_get(started)
        rows = np.flatnonzero(mask)
        own = [member[rows][:, columns] for member, columns in zip(scores, positions, strict=True)]
        for member, log_probabilities in zip(members, own, strict=True):
            if np.isnan(log_probabilities).any():
                raise FloatingPointError(
                    f"the network of {member.workdir}, step {member.step}, computes NaN; give an earlier --step"
                )
        return Scores(first + rows, labels[rows], np.stack(own))

    any_image, batch_size = False, inputs.loaded[0].eval_batch_size
    with input_pipeline.to_device(inputs.batches(datasets), mesh, inputs.loaded[0].prefetch_batches) as batches:
        for number, started in enumerate(one_behind(map(start, batches))):
            scores = finish(number * batch_size, started)
            any_image |= len(scores.labels) > 0
            yield scores
    if not any_image:
        raise DamagedImageError("not one image of the evaluation could be decoded; choose another split or dataset")
