"""VGG-19 (configuration E), on ImageNet.

Paper: Simonyan and Zisserman 2014, Very deep convolutional networks for large-scale image recognition, section 3.1.
Run: python train.py --config=configs/vgg19.py
Published: 72.376 % top-1, 90.876 % top-5 (torchvision V1).
Measured: nothing yet.
The rest of the recipe is that of configs/vgg16.py.
"""

from ml_collections import ConfigDict

from configs import vgg16


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = vgg16.get_config()
    config.model = "vgg19"
    return config
