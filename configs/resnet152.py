"""ResNet-152 on ImageNet, with the stride on the 3x3 convolution (v1.5).

Paper: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 3.4.
Run: python train.py --config=configs/resnet152.py
Published: 78.312 % top-1, 94.046 % top-5 (torchvision V1).
Measured: nothing yet.
The rest of the recipe is ResNet-50's.
"""

from ml_collections import ConfigDict

from configs import resnet50


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet50.get_config()
    config.model = "resnet152"
    return config
