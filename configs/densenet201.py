"""DenseNet-201, on ImageNet.

Paper: Huang, Liu, van der Maaten, Weinberger 2016, Densely connected convolutional networks, section 4.2.
Run: python train.py --config=configs/densenet201.py
Published: 76.896 % top-1, 93.370 % top-5 (torchvision V1).
Measured: nothing yet.
The rest of the recipe is that of configs/densenet121.py.
"""

from ml_collections import ConfigDict

from configs import densenet121


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = densenet121.get_config()
    config.model = "densenet201"
    return config
