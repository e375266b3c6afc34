"""A trainer in few lines: a resolved config, its step and a first state."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import base
from training.configuration import resolve_network
from training.loss import zero_sums
from training.optimizer import make_optimizer, make_schedule
from training.state import abstract_state, create_state, make_mesh, make_model
from training.step import make_train_step


@dataclasses.dataclass
class Trainer:
    """Everything that a step needs."""

    config: object
    mesh: object
    step: object
    state: dict
    sums: dict

    def run(self, batches):
        """Returns the mean loss of each batch, one after the other."""
        losses = []
        for batch in batches:
            self.state, sums = self.step(self.state, self.sums, batch)
            losses.append(float(sums["loss"]) / len(batch["label"]))
        return losses


@pytest.fixture
def make_trainer():
    """Makes a trainer of a small network on some devices from the options that differ."""

    def make(num_devices=1, **options):
        config = base.get_config()
        config.update({"num_steps": 10, "num_classes": 10, "schedule": "constant"} | options)
        config = resolve_network(config)
        mesh, model = make_mesh(num_devices), make_model(config, training=True)
        optimizer = make_optimizer(config, make_schedule(config, 10))
        step = make_train_step(config, model, optimizer, mesh)
        state = create_state(abstract_state(config, model, optimizer, mesh), model, config.seed)
        sums = zero_sums(len(config.aux_heads), state["params"] if config.log_gradient_norms else ())
        sums = jax.device_put(sums, NamedSharding(mesh, PartitionSpec()))
        return Trainer(config, mesh, step, state, sums)

    return make


@pytest.fixture
def make_batches():
    """Makes batches of random uint8 images and labels."""

    def make(count, batch_size=16, image_size=32, channels=1):
        random = np.random.RandomState(0)
        shape = (batch_size, image_size, image_size, channels)
        return [
            {
                "image": random.randint(0, 256, shape).astype(np.uint8),
                "label": random.randint(0, 10, batch_size).astype(np.int32),
            }
            for _ in range(count)
        ]

    return make
