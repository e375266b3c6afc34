"""ResNet-20 on CIFAR-10, with shortcuts that have no parameters (option A).

Paper: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 4.2 and Table 6.
Run: python train.py --config=configs/cifar10_resnet20.py
Others of the table: --config.model=resnet56, or plain56, the same without shortcuts; ResNet-110 has its own recipe.
Published: 91.25 % top-1 (8.75 % error).
Measured: 91.79 % top-1 (8.21 % error) after the last step, one seed, one H100: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_config()
    config.model = "resnet20"
    config.dataset = "cifar10"
    config.train_crop = "pad"
    config.crop_padding = 4
    config.random_flip = True
    config.mean = (0.4914, 0.4822, 0.4465)
    config.std = (0.2470, 0.2435, 0.2616)
    config.cache = "device"
    config.batch_size = 128
    config.eval_batch_size = 1024
    config.num_steps = 64_000
    config.learning_rate = 0.1
    config.weight_decay = 1e-4
    config.schedule = "step"
    config.step_steps = (32_000, 48_000)
    config.log_every_steps = 100
    config.evaluate_every_epochs = 5.0
    return config
