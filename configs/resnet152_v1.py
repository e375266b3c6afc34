"""ResNet-152 with the stride on the first 1x1 convolution, as printed, on ImageNet.

Paper: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 3.4.
Run: python train.py --config=configs/resnet152_v1.py
Published: 77.0 % top-1, 93.3 % top-5 (paper, 1 crop).
Measured: nothing yet.
The rest of the recipe is that of configs/resnet50_v1.py.
"""

from ml_collections import ConfigDict

from configs import resnet50_v1


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet50_v1.get_config()
    config.model = "resnet152_v1"
    return config
