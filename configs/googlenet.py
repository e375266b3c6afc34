"""GoogLeNet with both auxiliary classifiers on ImageNet.

Paper: Szegedy et al. 2014, Going deeper with convolutions, section 6; the rates are BVLC's quick_solver.
Run: python train.py --config=configs/googlenet.py
Ablations: --config.aux_weight=0, --config.model=googlenet_no_lrn, or googlenet_naive (without 1x1 bottlenecks)
Published: 68.7 % top-1, 88.9 % top-5 (the BVLC replica, centre crop).
Measured: nothing on ImageNet; 63.7 % of Imagenette at 64 pixels in 10 epochs: docs/results.md, "The lineage".
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "googlenet"
    config.aux_weight = (0.3,)
    config.train_crop = "random_resized"
    config.batch_size = 32
    config.learning_rate = 0.01
    config.weight_decay = 2e-4
    config.schedule = "polynomial"
    config.polynomial_power = 0.5
    config.num_epochs = 60.0
    return config
