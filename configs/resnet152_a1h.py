"""ResNet-152 on ImageNet by timm's A1h: procedure A1 with more dropout, stochastic depth and RandAugment.

Source: timm's model card of resnet152.a1h_in1k, which gives no numbers; those here are ours (docs/recipes.md).
Run: python train.py --config=configs/resnet152_a1h.py
Published: 82.8 % top-1; 83.5 % at 288 pixels (timm).
Measured: nothing yet.
"""

from ml_collections import ConfigDict

from configs import resnet50_a1


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet50_a1.get_config()
    config.model = "resnet152"
    config.dropout_rate = 0.2
    config.stochastic_depth_rate = 0.1
    config.bn_virtual_batch_size = 256
    config.rand_augment_magnitude = 24
    return config
