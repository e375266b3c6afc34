"""ConvNeXt-T on ImageNet by torchvision's recipe: 600 epochs at 176 pixels, evaluated at 224.

Paper: Liu, Mao, Wu, Feichtenhofer, Darrell, Xie 2022, A ConvNet for the 2020s.
Source: torchvision's pull request 5197, which has the command.
Run: python train.py --config=configs/convnext_tiny.py
Published: 82.52 % top-1, 96.146 % top-5 (torchvision V1).
Measured: nothing on ImageNet; 27.0 % of Imagenette at 64 pixels in 10 epochs: docs/results.md, "The lineage".
docs/recipes.md has each option beside its source, and what differs.
"""

from ml_collections import ConfigDict

from configs import resnet50_tv2


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = resnet50_tv2.get_config()
    config.model = "convnext_tiny"
    config.bn_virtual_batch_size = 0  # the network has no batch normalisation
    config.stochastic_depth_rate = 0.1
    config.eval_resize = 236
    config.optimizer = "adamw"
    config.learning_rate = 0.001
    config.weight_decay = 0.05
    config.warmup_learning_rate = 1e-5
    return config
