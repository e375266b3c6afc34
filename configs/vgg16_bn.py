"""VGG-16 with batch normalisation on ImageNet.

Paper: Simonyan and Zisserman 2014; Ioffe and Szegedy 2015, Batch normalization.
Run: python train.py --config=configs/vgg16_bn.py
Published: 73.360 % top-1, 91.516 % top-5 (torchvision V1).
Measured: nothing yet.
"""

from ml_collections import ConfigDict

from configs import vgg16


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = vgg16.get_config()
    config.model = "vgg16_bn"
    return config
