"""ResNet-50 on ImageNet, with the stride on the first 1x1 convolution, as printed.

Paper: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 3.4.
Run: python train.py --config=configs/resnet50_v1.py
Deeper: --config.model=resnet101_v1 or resnet152_v1
Published: 75.3 % top-1, 92.2 % top-5 (the paper's model, 1 crop).
Measured: nothing yet.
The paper uses scale jitter, trains for 600,000 steps, and divides the learning rate by 10 when the error stalls. Here
the epochs of the drops are those of configs/resnet50.py.
"""

from ml_collections import ConfigDict

from configs import resnet50


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet50.get_config()
    config.model = "resnet50_v1"
    config.train_crop = "scale_jitter"
    config.train_resize = (256, 480)
    config.num_epochs = 120.0
    return config
