"""DenseNet (L=40, k=12) on CIFAR-10.

Paper: Huang, Liu, van der Maaten, Weinberger 2016, Densely connected convolutional networks, section 4.2.
Run: python train.py --config=configs/cifar10_densenet40_k12.py
With bottlenecks and compression, L=100: --config.model=densenet_bc100_k12
Published: 94.76 % top-1 (5.24 % error), with flips and shifts; 95.49 % for densenet_bc100_k12.
Measured: nothing yet.
"""

from ml_collections import ConfigDict

from configs import cifar10_resnet20


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = cifar10_resnet20.get_config()
    config.model = "densenet40_k12"
    config.batch_size = 64
    config.num_steps = None
    config.num_epochs = 300.0
    config.nesterov = True
    config.step_steps = ()
    config.step_epochs = (150, 225)
    return config
