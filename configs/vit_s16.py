"""ViT-S/16 on ImageNet without the tricks that ViTs were said to need: 90 epochs, like ResNet-50's.

Paper: Beyer, Zhai, Kolesnikov 2022, Better plain ViT baselines for ImageNet-1k.
Source: big_vision, configs/vit_s16_i1k.py.
Run: python train.py --config=configs/vit_s16.py
Longer: --config.num_epochs=300, published: 80.0 %
Published: 76.5 % top-1 (90 epochs).
Measured: nothing yet.
docs/recipes.md has each option beside its source, and what differs.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "vit_s16"
    config.train_split = "train[:99%]"
    config.train_crop = "random_resized"
    config.crop_area = (0.05, 1.0)
    config.auto_augment = "rand"
    config.rand_augment_magnitude = 30
    config.mixup_alpha = 0.2
    config.mean = (0.5,)
    config.std = (0.5,)
    config.batch_size = 1024
    config.num_epochs = 90.0
    config.optimizer = "adamw"
    config.learning_rate = 0.001
    config.weight_decay = 0.1
    config.decay_norm_and_bias = False
    config.gradient_clip_norm = 1.0
    config.schedule = "cosine"
    config.warmup_epochs = 8.07
    return config
