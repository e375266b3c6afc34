"""Starting from another run's weights: each class of the head goes to the class of the same name."""

import jax
import numpy as np
import pytest
from flax import nnx

from configs import base
from input_pipeline.class_names import IMAGENETTE, imagenet_words
from models import get_stages
from models.vit import resize_positions
from training.configuration import resolve_network
from training.program import make_program
from training.state import make_mesh, make_model, select
from training.transfer import Source, initialize_from, load_source, save_weights

PETS = ("ant", "bee", "cat", "dog")


def make_config(num_classes):
    """LeNet-5 with an auxiliary classifier after its first stage."""
    config = base.get_config()
    config.update({"num_classes": num_classes, "num_steps": 1, "aux_weight": (0.5,)})
    config.aux_heads = tuple(get_stages("lenet5"))[:1]
    return resolve_network(config)


def outputs(config, params):
    """Returns the logits of the network and of its auxiliary classifier, (3, num_classes) each."""
    model = make_model(config, training=True)
    nnx.update(model, select(params, nnx.to_pure_dict(nnx.state(model, nnx.Param))))
    graph, state = nnx.split(model)
    images = np.random.RandomState(0).standard_normal((3, 32, 32, 1)).astype(np.float32)
    logits, aux_logits = jax.jit(lambda state, images: nnx.merge(graph, state)(images))(state, images)
    return [logits, *aux_logits]


@pytest.fixture
def start(tmp_path):
    """Returns a function: (their classes, our dataset's classes, number of our classes) -> ..."""

    def start(theirs, ours, num_classes=None):
        mesh, num_classes = make_mesh(1), num_classes or len(ours)
        their_config, our_config = make_config(len(theirs)), make_config(num_classes)
        their_config.seed = 1
        values = make_program(their_config, mesh, 1).initial_state()
        save_weights(tmp_path / "run", their_config, theirs, values["params"] | values["batch_stats"])
        state = make_program(our_config, mesh, 1).initial_state()
        begun = initialize_from(state, load_source(tmp_path / "run", mesh), our_config, ours)
        return outputs(their_config, values["params"]), outputs(our_config, begun.state["params"]), begun

    return start


@pytest.mark.parametrize(
    ("theirs", "ours", "positions"),
    [
        (PETS, PETS, [0, 1, 2, 3]),
        (PETS, ("dog", "ant", "cat", "bee"), [3, 0, 2, 1]),
        (PETS, ("cat", "bee"), [2, 1]),
        # Imagenette's ten classes among ILSVRC 2012's, by WordNet id and in words.
        (tuple(imagenet_words().values()), IMAGENETTE, [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]),
    ],
)
def test_each_class_keeps_its_weights(start, theirs, ours, positions):
    their_outputs, our_outputs, begun = start(theirs, ours)
    assert not begun.new and not begun.differing_classes
    for their_logits, our_logits in zip(their_outputs, our_outputs, strict=True):
        np.testing.assert_allclose(our_logits, their_logits[:, positions], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("theirs", "ours", "num_classes", "message"),
    [
        (PETS, ("ant", "bee", "cat", "owl"), 4, "1 of the dataset's 4 classes are none of the network's 4: 'owl'"),
        (PETS, ("ant", "bee", "cat"), 4, "'3'"),  # one class has no name yet
        (PETS, ("0", "1", "2", "3"), 4, "'0', '1', '2', '3'"),  # digits are no pets
        (("0", "1", "2", "3"), PETS, 4, "'ant', 'bee', 'cat', 'dog'"),
    ],
)
def test_a_head_of_other_classes_stays_new_and_says_why(start, theirs, ours, num_classes, message):
    their_outputs, our_outputs, begun = start(theirs, ours, num_classes)
    assert message in begun.differing_classes
    assert len(begun.new) == 4 and all("head" in name for name in begun.new)
    fresh = make_program(make_config(num_classes), make_mesh(1), 1).initial_state()["params"]
    for name in begun.new:
        path = tuple(name.split("."))
        ours, initial = (nnx.traversals.flatten_mapping(params)[path] for params in (begun.state["params"], fresh))
        assert np.array_equal(ours, initial)
    assert not np.allclose(their_outputs[0], our_outputs[0])


def test_position_embeddings_for_another_image_size_are_interpolated():
    configs, mesh = [], make_mesh(1)
    for size in (32, 48):
        config = base.get_config()
        config.update({"model": "vit_tiny_patch16_224", "image_size": size, "num_classes": 4, "num_steps": 1})
        configs.append(resolve_network(config))
    theirs, ours = (make_program(config, mesh, 1).initial_state() for config in configs)
    old = np.asarray(theirs["params"]["embedding"]["position"])
    begun = initialize_from(ours, Source("run", theirs["params"], PETS), configs[1], PETS)
    new = begun.state["params"]["embedding"]["position"]
    assert not begun.new and (old.shape[1], new.shape[1]) == (1 + 2 * 2, 1 + 3 * 3)
    np.testing.assert_allclose(new, resize_positions(old, (3, 3)), rtol=1e-5, atol=1e-7)
