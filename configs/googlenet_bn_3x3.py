"""GoogLeNet in torchvision's version, with batch normalisation, and 3x3 instead of the paper's 5x5, on ImageNet.

Paper: Szegedy et al. 2014, Going deeper with convolutions; Ioffe and Szegedy 2015, Batch normalization.
Run: python train.py --config=configs/googlenet_bn_3x3.py
Published: 69.778 % top-1, 89.530 % top-5 (torchvision V1).
Measured: nothing yet.
The rest of the recipe is that of configs/googlenet_bn.py.
"""

from ml_collections import ConfigDict

from configs import googlenet_bn


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = googlenet_bn.get_config()
    config.model = "googlenet_bn_3x3"
    return config
