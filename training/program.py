"""Assembles everything that a config trains: the network, the optimizer, the state and the jitted steps."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline import DeviceCache
from input_pipeline.training_sizes import sizes_by_step
from training.distillation import Teacher
from training.fine_tuning import frozen_paths, split_frozen
from training.loss import other_loss, zero_sums
from training.optimizer import make_optimizer, make_schedule
from training.state import State, abstract_state, create_state, make_model, place, with_layouts
from training.step import Batch, Sums, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """The parts of a training run. Nothing is allocated, compiled or run until a method or a step is called.

    Attributes:
      config: resolved options.
      mesh: the devices.
      cache: the training images on the devices, or None if the host loads the batches.
      teacher: the network that the run learns from too, or None.
      model: the abstract network in training mode.
      schedule: maps the optimizer step, 0 for the first, to the learning rate.
      optimizer: maps gradients to updates.
      target: shapes, types, shardings and layouts of the state; a checkpoint is restored into it.
      sums: the metrics' sums at zero, on the host.
      image_sizes: from each step at which the side of the training images changes, 0 included, to the new side in
        pixels.
      train_step: the jitted step of training.step.make_train_step.
    """

    config: ConfigDict
    mesh: Mesh
    cache: DeviceCache | None
    teacher: Teacher | None
    model: nnx.Module
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    target: State
    sums: dict[str, np.ndarray]
    image_sizes: dict[int, int]
    train_step: Any  # jitted: (state, sums, batch) -> (state, sums)

    @functools.cached_property
    def eval_step(self) -> Callable[[dict, dict, Batch], Sums]:
        """The jitted evaluation step of training.step.make_eval_step, for the network without auxiliary heads."""
        return make_eval_step(self.config, make_model(self.config, training=False), self.mesh)

    @functools.cached_property
    def learning_rate(self) -> Callable[[jax.Array], jax.Array]:
        """A jitted function from the number of steps done to the learning rate of the last of them."""
        return jax.jit(lambda steps_done: self.schedule(steps_done - 1))

    def initial_state(self) -> State:
        """Returns the state before the first step, on the devices; `place` prepares it for the step."""
        return create_state(self.target, self.model, self.config.seed)

    def place(self, state: State) -> State:
        """Returns the state with the layouts in which `train_step` takes and returns it; see training.state."""
        return place(state, self.target)

    def zero_sums(self) -> Sums:
        """Returns the metrics' sums at zero, on the devices."""
        return jax.device_put(self.sums, NamedSharding(self.mesh, PartitionSpec()))

    @functools.cached_property
    def constants(self) -> dict[str, Any]:
        """What the step's third argument holds besides the batch: the seed, and the variables of a teacher."""
        seed = jax.device_put(np.uint32(self.config.seed), NamedSharding(self.mesh, PartitionSpec()))
        return {"seed": seed} | ({"teacher": self.teacher.variables} if self.teacher else {})

    def abstract_batch(self, image_size: int | None = None) -> dict[str, Any]:
        """Returns shapes, types and shardings of the step's third argument: images (N, H, W, C) and labels (N,).

        With a cache it is what the cache gives for one call. `constants` are part of both.

        Args:
          image_size: side of the images, one of `image_sizes`; None: that of the first step.
        """
        everywhere, split = (NamedSharding(self.mesh, PartitionSpec(*names)) for names in ((), ("data",)))
        constants: dict[str, Any] = {"seed": jax.ShapeDtypeStruct((), np.uint32, sharding=everywhere)}
        if self.teacher:
            constants["teacher"] = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.teacher.variables
            )
        if self.cache:
            return self.cache.abstract_batch() | constants
        side = image_size or self.image_sizes[0]
        shape = self.config.batch_size, side, side, self.config.channels
        return {
            "image": jax.ShapeDtypeStruct(shape, np.uint8, sharding=split),
            "label": jax.ShapeDtypeStruct(shape[:1], np.int32, sharding=split),
            **constants,
        }

    def trace(self, image_size: int | None = None) -> jax.stages.Traced:
        """Traces the training step without compiling it; nothing is allocated.

        The first step reuses this trace, and the program if the trace is compiled.

        Args:
          image_size: side of the images, one of `image_sizes`; None: that of the first step.

        Raises:
          ValueError: if the network cannot be trained on such a batch.
        """
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        # The shardings are those of the real arguments; with others the first step would trace and compile again.
        sums = {name: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=everywhere) for name, v in self.sums.items()}
        return self.train_step.trace(self.target, sums, self.abstract_batch(image_size))

    def with_batch_size(self, batch_size: int) -> "Program":
        """Returns the program of another batch size, with the same schedule."""
        config = self.config.copy_and_resolve_references()
        config.batch_size = batch_size
        cache = self.cache and self.cache.with_config(config)
        step = make_train_step(config, self.model, self.optimizer, self.mesh, cache, self.teacher, self.target)
        return dataclasses.replace(self, config=config, cache=cache, train_step=step)


def make_program(
    config: ConfigDict,
    mesh: Mesh,
    steps_per_epoch: float,
    cache: DeviceCache | None = None,
    teacher: Teacher | None = None,
) -> Program:
    """Assembles the program of a config.

    Args:
      config: with the network's options resolved, num_classes and num_steps given.
      mesh: the devices.
      steps_per_epoch: optimizer steps in an epoch, which may be a fraction.
      cache: the training images, if they are on the devices already; the step then makes its own batches.
      teacher: the network that the run learns from too.
    """
    model, schedule = make_model(config, training=True), make_schedule(config, steps_per_epoch)
    optimizer = make_optimizer(config, schedule)
    target = with_layouts(abstract_state(config, model, optimizer, mesh))
    gradient_parts = split_frozen(target["params"], frozen_paths(config))[0] if config.log_gradient_norms else ()
    sums = zero_sums(len(config.aux_heads), gradient_parts, bool(teacher or other_loss(config)))
    train_step = make_train_step(config, model, optimizer, mesh, cache, teacher, target)
    image_sizes = sizes_by_step(config, steps_per_epoch)
    return Program(config, mesh, cache, teacher, model, schedule, optimizer, target, sums, image_sizes, train_step)
