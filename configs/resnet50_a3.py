"""ResNet-50 on ImageNet by procedure A3: 100 epochs at 160 pixels, evaluated at 224.

Paper: Wightman, Touvron, Jégou 2021, ResNet strikes back: an improved training procedure in timm, Table 2, A3.
Run: python train.py --config=configs/resnet50_a3.py
Published: 78.1 % top-1.
Measured: nothing yet.
docs/recipes.md has each option beside its source, and what differs.
"""

from ml_collections import ConfigDict

from configs import resnet50_a1


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet50_a1.get_config()
    config.stochastic_depth_rate = 0.0
    config.train_sizes = ((0, 160),)
    config.rand_augment_magnitude = 18
    config.repeated_augmentation = 1
    config.mixup_alpha = 0.1
    config.num_epochs = 100.0
    config.label_smoothing = 0.0
    config.learning_rate = 8e-3
    config.weight_decay = 0.02
    return config
