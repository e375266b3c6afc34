"""What is switched off costs nothing: the classic recipes' training step has the text of a step without any option."""

import importlib

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import models
from models.layers import StochasticDepth
from training import configuration
from training.loss import classification_sums
from training.platform import compiler_options
from training.program import make_program
from training.state import make_mesh

# The recipes, at sizes that trace in seconds: a residual network, one with auxiliary heads and dropout, a plain one.
RECIPES = {"cifar10_resnet20": 32, "googlenet": 64, "lenet5_digits": 32}


def plain_step_text(program):
    """Returns the lowered text of a step that is written out here: augmentation and options do not exist."""
    config, model = program.config, program.model
    graph, *_ = nnx.split(model, nnx.Param, nnx.BatchStat, models.DropoutKey)
    optimizer = optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(program.schedule, 0.9))
    mean, std = jnp.asarray(config.mean, jnp.float32), jnp.asarray(config.std, jnp.float32)

    def loss_and_sums(params, batch_stats, keys, images, labels):
        network = nnx.merge(graph, params, batch_stats, keys)
        outputs = network((images.astype(jnp.float32) / 255 - mean) / std)
        logits, heads = outputs if isinstance(outputs, tuple) else (outputs, [])
        main, *aux = [optax.softmax_cross_entropy_with_integer_labels(each, labels) for each in (logits, *heads)]
        losses = main + sum(weight * loss for weight, loss in zip(config.aux_weight, aux, strict=True))
        sums = classification_sums(logits, labels, main, jnp.ones_like(main))
        if aux:
            sums["total_loss"] = jnp.sum(losses)
            sums |= {f"aux{index}_loss": jnp.sum(loss) for index, loss in enumerate(aux, start=1)}
        return jnp.mean(losses), (nnx.to_pure_dict(nnx.state(network, nnx.BatchStat)), sums)

    def train_step(state, sums, batch):
        images, labels = batch["image"], batch["label"]
        key = jax.random.fold_in(jax.random.key(batch["seed"]), state["step"])
        keys = models.dropout_keys(model, key)
        derivative = jax.grad(loss_and_sums, has_aux=True)
        gradient, (batch_stats, batch_sums) = derivative(state["params"], state["batch_stats"], keys, images, labels)
        updates, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {"step": state["step"] + 1, "params": params, "batch_stats": batch_stats, "opt_state": opt_state}
        return new, jax.tree.map(lambda total, part: total + part.astype(total.dtype), sums, batch_sums)

    everywhere, split = (NamedSharding(program.mesh, PartitionSpec(*names)) for names in ((), ("data",)))
    step = jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(everywhere, everywhere, {"image": split, "label": split, "seed": everywhere}),
        out_shardings=(everywhere, everywhere),
        compiler_options=compiler_options(config),
    )
    sums = {name: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=everywhere) for name, v in program.sums.items()}
    return step.trace(program.target, sums, program.abstract_batch()).lower().as_text()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_step_of_a_classic_recipe_is_a_plain_step(recipe, monkeypatch):
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.update({"batch_size": 8, "num_classes": 10, "image_size": RECIPES[recipe]})
    config = configuration.resolve_run(configuration.resolve_network(config), 10, 1000)
    program = make_program(config, make_mesh(1), 125.0)
    found = program.trace().lower().as_text()
    monkeypatch.setattr(StochasticDepth, "__call__", lambda self, x: x)  # its code is gone
    assert found == plain_step_text(program)
