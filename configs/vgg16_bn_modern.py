"""VGG-16 with batch normalisation on ImageNet by a recipe of today: ours, nobody published one.

Run: python train.py --config=configs/vgg16_bn_modern.py
Published: nothing; by the recipe of 2014 73.360 % (torchvision V1).
Measured: nothing yet.
Why each ingredient: batch normalisation makes SGD with momentum and a large rate stable, as in torchvision's recipe of
2021 (configs/resnet50_tv2.py), whose rate and weight decay these are; no clipping is needed. The rest is as in
configs/vgg16_modern.py.
"""

from ml_collections import ConfigDict

from configs import vgg16_modern


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = vgg16_modern.get_config()
    config.model = "vgg16_bn"
    config.bn_virtual_batch_size = 128
    config.optimizer = "sgd"
    config.nesterov = True
    config.learning_rate = 0.5
    config.weight_decay = 2e-5
    config.gradient_clip_norm = 0.0
    config.warmup_epochs = 5.0
    return config
