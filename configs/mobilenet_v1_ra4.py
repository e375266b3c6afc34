"""MobileNet-v1 on ImageNet by timm's RA4: 3,600 epochs with AdamW, whose first beta is 0.6.

Source: timm's model card of mobilenetv1_100.ra4_e3600_r224_in1k and Wightman 2024, MobileNet baselines; the numbers are
those of timm's MobileNet-v4 Conv-S.
Run: python train.py --config=configs/mobilenet_v1_ra4.py
Published: 75.4 % top-1; 76.1 % at 256 pixels, which `evaluate.py --image_size=256 --resize=269` measures (timm).
Measured: nothing yet.
A tenth of the epochs: --config.num_epochs=360. docs/recipes.md has each option beside its source, and what differs.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "mobilenet_v1"
    config.dropout_rate = 0.25
    config.dtype = "bfloat16"
    config.train_crop = "random_resized"
    config.auto_augment = "rand"
    config.rand_augment_layers = 1
    config.rand_augment_magnitude = 24
    config.random_erasing = 0.25
    config.erasing_area = (0.02, 1 / 3)
    config.interpolation = "bicubic"
    config.mean = (0.5,)
    config.std = (0.5,)
    config.batch_size = 4096
    config.num_epochs = 3600.0
    config.label_smoothing = 0.1
    config.optimizer = "adamw"
    config.adam_betas = (0.6, 0.995)
    config.learning_rate = 2e-3
    config.weight_decay = 0.06
    config.decay_norm_and_bias = False
    config.ema_decay = 0.99995
    config.schedule = "cosine"
    config.warmup_epochs = 5.0
    return config
