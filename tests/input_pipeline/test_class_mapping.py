"""The classes of datasets and networks are matched by their names."""

import dataclasses

import pytest

from input_pipeline import check_same_classes, match_classes, with_classes_of
from input_pipeline.class_names import IMAGENETTE, imagenet_words
from input_pipeline.dataset import Dataset

WORDNET_IDS, WORDS = tuple(imagenet_words()), tuple(imagenet_words().values())


def test_imagenets_classes_by_wordnet_id_in_words_and_by_number():
    everything = list(range(1000))
    assert match_classes(WORDNET_IDS, WORDS) == everything
    assert match_classes(WORDS, WORDNET_IDS) == everything
    # ImageNet-V2's folders, in the order of their names as text: 0, 1, 10, 100, ...
    numbers = sorted(map(str, everything))
    assert match_classes(numbers, WORDS) == [int(number) for number in numbers]


def test_some_of_imagenets_classes():
    # A dataset with every fifth class, similar to ImageNet-A and -R; and Imagenette's ten of ILSVRC 2012's 1,000.
    assert match_classes(WORDS[::5], WORDS) == list(range(0, 1000, 5))
    assert match_classes(IMAGENETTE, WORDS) == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]


@pytest.mark.parametrize(
    ("names", "known", "message"),
    [
        (["cat", "dog", "owl"], ["cat", "dog"], "1 of the dataset's 3 classes are none of the network's 2: 'owl'"),
        (["0", "1"], ["cat", "dog", "owl"], "2 of the dataset's 2 classes are none of the network's 3: '0', '1'"),
        (["cat", "dog"], ["0", "1"], "'cat', 'dog'; name them as the network's are: '0', '1'"),
        (["tench", "n01440764"], WORDS, "one class under several names: 'tench', 'n01440764'"),
    ],
)
def test_other_classes_are_named(names, known, message):
    with pytest.raises(ValueError, match=message):
        match_classes(names, known)


def dataset_of(class_names, labels):
    return Dataset("pets", "validation", tuple(class_names), len(labels), lambda record: (b"", labels[record]), str)


def test_a_dataset_gets_the_networks_labels():
    network = ("ant", "bee", "cat", "dog")
    dataset = with_classes_of(dataset_of(["ant", "cat", "dog"], [0, 1, 2]), network)
    assert [dataset[record][1] for record in range(3)] == [0, 2, 3] and dataset.class_names == network
    same = dataset_of(network, [3])
    assert with_classes_of(same, network) is same
    beyond = with_classes_of(dataclasses.replace(dataset_of(["cat"], [1]), size=1), network)
    with pytest.raises(ValueError, match="label 1, but there are 1 classes"):
        beyond[0]


def test_a_run_goes_on_with_its_own_classes_only():
    check_same_classes(["cat", "dog"], ["cat", "dog"], "runs/pets")
    check_same_classes(["cat", "dog"], ["cat", "dog", "2", "3"], "runs/pets")  # num_classes=4
    with pytest.raises(ValueError, match="runs/pets without 'dog'; choose another --workdir"):
        check_same_classes(["cat"], ["cat", "dog"], "runs/pets")
    with pytest.raises(ValueError, match="runs/pets with 'owl'"):
        check_same_classes(["cat", "dog", "owl"], ["cat", "dog"], "runs/pets")
    with pytest.raises(ValueError, match="runs/pets in another order"):
        check_same_classes(["dog", "cat"], ["cat", "dog"], "runs/pets")
