"""VGG-11 (configuration A) with batch normalisation, on ImageNet.

Paper: Simonyan and Zisserman 2014; Ioffe and Szegedy 2015, Batch normalization.
Run: python train.py --config=configs/vgg11_bn.py
Published: 70.370 % top-1, 89.810 % top-5 (torchvision V1).
Measured: nothing on ImageNet; 66.2 % of Imagenette at 64 pixels in 10 epochs: docs/results.md, "The lineage".
The rest of the recipe is that of configs/vgg16_bn.py.
"""

from ml_collections import ConfigDict

from configs import vgg16_bn


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = vgg16_bn.get_config()
    config.model = "vgg11_bn"
    return config
