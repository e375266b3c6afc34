"""ResNet-18 on ImageNet.

Paper: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 3.4.
Run: python train.py --config=configs/resnet18.py
Published: 69.758 % top-1, 89.078 % top-5 (torchvision V1).
Measured: nothing on ImageNet; 68.3 % of Imagenette at 64 pixels in 10 epochs: docs/results.md, "The lineage".
The rest of the recipe is ResNet-50's.
"""

from ml_collections import ConfigDict

from configs import resnet50


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet50.get_config()
    config.model = "resnet18"
    return config
