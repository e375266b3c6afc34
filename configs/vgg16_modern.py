"""VGG-16 without batch normalisation on ImageNet by a recipe of today, from random weights: ours, nobody published one.

Run: python train.py --config=configs/vgg16_modern.py
Published: nothing; by the recipe of 2014 71.592 % (torchvision V1).
Measured: nothing yet.
Why each ingredient: AdamW with a warm-up and clipping trains 16 plain layers from random weights, where the authors
began with 11 layers; batches of 1024 fill a GPU. The dense layers have 124 of 138 million parameters and overfit:
dropout stays, and mixup, cutmix, RandAugment, random erasing, smoothing and a weight decay of 0.05 join it. The average
of the weights smooths the last epochs. 128 pixels at first and 224 at last halve the time.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "vgg16"
    config.dtype = "bfloat16"
    config.train_crop = "random_resized"
    config.train_sizes = ((0, 128), (40, 160), (80, 192), (110, 224))
    config.auto_augment = "rand"
    config.rand_augment_layers = 1
    config.rand_augment_magnitude = 18
    config.random_erasing = 0.1
    config.mixup_alpha = 0.2
    config.cutmix_alpha = 1.0
    config.batch_size = 1024
    config.num_epochs = 120.0
    config.label_smoothing = 0.1
    config.optimizer = "adamw"
    config.learning_rate = 5e-4
    config.weight_decay = 0.05
    config.decay_norm_and_bias = False
    config.gradient_clip_norm = 1.0
    config.ema_decay = 0.9999
    config.schedule = "cosine"
    config.warmup_epochs = 10.0
    return config
