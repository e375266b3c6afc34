"""AlexNet as of 2014, one column without local response normalisation, on ImageNet.

Paper: Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks; trained as torchvision did.
Run: python train.py --config=configs/alexnet_owt.py
Published: 56.522 % top-1, 79.066 % top-5 (torchvision V1).
Measured: nothing yet.
"""

from ml_collections import ConfigDict

from configs import resnet50


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet50.get_config()
    config.model = "alexnet_owt"
    config.learning_rate = 0.01
    return config
