"""ResNet-110 on CIFAR-10. The first 400 iterations have a tenth of the learning rate.

Paper: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 4.2: the rate is 0.01 until the
training error is below 80 %, about 400 iterations, and then as for the smaller networks.
Run: python train.py --config=configs/cifar10_resnet110.py
Published: 93.57 % top-1 (6.43 % error), the best of five; their mean is 93.39 % +- 0.16.
Measured: nothing yet.
"""

from ml_collections import ConfigDict

from configs import cifar10_resnet20


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = cifar10_resnet20.get_config()
    config.model = "resnet110"
    config.warmup_epochs = 400 * config.batch_size / 50_000  # 400 iterations
    config.warmup_learning_rate = 0.01
    config.warmup_shape = "constant"
    return config
