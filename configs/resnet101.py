"""ResNet-101 on ImageNet, with the stride on the 3x3 convolution (v1.5).

Paper: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 3.4.
Run: python train.py --config=configs/resnet101.py
Published: 77.374 % top-1, 93.546 % top-5 (torchvision V1).
Measured: nothing yet.
"""

from ml_collections import ConfigDict

from configs import resnet50


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet50.get_config()
    config.model = "resnet101"
    return config
