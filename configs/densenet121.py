"""DenseNet-121 on ImageNet.

Paper: Huang, Liu, van der Maaten, Weinberger 2016, Densely connected convolutional networks, section 4.2.
Run: python train.py --config=configs/densenet121.py
Others of the table: --config.model=densenet169 or densenet201.
Published: 74.434 % top-1, 91.972 % top-5 (torchvision V1).
Measured: nothing on ImageNet; 66.9 % of Imagenette at 64 pixels in 10 epochs: docs/results.md, "The lineage".
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "densenet121"
    config.train_crop = "random_resized"
    config.batch_size = 256
    config.learning_rate = 0.1
    config.nesterov = True
    config.weight_decay = 1e-4
    config.step_epochs = (30, 60)
    config.num_epochs = 90.0
    return config
