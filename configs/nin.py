"""Network in network on ImageNet.

Paper: Lin, Chen, Yan 2013, Network in network; the network and its rates are those of the authors' Caffe model.
Run: python train.py --config=configs/nin.py
Published: the paper has no figure for ImageNet.
Measured: nothing on ImageNet; 42.5 % of Imagenette at 64 pixels in 10 epochs: docs/results.md, "The lineage".
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "nin"
    config.train_crop = "scale_jitter"
    config.train_resize = (256, 256)
    config.batch_size = 64
    config.learning_rate = 0.01
    config.weight_decay = 5e-4
    config.step_steps = (200_000, 400_000)
    config.num_steps = 450_000
    return config
