"""Inception-v3 on ImageNet by timm's RA: the recipe of 2015, which has RMSProp and a moving average too, modernised.

Source: the options are those of configs/densenet121_ra.py; nobody published Inception-v3 with them.
Run: python train.py --config=configs/inception_v3_ra.py
Published: nothing; by the recipe of 2015 77.294 % (torchvision V1).
Measured: nothing yet.
The auxiliary classifier stays, with the authors' weight. Random erasing, RandAugment and the longer run are new.
"""

from ml_collections import ConfigDict

from configs import densenet121_ra


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = densenet121_ra.get_config()
    config.model = "inception_v3"
    config.aux_weight = (0.4,)
    config.eval_resize = 342
    config.mean = (0.5,)
    config.std = (0.5,)
    return config
