"""Invalid options are refused with the right error messages; options that are None get natural values."""

import pytest

from configs import base, googlenet
from training.configuration import resolve_network, resolve_run


def resolve(config=None, dataset_classes=10, num_images=1000, **options):
    config = config or base.get_config()
    config.update(options)
    return resolve_run(resolve_network(config), dataset_classes, num_images)


def test_natural_values():
    config = resolve(googlenet.get_config(), dataset_classes=1000, num_images=1_281_167)
    assert (config.image_size, config.channels, config.num_classes, config.dropout_rate) == (224, 3, 1000, 0.4)
    assert config.aux_heads == ("inception4a", "inception4d") and config.aux_weight == (0.3, 0.3)
    assert config.num_steps == -(-60 * 1_281_167 // 32) and config.eval_batch_size == 32


def test_a_head_without_weight_does_not_exist():
    assert resolve(googlenet.get_config(), aux_weight=(0.0,)).aux_heads == ()
    config = resolve(googlenet.get_config(), aux_weight=(0.0, 0.4))
    assert config.aux_heads == ("inception4d",) and config.aux_weight == (0.4,)


def test_steps_override_epochs_and_epochs_may_be_fractions():
    assert resolve(num_steps=7).num_epochs == pytest.approx(7 * 64 / 1000)
    assert resolve(num_epochs=0.5).num_steps == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet19"}, "unknown model 'resnet19'; did you mean 'resnet18'"),
        ({"model": "vgg16", "image_size": 16}, "image_size=16 does not fit vgg16 .* use at least 32$"),
        ({"model": "alexnet", "image_size": 40}, "image_size=40 does not fit alexnet .* use at least 67$"),
        ({"image_size": -3}, "image_size=-3"),
        ({"channels": 2}, "channels=2 is unknown; choose 1, 3"),
        ({"dtype": "float16"}, "dtype='float16' is unknown; did you mean bfloat16"),
        ({"mean": (0.5, 0.5)}, "mean=.* has 2 values; give 1"),
        ({"std": (0.0,)}, "std=.* out of range"),
        ({"aux_weight": (0.3,)}, "lenet5 has no auxiliary heads"),
        ({"model": "googlenet", "aux_weight": (1.0, 2.0, 3.0)}, "3 weights for 2 heads"),
        ({"model": "googlenet", "aux_weight": ("x",)}, "aux_weight=.* is not made of numbers"),
        ({"model": "googlenet", "aux_weight": (-0.3,)}, "aux_weight=.* is out of range"),
        ({"warmup_epochs": 40.0}, "warmup_epochs=40 is longer than the run of 30"),
        ({"batch_size": 12}, "batch_size=12 cannot be shared by 8 devices; give a multiple of 8"),
        ({"eval_batch_size": 12}, "eval_batch_size=12 cannot be shared by 8 devices"),
        ({"batch_size": 24, "accumulation_steps": 2}, "8 devices times 2 micro-batches; give a multiple of 16"),
        ({"batch_size": 64, "bn_virtual_batch_size": 3}, "does not divide the 8 images"),
        ({"num_classes": 5}, "num_classes=5 is too few: digits has 10 classes"),
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"train_crop": "random"}, "train_crop='random' is unknown"),
        ({"auto_augment": "random"}, "auto_augment='random' is unknown; did you mean rand?"),
        ({"auto_augment": "x"}, "auto_augment='x' is unknown; choose trivial, rand$"),
        ({"cache": "devise"}, "did you mean device?"),
        ({"color_jitter": (0.4,)}, "color_jitter=.* has 1 values; give 4"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, "a hue of at most 0.5"),
        ({"random_erasing": 1.5}, "random_erasing=1.5 is out of range; give at least 0 and at most 1"),
        ({"rand_augment_magnitude": 31}, "give at least 0 and at most 30"),
        ({"erasing_area": (0.4, 0.02)}, "erasing_area=.* is no range"),
        ({"mixup_alpha": 0.2, "batch_size": 24}, "each of 8 devices 3 images, .* cannot pair; give a multiple of 16"),
        ({"mean": ("a",)}, "mean=.* is not made of numbers"),
        ({"step_epochs": ("a", "b")}, "step_epochs=.* is not made of numbers"),
        ({"crop_area": (0.5,)}, "crop_area=.* has 1 values; give 2"),
        ({"num_epochs": float("inf")}, "num_epochs=inf is out of range"),
        ({"seed": -1}, "seed=-1"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs momentum"),
        ({"eval_resize": 20}, "eval_resize=20 is smaller than image_size=32"),
        ({"train_crop": "scale_jitter", "train_resize": (20, 30)}, "train_resize=.* starts below image_size=32"),
        ({"step_epochs": (1,), "step_steps": (1,)}, "give one of the two"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 is out of range"),
        ({"momentum": -0.1}, "momentum=-0.1 is out of range"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is out of range"),
        ({"num_steps": 0}, "num_steps=0 is out of range"),
        ({"num_epochs": 0.0}, "num_epochs=0 trains nothing"),
        ({"batch_size": 0}, "batch_size=0 is out of range"),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0 is out of range; give at least 1"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        resolve(**options)
    assert "\n" not in str(caught.value)


def test_the_smallest_image_that_is_named_fits():
    assert resolve(model="alexnet", image_size=67).image_size == 67
