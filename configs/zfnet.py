"""ZFNet on ImageNet.

Paper: Zeiler and Fergus 2013, Visualizing and understanding convolutional networks, section 3.
Run: python train.py --config=configs/zfnet.py
Published: 61.6 % top-1, 83.5 % top-5 (the paper's single convnet of Fig. 3, 10 crops).
Measured: nothing on ImageNet; 9.1 % (chance) of Imagenette at 64 pixels in 10 epochs: docs/results.md, "The lineage".
The paper divides the learning rate when the validation error stalls, and stops after 70 epochs. The epochs of the drops
here are ours, and the weight decay is AlexNet's. The paper's renormalisation of filters to a norm of 0.1 is left out.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_imagenet_config()
    config.model = "zfnet"
    config.train_crop = "scale_jitter"
    config.train_resize = (256, 256)
    config.batch_size = 128
    config.learning_rate = 0.01
    config.weight_decay = 5e-4
    config.step_epochs = (20, 40, 60)
    config.num_epochs = 70.0
    return config
