"""ResNet-34 on ImageNet.

Paper: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 3.4.
Run: python train.py --config=configs/resnet34.py
The paper's version, with shortcuts without parameters (option A): --config.model=resnet34_a
Published: 73.314 % top-1, 91.420 % top-5 (torchvision V1).
Measured: nothing yet.
"""

from ml_collections import ConfigDict

from configs import resnet18


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet18.get_config()
    config.model = "resnet34"
    return config
