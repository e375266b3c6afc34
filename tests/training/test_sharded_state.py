"""With shard_params each device keeps a part of every large array of the state, and the numbers stay the same."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import training.checkpoints
from analysis.collectives import find_collectives
from configs import base
from training import state
from training.checkpoints import Checkpoints
from training.configuration import resolve_network
from training.program import make_program
from training.state import abstract_state, make_mesh

LAMB = {"optimizer": "lamb", "gradient_clip_norm": 0.1, "accumulation_steps": 2, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def small_arrays_are_large(monkeypatch):
    """The network is so small that none of its arrays would be sharded."""
    monkeypatch.setattr(state, "SMALLEST_SHARDED", 1000)


def make(num_devices, **options):
    config = base.get_config()
    config.update(
        {"model": "lenet5", "num_steps": 10, "num_classes": 10, "batch_size": 48, "schedule": "constant"} | options
    )
    return make_program(resolve_network(config), make_mesh(num_devices), steps_per_epoch=10)


def take_steps(program, batches):
    """Returns the losses of some batches, and the state after them."""
    state, zero, losses = program.initial_state(), program.zero_sums(), []
    for batch in batches:
        state, sums = program.train_step(state, zero, batch | program.constants)
        losses.append(float(sums["loss"]))
    return losses, state


def evaluate(program, state, batch):
    batch = batch | {"mask": np.ones(len(batch["label"]), np.float32)}
    return float(program.eval_step(state["params"], state["batch_stats"], batch)["loss"])


@pytest.mark.parametrize(
    "options", [{"ema_decay": 0.9}, LAMB], ids=["momentum and average", "lamb, clipping, accumulation"]
)
def test_the_numbers_are_those_of_one_device(options, make_batches):
    batches = make_batches(3, batch_size=48)
    program = make(1, **options)
    expected, whole = take_steps(program, batches)
    expected.append(evaluate(program, whole, batches[0]))
    for devices in (2, 8):
        program = make(devices, shard_params=True, **options)
        losses, sharded = take_steps(program, batches)
        losses.append(evaluate(program, sharded, batches[0]))
        assert losses == pytest.approx(expected, rel=1e-5)


def test_each_device_holds_its_part_and_gathers_each_parameter_once():
    program = make(8, shard_params=True)
    sharded = [leaf for leaf in jax.tree.leaves(program.target["params"]) if leaf.size >= 1000]
    whole = [leaf for leaf in jax.tree.leaves(program.target) if leaf.size < 1000]
    compiled = program.trace().lower().compile()
    # Parameters and momentum; the network's inputs and the metrics take less than 0.1 MB.
    expected = 4 * (2 * sum(leaf.size for leaf in sharded) / 8 + sum(leaf.size for leaf in whole))
    assert 0 <= compiled.memory_analysis().argument_size_in_bytes - expected < 100_000
    gathers = [each for each in find_collectives(compiled.as_text()) if each.kind == "all-gather"]
    assert sum(each.bytes * each.repeats for each in gathers) == 4 * sum(leaf.size for leaf in sharded)


def test_an_array_is_sharded_along_its_longest_side_if_that_divides():
    mesh = make_mesh(8)
    assert state.sharding_of((3, 3, 64, 128), mesh).spec == PartitionSpec(None, None, None, "data")
    assert state.sharding_of((512, 10), mesh).spec == PartitionSpec("data")
    assert state.sharding_of((1001, 8), mesh).is_fully_replicated  # 1001 is no multiple of 8
    assert state.sharding_of((999,), mesh).is_fully_replicated  # small


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a state that was sharded over eight devices, and its values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "SMALLEST_SHARDED", 1000)
        workdir, start = tmp_path_factory.mktemp("sharded"), make(8, shard_params=True, ema_decay=0.9).initial_state()
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(start)
    return workdir, jax.device_get(start)


@pytest.mark.parametrize("shard_params", [False, True])
@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_a_sharded_checkpoint_is_read_on_any_number_of_devices(saved, devices, shard_params):
    workdir, values = saved
    program = make(devices, shard_params=shard_params, ema_decay=0.9)
    restored = Checkpoints(workdir, read_only=True).restore(program.target)
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, values))
    assert jax.tree.all(jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted.sharding, restored, program.target))


def test_a_whole_checkpoint_is_read_into_shards(tmp_path):
    start = make(1).initial_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(start)
    restored = Checkpoints(tmp_path, read_only=True).restore(make(8, shard_params=True).target)
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, jax.device_get(start)))


def test_programs_that_only_evaluate_get_whole_arrays(saved):
    program = make(8, shard_params=True, ema_decay=0.9)
    target = abstract_state(program.config, program.model, optimizer=None, mesh=program.mesh)
    restored = Checkpoints(saved[0], read_only=True).restore(target)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(restored))
    assert jax.tree.all(jax.tree.map(np.array_equal, restored["params"], saved[1]["params"]))


def flip_a_bit(kernel):
    kernel.view(np.uint32)[0, 0, 12, 34] ^= 1 << 7


def exchange_slices(kernel):
    kernel[..., [5, 60]] = kernel[..., [60, 5]]


@pytest.mark.parametrize("damage", [flip_a_bit, exchange_slices])
@pytest.mark.parametrize("shard_params", [False, True])
def test_damage_that_orbax_does_not_notice_is_noticed(tmp_path, damage, shard_params):
    program = make(8, shard_params=True)
    start = program.initial_state()
    checksums = training.checkpoints._checksums(start)
    sharding, kernel = start["params"]["conv5"]["kernel"].sharding, np.array(start["params"]["conv5"]["kernel"])
    damage(kernel)
    start["params"]["conv5"]["kernel"] = jax.device_put(kernel, sharding)
    with pytest.MonkeyPatch.context() as patch, Checkpoints(tmp_path) as checkpoints:
        patch.setattr(training.checkpoints, "_checksums", lambda state: checksums)
        checkpoints.save(start)
    with pytest.raises(ValueError, match=r"checksum of .*'conv5'.* does not match"):
        Checkpoints(tmp_path, read_only=True).restore(make(4, shard_params=shard_params).target)


def test_what_is_not_finite_in_one_shard_is_not_saved(tmp_path):
    start = make(8, shard_params=True).initial_state()
    kernel = start["params"]["conv5"]["kernel"]
    start["params"]["conv5"]["kernel"] = kernel.at[..., -1].set(np.nan)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(FloatingPointError, match="conv5"):
        checkpoints.save(start)
