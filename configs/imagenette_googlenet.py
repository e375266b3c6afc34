"""GoogLeNet with both auxiliary classifiers on Imagenette, ten classes of ImageNet, at 128 pixels.

Paper: Szegedy et al. 2014, Going deeper with convolutions, sections 5 and 6; the dataset is fastai's.
Run: python train.py --config=configs/imagenette_googlenet.py
Ablations: --config.aux_weight=0, --config.model=googlenet_bn: benchmarks/studies/auxiliary_classifiers.py runs all four
Published: no figure for this dataset.
Measured: nothing yet on a GPU; docs/results.md has what two CPU cores reach at 64 pixels.
Batch size, learning rate and weight decay are those of configs/googlenet.py (BVLC's). The network learns with them both
without and with batch normalisation; 0.01 for 32 images is nearly the ratio of resnet50's 0.1 for 256.
"""

from ml_collections import ConfigDict

from configs import googlenet


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = googlenet.get_config()
    config.dataset = "imagenette/160px-v2"
    config.image_size = 128
    config.crop_area = (0.35, 1.0)
    config.eval_resize = 144
    config.num_epochs = 40.0
    config.log_every_steps = 40
    return config
