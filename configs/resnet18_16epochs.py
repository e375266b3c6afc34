"""ResNet-18 with blur pooling on ImageNet in 16 epochs on one GPU: small images first, evaluated at 256 pixels.

Source: FFCV's rn18_configs/rn18_16_epochs.yaml and train_imagenet.py (Leclerc et al. 2022, FFCV).
Run: python train.py --config=configs/resnet18_16epochs.py
Published: 66.9 % top-1, 86.8 % top-5 in 35 minutes on an A100, by the sum of the logits of each image and its mirror
image; `evaluate.py --views=flip` takes the mean of their probabilities instead.
Measured: nothing yet.
docs/recipes.md has each option beside its source, and what differs.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "resnet18_blur"
    config.dtype = "bfloat16"
    config.image_size = 256
    config.train_crop = "random_resized"
    config.train_sizes = ((0, 160), (12, 192))
    config.eval_resize = 293
    config.batch_size = 1024
    config.num_epochs = 16.0
    config.label_smoothing = 0.1
    config.learning_rate = 0.5
    config.weight_decay = 5e-5
    config.decay_norm_and_bias = False
    config.schedule = "polynomial"
    config.warmup_epochs = 2.0
    config.warmup_learning_rate = 5e-5
    return config
