"""ResNet-18 on Imagenette, ten classes of ImageNet, at 128 pixels.

Paper: He, Zhang, Ren, Sun 2015; the dataset is fastai's, its images 160 pixels on the shorter side.
Run: python train.py --config=configs/imagenette_resnet18.py
From a folder: --config.dataset=image_folder:/data/imagenette2-160
Published: 91.57 % (fastai's leaderboard at 128 px and 20 epochs, mean of 5; another network and recipe).
Measured: nothing yet on a GPU; docs/results.md has what two CPU cores reach at 64 pixels.
Choices: in few epochs a shallow network, small batches (and so many steps) and large crops give the best accuracy.
imagenette_5.py, imagenette_20.py and imagenette_80.py are for a GPU.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "resnet18"
    config.dataset = "imagenette/160px-v2"
    config.image_size = 128
    config.train_crop = "random_resized"
    config.crop_area = (0.35, 1.0)
    config.eval_resize = 144
    config.batch_size = 64
    config.num_epochs = 20.0
    config.learning_rate = 0.1
    config.nesterov = True
    config.weight_decay = 5e-4
    config.decay_norm_and_bias = False
    config.label_smoothing = 0.1
    config.schedule = "cosine"
    config.warmup_epochs = 1.0
    config.log_every_steps = 20
    return config
