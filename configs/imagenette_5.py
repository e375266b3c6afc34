"""ResNet-18 on Imagenette at 128 pixels in 5 epochs.

Run: python train.py --config=configs/imagenette_5.py
Published: 87.43 % (fastai's leaderboard at 128 px and 5 epochs, mean of 5; an XSE-ResNeXt-50 with blurred pooling).
Measured: nothing yet on a GPU.
Choices: five epochs are too few to overfit, so crops are large; small batches give more steps.
"""

from ml_collections import ConfigDict

from configs import imagenette_20


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = imagenette_20.get_config()
    config.crop_area = (0.6, 1.0)
    config.batch_size = 32
    config.num_epochs = 5.0
    config.learning_rate = 0.05
    return config
