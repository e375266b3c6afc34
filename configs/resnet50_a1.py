"""ResNet-50 on ImageNet by procedure A1: 600 epochs with LAMB, binary cross-entropy and strong augmentation.

Paper: Wightman, Touvron, Jégou 2021, ResNet strikes back: an improved training procedure in timm, Table 2, A1.
Run: python train.py --config=configs/resnet50_a1.py
Published: 80.4 % top-1; 81.2 % at 288 pixels, which `evaluate.py --image_size=288 --resize=288` measures (timm).
Measured: nothing yet.
docs/recipes.md has each option beside its source, and what differs.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "resnet50"
    config.dtype = "bfloat16"
    config.stochastic_depth_rate = 0.05
    config.bn_virtual_batch_size = 512
    config.train_crop = "random_resized"
    config.auto_augment = "rand"
    config.rand_augment_layers = 1
    config.rand_augment_magnitude = 21
    config.repeated_augmentation = 3
    config.mixup_alpha = 0.2
    config.cutmix_alpha = 1.0
    config.eval_resize = 235
    config.interpolation = "bicubic"
    config.batch_size = 2048
    config.num_epochs = 600.0
    config.loss = "binary_cross_entropy"
    config.target_threshold = 0.2
    config.label_smoothing = 0.1
    config.optimizer = "lamb"
    config.adam_epsilon = 1e-6
    config.gradient_clip_norm = 1.0
    config.learning_rate = 5e-3
    config.weight_decay = 0.01
    config.decay_norm_and_bias = False
    config.schedule = "cosine"
    config.warmup_epochs = 5.0
    config.warmup_learning_rate = 1e-4
    config.final_learning_rate = 1e-6
    return config
