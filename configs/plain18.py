"""The plain network of 18 layers: ResNet-18 without shortcuts, on ImageNet.

Paper: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, section 4.1 and Table 2.
Run: python train.py --config=configs/plain18.py
Published: 72.06 % top-1 (He 2015 Table 2, 10 crops).
Measured: nothing on ImageNet; 61.9 % of Imagenette at 64 pixels in 10 epochs: docs/results.md, "The lineage".
The rest of the recipe is that of configs/plain34.py.
"""

from ml_collections import ConfigDict

from configs import plain34


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = plain34.get_config()
    config.model = "plain18"
    return config
