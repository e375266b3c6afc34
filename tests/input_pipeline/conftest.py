import pytest
from ml_collections import ConfigDict


@pytest.fixture
def make_config():
    """Makes a config for small images; takes the options that differ from the test's defaults."""

    def make(**options):
        config = dict(
            dataset="synthetic",
            data_dir=None,
            train_split=None,
            eval_split=None,
            validation_share=0.2,
            split_seed=0,
            num_classes=None,
            synthetic_examples=20,
            image_size=8,
            channels=3,
            batch_size=8,
            num_steps=None,
            repeated_augmentation=1,
            train_sizes=(),
            eval_batch_size=8,
            seed=0,
            train_crop="random_resized",
            crop_area=(0.08, 1.0),
            crop_aspect=(3 / 4, 4 / 3),
            train_resize=(8, 12),
            crop_padding=4,
            random_flip=True,
            eval_resize=10,
            decode_threads=2,
            prefetch_batches=2,
            on_bad_image="raise",
            max_image_pixels=178_956_970,
            exif_orientation=False,
            interpolation="bilinear",
        )
        return ConfigDict(config | options)

    return make
