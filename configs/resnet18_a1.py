"""ResNet-18 on ImageNet by procedure A1.

Paper: Wightman, Touvron, Jégou 2021, ResNet strikes back: an improved training procedure in timm, Tables 2 and 4.
Run: python train.py --config=configs/resnet18_a1.py
Published: 71.5 % top-1; 73.2 % at 288 pixels, which `evaluate.py --image_size=288 --resize=288` measures (timm).
Measured: nothing yet.
The paper trains all networks of its Table 4 with ResNet-50's options.
"""

from ml_collections import ConfigDict

from configs import resnet50_a1


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet50_a1.get_config()
    config.model = "resnet18"
    return config
