"""ResNet-50 on ImageNet, with the stride on the 3x3 convolution (v1.5).

Paper: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 3.4.
Run: python train.py --config=configs/resnet50.py
Pre-activation (He 2016): --config.model=resnet50_v2
Published: 76.130 % top-1, 92.862 % top-5 (torchvision V1).
Measured: nothing yet.
As in torchvision's training, the crops have a random area and aspect ratio (Szegedy 2014), and the learning rate drops
at 30 and 60 epochs.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "resnet50"
    config.train_crop = "random_resized"
    config.batch_size = 256
    config.learning_rate = 0.1
    config.weight_decay = 1e-4
    config.step_epochs = (30, 60)
    config.num_epochs = 90.0
    return config
