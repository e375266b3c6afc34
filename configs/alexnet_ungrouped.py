"""AlexNet without groups, on ImageNet.

Paper: Krizhevsky, Sutskever, Hinton 2012, ImageNet classification with deep convolutional neural networks, section 5.
Run: python train.py --config=configs/alexnet_ungrouped.py
Published: no figure is known.
Measured: nothing yet.
The rest of the recipe is that of configs/alexnet.py.
"""

from ml_collections import ConfigDict

from configs import alexnet


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = alexnet.get_config()
    config.model = "alexnet_ungrouped"
    return config
