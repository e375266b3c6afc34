"""VGG-16 with 1x1 convolutions (configuration C), on ImageNet.

Paper: Simonyan and Zisserman 2014, Very deep convolutional networks for large-scale image recognition, section 3.1.
Run: python train.py --config=configs/vgg16_c.py
Published: 71.9 % top-1, 90.6 % top-5 (paper, Table 3, trained at one size, 256 pixels, and not with scale jitter).
Measured: nothing yet.
The rest of the recipe is that of configs/vgg16.py.
"""

from ml_collections import ConfigDict

from configs import vgg16


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = vgg16.get_config()
    config.model = "vgg16_c"
    return config
