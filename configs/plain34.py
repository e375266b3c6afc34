"""The plain 34-layer network on ImageNet: ResNet-34 without its shortcuts.

Paper: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 4.1 and Table 2.
Run: python train.py --config=configs/plain34.py
The shallower plain network, which reaches a higher accuracy: --config.model=plain18
Published: 71.46 % top-1, against 72.06 % of plain-18 (10 crops).
Measured: nothing yet.
"""

from ml_collections import ConfigDict

from configs import resnet18


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet18.get_config()
    config.model = "plain34"
    return config
