"""Fine-tunes published weights on your own images, in folders named by class.

Run: python train.py --config=configs/finetune.py --config.dataset=image_folder:/data/flowers
Another network: --config.model=resnet18 --config.init_from=timm/resnet18.a1_in1k (python convert.py --list)
Very few images, or little time: --config.freeze=backbone trains the last layer only (a linear probe);
--config.freeze=stem,stage1,stage2 trains the last two stages of a ResNet and its head.
Rates by depth: --config.layer_decay=0.75 (Bao et al. 2021, BEiT; for a ResNet between 0.7 and 0.9).
Published: nothing, as the images are yours.
Measured: ResNet-50: nothing yet. ResNet-20 at 32 pixels, 20 images of each class of Imagenette: 55.2 % from CIFAR-10's
weights, 34.5 % from random ones (docs/results.md, "Fine-tuning").
Choices: a tenth of the learning rate of training from random weights, ten times that for the new head; mild crops, no
mixup; 20 epochs with a short warm-up, so that the random head does not spoil the features in the first steps. The
size, the interpolation and the normalisation of the images are those of the published weights.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "resnet50"
    config.init_from = "timm/resnet50.a1_in1k"
    config.dataset = "image_folder:data"
    config.train_crop = "random_resized"
    config.crop_area = (0.25, 1.0)
    config.batch_size = 32
    config.num_epochs = 20.0
    config.learning_rate = 0.005
    config.head_rate_factor = 10.0
    config.decay_norm_and_bias = False
    config.label_smoothing = 0.1
    config.schedule = "cosine"
    config.warmup_epochs = 1.0
    config.log_every_steps = 20
    return config
