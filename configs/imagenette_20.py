"""ResNet-18 on Imagenette at 128 pixels in 20 epochs, with the whole dataset on the device.

Run: python train.py --config=configs/imagenette_20.py
Published: 91.57 % (fastai's leaderboard at 128 px and 20 epochs, mean of 5; an XSE-ResNeXt-50 with blurred pooling).
Measured: nothing yet on a GPU.
The options are those of configs/imagenette_resnet18.py. This one is for a GPU.
"""

from ml_collections import ConfigDict

from configs import imagenette_resnet18


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = imagenette_resnet18.get_config()
    config.dtype = "bfloat16"
    config.cache = "device"
    config.eval_batch_size = 512
    return config
