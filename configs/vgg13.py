"""VGG-13 (configuration B), on ImageNet.

Paper: Simonyan and Zisserman 2014, Very deep convolutional networks for large-scale image recognition, section 3.1.
Run: python train.py --config=configs/vgg13.py
Published: 69.928 % top-1, 89.246 % top-5 (torchvision V1).
Measured: nothing yet.
The rest of the recipe is that of configs/vgg16.py.
"""

from ml_collections import ConfigDict

from configs import vgg16


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = vgg16.get_config()
    config.model = "vgg13"
    return config
