"""VGG-11 (configuration A), on ImageNet.

Paper: Simonyan and Zisserman 2014, Very deep convolutional networks for large-scale image recognition, section 3.1.
Run: python train.py --config=configs/vgg11.py
Published: 69.020 % top-1, 88.628 % top-5 (torchvision V1).
Measured: nothing on ImageNet; 48.0 % of Imagenette at 64 pixels in 10 epochs: docs/results.md, "The lineage".
The rest of the recipe is that of configs/vgg16.py.
"""

from ml_collections import ConfigDict

from configs import vgg16


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = vgg16.get_config()
    config.model = "vgg11"
    return config
