"""ResNet-50 on ImageNet by torchvision's recipe of 2021, "IMAGENET1K_V2": 600 epochs at 176 pixels, evaluated at 224.

Source: torchvision's issue 3995; Vryniotis 2021, How to train state-of-the-art models using TorchVision's latest
primitives.
Run: python train.py --config=configs/resnet50_tv2.py
Published: 80.858 % top-1, 95.434 % top-5 (torchvision V2).
Measured: nothing yet.
docs/recipes.md has each option beside its source, and what differs.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "resnet50"
    config.bn_virtual_batch_size = 128
    config.train_crop = "random_resized"
    config.train_sizes = ((0, 176),)
    config.auto_augment = "trivial"
    config.random_erasing = 0.1
    config.erasing_area = (0.02, 0.33)
    config.erasing_aspect = (0.3, 3.3)
    config.repeated_augmentation = 4
    config.mixup_alpha = 0.2
    config.cutmix_alpha = 1.0
    config.eval_resize = 232
    config.batch_size = 1024
    config.num_epochs = 600.0
    config.label_smoothing = 0.1
    config.learning_rate = 0.5
    config.weight_decay = 2e-5
    config.decay_norm_and_bias = False
    config.ema_decay = 0.999966
    config.schedule = "cosine"
    config.warmup_epochs = 5.0
    config.warmup_learning_rate = 0.005
    return config
