"""SqueezeNet 1.1, on ImageNet.

Paper: Iandola et al. 2016, SqueezeNet: AlexNet-level accuracy with 50x fewer parameters; the rates are the
authors' published solver's.
Run: python train.py --config=configs/squeezenet1_1.py
Published: 58.178 % top-1, 80.624 % top-5 (torchvision V1).
Measured: nothing on ImageNet; 9.1 % (chance) of Imagenette at 64 pixels in 10 epochs: docs/results.md, "The lineage".
The rest of the recipe is that of configs/squeezenet1_0.py.
"""

from ml_collections import ConfigDict

from configs import squeezenet1_0


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = squeezenet1_0.get_config()
    config.model = "squeezenet1_1"
    return config
