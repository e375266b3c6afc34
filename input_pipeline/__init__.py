"""Opens datasets by name, makes uint8 batches of them on the mesh, and augments these inside the jitted step."""

from input_pipeline.augmentation import MixedLabels, make_augmentation, normalize
from input_pipeline.batches import count_bad_images, eval_batches, to_device, train_batches
from input_pipeline.class_mapping import check_same_classes, match_classes, with_classes_of
from input_pipeline.class_names import known_class_names
from input_pipeline.dataset import DamagedImageError, Dataset, UnreadableImageError
from input_pipeline.datasets import load_dataset
from input_pipeline.device_cache import DeviceCache, cached_eval_batches
from input_pipeline.image_libraries import prepare_image_libraries

__all__ = [
    "DamagedImageError",
    "Dataset",
    "DeviceCache",
    "MixedLabels",
    "UnreadableImageError",
    "cached_eval_batches",
    "check_same_classes",
    "count_bad_images",
    "eval_batches",
    "known_class_names",
    "load_dataset",
    "make_augmentation",
    "match_classes",
    "normalize",
    "prepare_image_libraries",
    "to_device",
    "train_batches",
    "with_classes_of",
]
