"""ConvNeXt-T on ImageNet by torchvision's recipe: 600 epochs at 176 pixels, evaluated at 224.

Paper: Liu, Mao, Wu, Feichtenhofer, Darrell, Xie 2022, A ConvNet for the 2020s.
Source: torchvision's pull request 5197, which has the command.
Run: python train.py --config=configs/convnext_tiny.py
Published: 82.52 % top-1, 96.146 % top-5 (torchvision V1).
Measured: nothing yet.
docs/recipes.md has each option beside its source, and what differs.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "convnext_tiny"
    config.stochastic_depth_rate = 0.1
    config.train_crop = "random_resized"
    config.train_sizes = ((0, 176),)
    config.auto_augment = "trivial"
    config.random_erasing = 0.1
    config.erasing_area = (0.02, 0.33)
    config.erasing_aspect = (0.3, 3.3)
    config.repeated_augmentation = 4
    config.mixup_alpha = 0.2
    config.cutmix_alpha = 1.0
    config.eval_resize = 236
    config.batch_size = 1024
    config.num_epochs = 600.0
    config.label_smoothing = 0.1
    config.optimizer = "adamw"
    config.learning_rate = 0.001
    config.weight_decay = 0.05
    config.decay_norm_and_bias = False
    config.ema_decay = 0.999966
    config.schedule = "cosine"
    config.warmup_epochs = 5.0
    config.warmup_learning_rate = 1e-5
    return config
