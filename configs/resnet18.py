"""ResNet-18 on ImageNet.

Paper: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 3.4.
Run: python train.py --config=configs/resnet18.py
Published: 69.758 % top-1, 89.078 % top-5 (torchvision V1).
Measured: nothing yet.
The crops are Szegedy's 2014 (random area and aspect) and the drops at 30 and 60 epochs, as torchvision trained these.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "resnet18"
    config.train_crop = "random_resized"
    config.batch_size = 256
    config.learning_rate = 0.1
    config.weight_decay = 1e-4
    config.step_epochs = (30, 60)
    config.num_epochs = 90.0
    return config
