"""VGG-19 (configuration E) with batch normalisation, on ImageNet.

Paper: Simonyan and Zisserman 2014; Ioffe and Szegedy 2015, Batch normalization.
Run: python train.py --config=configs/vgg19_bn.py
Published: 74.218 % top-1, 91.842 % top-5 (torchvision V1).
Measured: nothing yet.
The rest of the recipe is that of configs/vgg16_bn.py.
"""

from ml_collections import ConfigDict

from configs import vgg16_bn


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = vgg16_bn.get_config()
    config.model = "vgg19_bn"
    return config
