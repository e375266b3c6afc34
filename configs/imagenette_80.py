"""ResNet-18 on Imagenette at 128 pixels in 80 epochs.

Run: python train.py --config=configs/imagenette_80.py
Published: 93.55 % (fastai's leaderboard at 128 px and 80 epochs, one run; an XSE-ResNeXt-50).
Measured: nothing yet on a GPU.
Choices: a long run has stronger augmentation; mixup helps from 80 epochs on (the leaderboard's page says so).
"""

from ml_collections import ConfigDict

from configs import imagenette_20


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = imagenette_20.get_config()
    config.crop_area = (0.25, 1.0)
    config.auto_augment = "trivial"
    config.mixup_alpha = 0.2
    config.num_epochs = 80.0
    config.warmup_epochs = 5.0
    config.evaluate_every_epochs = 4.0
    return config
