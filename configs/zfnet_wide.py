"""ZFNet with 512, 1024 and 512 filters in its last convolutions, on ImageNet.

Paper: Zeiler and Fergus 2013, Visualizing and understanding convolutional networks, section 3.
Run: python train.py --config=configs/zfnet_wide.py
Published: 62.5 % top-1, 84.0 % top-5 (paper, Table 2; 10 crops).
Measured: nothing yet.
The rest of the recipe is that of configs/zfnet.py.
"""

from ml_collections import ConfigDict

from configs import zfnet


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = zfnet.get_config()
    config.model = "zfnet_wide"
    return config
