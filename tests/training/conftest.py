"""A small trainer for tests: a resolved config, its step and an initial state."""

import dataclasses

import numpy as np
import pytest

from configs import base
from training.configuration import resolve_network
from training.program import make_program
from training.state import make_mesh


@dataclasses.dataclass
class Trainer:
    """The config, the state and the step of a small network, and what the step takes besides a batch."""

    config: object
    mesh: object
    step: object
    state: dict
    sums: dict
    constants: dict

    def run(self, batches):
        """Returns the mean loss of each batch, auxiliary losses included, one after the other."""
        losses = []
        for batch in batches:
            self.state, sums = self.step(self.state, self.sums, batch | self.constants)
            losses.append(float(sums.get("total_loss", sums["loss"])) / len(batch["label"]))
        return losses


@pytest.fixture
def make_trainer():
    """Makes a trainer of a small network on some devices; takes the options that differ from the test's defaults."""

    def make(num_devices=1, **options):
        config = base.get_config()
        config.update({"num_steps": 10, "num_classes": 10, "schedule": "constant"} | options)
        config = resolve_network(config)
        mesh = make_mesh(num_devices)
        program = make_program(config, mesh, steps_per_epoch=10)
        state = program.place(program.initial_state())
        return Trainer(config, mesh, program.train_step, state, program.zero_sums(), program.constants)

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
