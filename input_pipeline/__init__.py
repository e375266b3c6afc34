"""From a dataset's name to uint8 batches on the mesh, and their normalisation inside the jitted step."""

from input_pipeline.augmentation import normalize
from input_pipeline.batches import count_bad_images, eval_batches, to_device, train_batches
from input_pipeline.class_names import known_class_names
from input_pipeline.datasets import DamagedImageError, Dataset, load_dataset

__all__ = [
    "DamagedImageError",
    "Dataset",
    "count_bad_images",
    "eval_batches",
    "known_class_names",
    "load_dataset",
    "normalize",
    "to_device",
    "train_batches",
]
