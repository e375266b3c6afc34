"""Inception-ResNet-v2 on ImageNet.

Paper: Szegedy et al. 2016, Inception-v4, Inception-ResNet and the impact of residual connections, section 4.
Run: python train.py --config=configs/inception_resnet_v2.py
Published: 80.458 % top-1, 95.190 % top-5 (timm, the authors' weights).
Measured: nothing yet.
The paper uses the training of Inception-v3, on 20 replicas. This recipe trains without an auxiliary classifier.
"""

from ml_collections import ConfigDict

from configs import inception_v3


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = inception_v3.get_config()
    config.model = "inception_resnet_v2"
    config.aux_weight = (0.0,)
    config.eval_resize = 341
    return config
