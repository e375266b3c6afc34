"""SqueezeNet 1.0 on ImageNet.

Paper: Iandola et al. 2016, SqueezeNet: AlexNet-level accuracy with 50x fewer parameters; the rates are the
authors' published solver's.
Run: python train.py --config=configs/squeezenet1_0.py
Version 1.1, with 2.4 times less computation: --config.model=squeezenet1_1
Published: 58.092 % top-1, 80.420 % top-5 (torchvision V1).
Measured: nothing yet.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "squeezenet1_0"
    config.train_crop = "scale_jitter"
    config.train_resize = (256, 256)
    config.batch_size = 512
    config.learning_rate = 0.04
    config.weight_decay = 2e-4
    config.schedule = "polynomial"
    config.polynomial_power = 1.0
    config.num_steps = 170_000
    return config
