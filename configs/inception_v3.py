"""Inception-v3 with its auxiliary classifier on ImageNet.

Paper: Szegedy et al. 2015, Rethinking the Inception architecture for computer vision, sections 7 and 8.
Run: python train.py --config=configs/inception_v3.py
Published: 77.294 % top-1, 93.450 % top-5 (torchvision V1, the authors' weights).
Measured: nothing on ImageNet; 55.1 % of Imagenette at 75 pixels in 10 epochs: docs/results.md, "The lineage".
In the paper each of 50 asynchronous replicas takes batches of 32. The average of the weights, the weight decay and the
weight of the auxiliary loss are those of the authors' published code.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "inception_v3"
    config.aux_weight = (0.4,)
    config.train_crop = "random_resized"
    config.eval_resize = 342
    config.mean = (0.5,)
    config.std = (0.5,)
    config.batch_size = 32
    config.label_smoothing = 0.1
    config.optimizer = "rmsprop"
    config.rmsprop_decay = 0.9
    config.rmsprop_epsilon = 1.0
    config.learning_rate = 0.045
    config.weight_decay = 4e-5
    config.decay_norm_and_bias = False
    config.gradient_clip_norm = 2.0
    config.ema_decay = 0.9999
    config.schedule = "exponential"
    config.exponential_epochs = 2.0
    config.exponential_factor = 0.94
    config.num_epochs = 100.0
    return config
