"""Five steps of SGD have PyTorch's losses and end at PyTorch's weights."""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from golden import make_state_dict
from jax.sharding import NamedSharding, PartitionSpec

import models
from configs import base
from models.torch_names import from_torch, to_torch, torch_shapes
from training.configuration import resolve_network
from training.loss import zero_sums
from training.optimizer import make_optimizer
from training.state import abstract_state, create_state, make_mesh, make_model, select
from training.step import make_train_step

TRAJECTORIES = sorted((pathlib.Path(__file__).parent.parent / "golden" / "trajectories").glob("*.json"))


def follow(golden: dict, dtype: str, num_steps: int) -> tuple[list[float], dict[str, np.ndarray]]:
    """Returns the losses of the first steps, and the weights after them as a state dict with PyTorch's names."""
    config = base.get_config()
    for option in ("model", "num_classes", "image_size", "batch_size", "momentum", "nesterov", "learning_rate"):
        config[option] = golden[option]
    config.weight_decay, config.label_smoothing = golden["weight_decay"], golden["label_smoothing"]
    config.dropout_rate, config.aux_weight, config.dtype = golden["dropout"], (golden["aux_weight"] or 0.0,), dtype
    config.mean, config.std = (0.0,), (1 / 255,)  # the images are normalised already: the step leaves them as they are
    config = resolve_network(config)
    mesh, model = make_mesh(1), make_model(config, training=True)
    optimizer = make_optimizer(config, lambda _: config.learning_rate)
    entry = models.get_entry(config.model)
    values = from_torch(entry, model, make_state_dict(torch_shapes(entry, model)))
    state = create_state(abstract_state(config, model, optimizer, mesh), model, seed=0)
    everywhere = NamedSharding(mesh, PartitionSpec())
    for part in ("params", "batch_stats"):
        state[part] = jax.device_put(select(values, state[part]), everywhere)
    step = make_train_step(config, model, optimizer, mesh)

    random, losses = np.random.RandomState(7), []
    shape = (golden["batch_size"], 3, golden["image_size"], golden["image_size"])
    for _ in range(num_steps):
        images, labels = random.standard_normal(shape), random.randint(0, 10, shape[0])
        batch = {"image": images.transpose(0, 2, 3, 1).astype(dtype), "label": labels.astype(np.int32)}
        batch["seed"] = np.uint32(0)
        sums = jax.tree.map(lambda zero: zero.astype(dtype), zero_sums(len(config.aux_heads)))
        state, sums = step(state, jax.device_put(sums, everywhere), batch)
        losses.append(float(sums.get("total_loss", sums["loss"])) / shape[0])
    trained = jax.device_get({part: state[part] for part in ("params", "batch_stats")})
    flat = {path: leaf for part in trained.values() for path, leaf in nnx.traversals.flatten_mapping(part).items()}
    return losses, to_torch(entry, model, nnx.traversals.unflatten_mapping(flat))


@pytest.fixture
def float64():
    """Enables float64 for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def parameters():
    """Tests each trajectory; VGG's is slow because of its dense layers, and ResNet's is one of the smoke tests."""
    marks = {"vgg11": [pytest.mark.slow], "resnet18": [pytest.mark.slow, pytest.mark.smoke]}
    return [pytest.param(path, id=path.stem, marks=marks.get(path.stem, ())) for path in TRAJECTORIES]


@pytest.mark.parametrize("path", parameters())
def test_float64_follows_pytorch(path, float64):
    golden = json.loads(path.read_text())
    losses, weights = follow(golden, "float64", golden["steps"])
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-8)
    norms = {name: np.linalg.norm(weights[name]) for name in weights}
    assert norms == pytest.approx({name: golden["final_norms"][name] for name in norms}, rel=1e-8)


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("path", parameters())
def test_float32_starts_as_pytorch(path):
    golden = json.loads(path.read_text())
    losses, _ = follow(golden, "float32", 1)
    np.testing.assert_allclose(losses, golden["losses"][:1], rtol=1e-5)
