"""Xception on ImageNet.

Paper: Chollet 2016, Xception: deep learning with depthwise separable convolutions, sections 4.3 and 4.4.
Run: python train.py --config=configs/xception.py
Published: 79.0 % top-1, 94.5 % top-5 (the paper; Keras).
Measured: nothing on ImageNet; 35.8 % of Imagenette at 64 pixels in 10 epochs: docs/results.md, "The lineage".
The paper states neither the batch size nor the length of the training.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "xception"
    config.train_crop = "random_resized"
    config.eval_resize = 333
    config.mean = (0.5,)
    config.std = (0.5,)
    config.batch_size = 32
    config.learning_rate = 0.045
    config.weight_decay = 1e-5
    config.ema_decay = 0.9999
    config.schedule = "exponential"
    config.exponential_epochs = 2.0
    config.exponential_factor = 0.94
    config.num_epochs = 100.0
    return config
