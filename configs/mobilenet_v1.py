"""MobileNet-v1 on ImageNet.

Paper: Howard et al. 2017, MobileNets: efficient convolutional neural networks for mobile vision, section 3.2.
Run: python train.py --config=configs/mobilenet_v1.py
Thinner: --config.model=mobilenet_v1_075, mobilenet_v1_050 or mobilenet_v1_025
Published: 70.6 % top-1, 89.5 % top-5 (the paper; Keras).
Measured: nothing on ImageNet; 59.2 % of Imagenette at 64 pixels in 10 epochs: docs/results.md, "The lineage".
The paper trains with RMSProp as for Inception-v3, and the learning rates here are Inception-v3's. It uses less
regularisation: no label smoothing, no auxiliary classifier, milder crops, and hardly any weight decay on the depthwise
filters (here all weights have the same small weight decay).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "mobilenet_v1"
    config.train_crop = "random_resized"
    config.crop_area = (0.25, 1.0)
    config.mean = (0.5,)
    config.std = (0.5,)
    config.batch_size = 64
    config.optimizer = "rmsprop"
    config.rmsprop_decay = 0.9
    config.rmsprop_epsilon = 1.0
    config.learning_rate = 0.045
    config.weight_decay = 1e-5
    config.decay_norm_and_bias = False
    config.ema_decay = 0.9999
    config.schedule = "exponential"
    config.exponential_epochs = 2.0
    config.exponential_factor = 0.94
    config.num_epochs = 100.0
    return config
