import tensorflow_datasets as tfds

from input_pipeline.class_names import CIFAR100, CIFAR100_COARSE, imagenet_words, in_words, known_class_names


def test_imagenets_classes_are_tfds_s_each_with_a_name_of_its_own():
    labels = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    assert list(imagenet_words()) == labels
    names = known_class_names("imagenet2012")
    assert len(set(names)) == 1000
    # The positions are those of torchvision's and Keras's lists.
    assert (names[0], names[217], names[999]) == ("tench", "English springer", "toilet tissue")
    assert names[134] != names[517] and names[134].startswith(names[517])  # two cranes


def test_imagenettes_classes_are_those_of_its_readme():
    labels = tfds.core.tfds_path("image_classification/imagenette_labels.txt").read_text().split()
    assert in_words([*labels, "something else"]) == (
        *("tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck"),
        *("gas pump", "golf ball", "parachute", "something else"),
    )
    assert known_class_names("imagenette/160px-v2:1.0.0") == in_words(labels)


def test_cifar100_has_100_classes_in_20():
    assert (len(set(CIFAR100)), len(set(CIFAR100_COARSE))) == (100, 20)
    assert sorted(CIFAR100) == list(CIFAR100) and sorted(CIFAR100_COARSE) == list(CIFAR100_COARSE)
    assert known_class_names("food101") == ()
