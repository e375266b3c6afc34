"""Network in network on CIFAR-10.

Paper: Lin, Chen, Yan 2013, Network in network, section 4.2; the rates are those of the authors' Caffe configuration.
Run: python train.py --config=configs/cifar10_nin.py
Published: 91.19 % top-1 (8.81 % error), with flips and shifts.
Measured: nothing yet.
The paper's contrast normalisation and ZCA whitening are left out.
"""

from ml_collections import ConfigDict

from configs import cifar10_resnet20


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = cifar10_resnet20.get_config()
    config.model = "nin_cifar"
    config.num_steps = 120_000
    config.learning_rate = 0.1
    config.weight_decay = 1e-4
    config.step_steps = (100_000,)
    return config
