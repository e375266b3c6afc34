"""AlexNet, two groups and local response normalisation, on ImageNet.

Paper: Krizhevsky, Sutskever, Hinton 2012, ImageNet classification with deep convolutional neural networks, section 5.
Run: python train.py --config=configs/alexnet.py
Ablations: --config.model=alexnet_no_lrn, or alexnet_ungrouped
Published: 57.1 % top-1, 80.2 % top-5 (the BVLC replica, centre crop).
Measured: nothing on ImageNet; 9.4 % (chance) of Imagenette at 67 pixels in 10 epochs: docs/results.md, "The lineage".
The paper divides the learning rate by 10 when the validation error stalls, three times in about 90 epochs; here the
rate drops every 20 epochs, as in BVLC's replica. The paper's colour augmentation by principal components is left out.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "alexnet"
    config.train_crop = "scale_jitter"
    config.train_resize = (256, 256)
    config.batch_size = 128
    config.learning_rate = 0.01
    config.weight_decay = 5e-4
    config.step_epochs = (20, 40, 60, 80)
    config.num_epochs = 90.0
    return config
