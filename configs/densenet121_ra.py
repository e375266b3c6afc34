"""DenseNet-121 on ImageNet by timm's RA: RMSProp, RandAugment and a moving average of the weights.

Source: timm's model card of densenet121.ra_in1k names the recipe without numbers. The numbers here are those of
EfficientNet-B2, whose command in timm's docs/training_hparam_examples.md has RandAugment and RMSProp too.
Run: python train.py --config=configs/densenet121_ra.py
Published: 75.6 % top-1; 76.5 % at 288 pixels, which `evaluate.py --image_size=288 --resize=303` measures (timm).
Measured: nothing yet.
docs/recipes.md has each option beside its source, and what differs.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "densenet121"
    config.dtype = "bfloat16"
    config.bn_virtual_batch_size = 128
    config.train_crop = "random_resized"
    config.auto_augment = "rand"
    config.rand_augment_layers = 1
    config.rand_augment_magnitude = 27
    config.random_erasing = 0.2
    config.erasing_area = (0.02, 1 / 3)
    config.interpolation = "bicubic"
    config.batch_size = 256
    config.num_epochs = 450.0
    config.label_smoothing = 0.1
    config.optimizer = "rmsprop"
    config.rmsprop_decay = 0.9
    config.rmsprop_epsilon = 1e-3
    config.learning_rate = 0.016
    config.weight_decay = 1e-5
    config.decay_norm_and_bias = False
    config.ema_decay = 0.9999
    config.schedule = "exponential"
    config.exponential_epochs = 2.4
    config.exponential_factor = 0.97
    config.warmup_epochs = 3.0
    config.warmup_learning_rate = 1e-6
    return config
