"""GoogLeNet with batch normalisation and both auxiliary classifiers on ImageNet.

Paper: Szegedy et al. 2014, Going deeper with convolutions; Ioffe and Szegedy 2015, Batch normalization.
Run: python train.py --config=configs/googlenet_bn.py
torchvision's version, with 3x3 instead of 5x5 kernels: --config.model=googlenet_bn_3x3
Published: 69.778 % top-1, 89.530 % top-5 (torchvision V1, of googlenet_bn_3x3).
Measured: nothing yet.
The learning rates are those of configs/resnet50.py; with batch normalisation the network trains at these high rates.
"""

from ml_collections import ConfigDict

from configs import resnet50


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet50.get_config()
    config.model = "googlenet_bn"
    config.aux_weight = (0.3,)
    return config
