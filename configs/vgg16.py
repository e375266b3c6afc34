"""VGG-16 (configuration D) on ImageNet, without batch normalisation.

Paper: Simonyan and Zisserman 2014, Very deep convolutional networks for large-scale image recognition, section 3.1.
Run: python train.py --config=configs/vgg16.py
Others of Table 1: --config.model=vgg11, vgg13, vgg16_c or vgg19
Published: 71.592 % top-1, 90.382 % top-5 (torchvision V1); 74.4 % top-1 (the paper's Table 3, scale jitter).
Measured: nothing on ImageNet yet; docs/results.md shows that the loss leaves its plateau.
The paper starts from the trained configuration A. With He's fan-out initialisation (2015) the network can be trained
from random weights at the paper's learning rate of 0.01. The paper drops the rate three times, when the validation
accuracy stalls; the epochs of the drops here are ours.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "vgg16"
    config.train_crop = "scale_jitter"
    config.train_resize = (256, 512)
    config.batch_size = 256
    config.learning_rate = 0.01
    config.weight_decay = 5e-4
    config.step_epochs = (25, 50, 65)
    config.num_epochs = 74.0
    return config
