"""The table of options: a typed option replaces the recipe's, is refused if it has no effect, and never a traceback."""

import dataclasses
import pathlib
import re

import pytest
from absl import flags
from ml_collections import config_flags

import input_pipeline
import models
from configs import base
from configs._other_names import OTHER_NAMES
from input_pipeline.files import one_line
from models.lenet import LeNet5
from training import command_line, configuration
from training.configuration import apply_typed, resolve_network, resolve_run

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"

ODD = ("", "0", "-1", "1", "2", "1e400", "-1e400", "nan", "inf", "None", "True", "x", "lenet5", "resnet18", "*", "**")
ODD += ("/data/x.pth", "image_folder:/nowhere", "1.5", "0.5", "-0.5", "1" + 23 * "0", "0,0", "0.1,0.9", "0.9,0.1", "()")
ODD += (
    "(0.5,",
    "a,b",
    "[1,2]",
    "1,2,3,4,5",
    "{}",
    "\x1b[31m",
    "a\nb",
    "é",
    "9" * 400,
    "'",
    "1,,2",
    "((1,2),3)",
    "None,1",
)

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


def parse(recipe, *words):
    """Returns the config and the typed options of a command line, parsed as in the programs."""
    command_line.register_parsers()
    values, argv = flags.FlagValues(), ["train.py", f"--config={CONFIGS / recipe}.py", *words]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    typed = config_flags.get_override_values(values["config"])
    apply_typed(values["config"].value, typed)
    return values["config"].value, typed


def check_resolves_or_is_refused(*words):
    """Returns whether the words resolve; fails if they are refused by anything but one printable line."""
    try:
        resolve("base", *words)
        return True
    except (ValueError, flags.Error) as error:  # flags.Error becomes one line in command_line.refuse
        message = one_line(str(error))
        assert message and len(message) < 1000 + sum(map(len, words)) and message.isprintable()
        assert isinstance(error, flags.Error) or "\n" not in str(error)
        return False


def resolve(recipe, *words):
    config, typed = parse(recipe, *words)
    return resolve_run(resolve_network(config, typed), num_classes=10, num_images=50_000, typed=typed)


@pytest.mark.parametrize("name", base.OPTIONS)
def test_each_odd_value_resolves_or_is_refused_in_one_line(name, monkeypatch):
    monkeypatch.setattr(configuration, "check_image_size", lambda network, config: None)  # slow, and tested elsewhere
    assert not all([check_resolves_or_is_refused(f"--config.{name}={value}") for value in ODD])


def test_each_default_is_valid_and_the_table_is_complete():
    config = base.get_config()
    for name, option in base.OPTIONS.items():
        option.check(name, config[name])
        assert option.meaning and option.range
        for need in filter(None, re.split(" and | or ", option.needs)):
            assert need.partition("=")[0] in base.OPTIONS
        assert option.replaces in {"", *base.OPTIONS}


def test_every_number_has_an_upper_bound():
    for name, option in base.OPTIONS.items():
        if option.type in (int, float) and not isinstance(option.values, tuple):
            value = (1e30,) if isinstance(option.default, tuple) else 10**30
            with pytest.raises(ValueError, match=f"{name}=.*"):
                option.check(name, value)


NO_EFFECT = {
    "crop_area": ("0.5,1", "train_crop=random_resized"),
    "crop_aspect": ("0.5,1", "train_crop=random_resized"),
    "train_resize": ("40,50", "train_crop=scale_jitter"),
    "synthetic_examples": ("8", "dataset=synthetic"),
    "rand_augment_layers": ("3", "auto_augment=rand"),
    "rand_augment_magnitude": ("3", "auto_augment=rand"),
    "erasing_area": ("0.1,0.2", "random_erasing"),
    "erasing_aspect": ("0.5,2", "random_erasing"),
    "steps_per_dispatch": ("3", "cache"),
    "aux_heads": ("conv1", "aux_weight"),
    "rmsprop_decay": ("0.5", "optimizer=rmsprop"),
    "rmsprop_epsilon": ("0.5", "optimizer=rmsprop"),
    "target_threshold": ("0.2", "loss=binary_cross_entropy"),
    "adam_betas": ("0.9,0.95", "optimizer=adamw or lamb"),
    "adam_epsilon": ("1e-6", "optimizer=adamw or lamb"),
    "trust_coefficient": ("0.01", "optimizer=lars"),
    "teacher_weight": ("0.3", "teacher"),
    "teacher_temperature": ("2", "teacher"),
    "warmup_learning_rate": ("0.01", "warmup_epochs"),
    "warmup_shape": ("constant", "warmup_epochs"),
    "step_epochs": ("30,60", "schedule=step"),
    "step_steps": ("30,60", "schedule=step"),
    "step_factor": ("0.5", "schedule=step"),
    "exponential_epochs": ("3", "schedule=exponential"),
    "exponential_factor": ("0.5", "schedule=exponential"),
    "polynomial_power": ("2", "schedule=polynomial"),
}


@pytest.mark.parametrize("name", NO_EFFECT)
def test_a_typed_option_without_effect_is_refused(name):
    value, need = NO_EFFECT[name]
    with pytest.raises(ValueError, match=f"^{name}=.* has no effect: it needs {need}, but .*leave {name} out$"):
        parse("base", f"--config.{name}={value}")


@pytest.mark.parametrize(
    "words",
    [
        ("crop_padding=2", "train_crop=none"),
        ("final_learning_rate=0.001", "schedule=constant"),
        ("nesterov=True", "momentum=0"),
        ("nesterov=True", "optimizer=adamw"),
        ("momentum=0.8", "optimizer=lamb"),
        ("decay_norm_and_bias=False", "weight_decay=0"),
        ("decay_norm_and_bias=False", "weight_decay=0", "optimizer=adamw"),
        ("num_epochs=3", "num_steps=5"),
        ("step_epochs=1", "step_steps=1", "schedule=step"),
        ("bn_virtual_batch_size=8",),
        ("stochastic_depth_rate=0.1",),
    ],
)
def test_combinations_without_effect_are_refused(words):
    with pytest.raises(ValueError, match="has no effect|give one of the two"):
        resolve("base", *(f"--config.{word}" for word in words))


@pytest.mark.parametrize("optimizer", ["lamb", "lars"])
def test_the_exemption_of_norms_and_biases_has_an_effect_without_weight_decay(optimizer):
    words = ("decay_norm_and_bias=False", "weight_decay=0", f"optimizer={optimizer}")
    assert not resolve("base", *(f"--config.{word}" for word in words)).decay_norm_and_bias


@pytest.mark.parametrize("word", ["dropout_rate=0.3", "bn_virtual_batch_size=8", "stochastic_depth_rate=0.1"])
def test_options_of_layers_that_the_network_has_are_accepted(word):
    recipe = {"dropout_rate": "alexnet"}.get(word.partition("=")[0], "cifar10_resnet20")
    resolve(recipe, f"--config.{word}", "--config.batch_size=64")


@pytest.mark.parametrize("model", ["lenet5", "alexnet", "resnet18"])
def test_dropout_may_be_typed_for_every_network_that_has_it(model):
    assert resolve("base", f"--config.model={model}", "--config.dropout_rate=0.5").dropout_rate == 0.5
    assert resolve("base", f"--config.model={model}", "--config.dropout_rate=0").dropout_rate == 0


def test_dropout_is_refused_for_a_network_without_it(monkeypatch):
    def build(num_classes, channels, dropout_rate):
        return LeNet5(num_classes, channels, dropout_rate=0)

    monkeypatch.setitem(models.REGISTRY, "lenet5", dataclasses.replace(models.REGISTRY["lenet5"], build=build))
    with pytest.raises(ValueError, match="dropout_rate=0.5 has no effect: lenet5 has no dropout layer"):
        resolve("base", "--config.dropout_rate=0.5")


def test_a_recipe_may_carry_what_an_override_switches_off():
    config = resolve("cifar10_resnet20", "--config.schedule=cosine", "--config.train_crop=none")
    assert config.step_steps == (32_000, 48_000) and config.crop_padding == 4


@pytest.mark.parametrize("recipe", ["cifar10_resnet20", "cifar10_nin", "nin", "squeezenet1_0"])
def test_typed_epochs_win_over_the_steps_of_a_recipe(recipe):
    config = resolve(recipe, "--config.num_epochs=1")
    assert config.num_steps == -(-50_000 // config.batch_size)


def test_typed_boundaries_win_over_those_of_a_recipe():
    config = resolve("cifar10_resnet20", "--config.step_epochs=1,2")
    assert config.step_epochs == (1, 2) and config.step_steps == ()


def test_none_can_be_typed_where_it_is_a_value():
    assert resolve("cifar10_resnet20", "--config.num_steps=None").num_epochs == 30
    for name, option in base.OPTIONS.items():
        if option.default is None:
            assert parse("base", f"--config.{name}=None")[0][name] is None
        elif option.type is not bool and not isinstance(option.default, tuple):
            with pytest.raises(ValueError, match=f"{name}=None"):
                parse("base", f"--config.{name}=None")


def test_sizes_by_epoch_are_typed_as_pairs():
    for text in ("((0,128),(30,160))", "((0, 128), (30.0, 160))"):
        assert resolve("resnet50", f"--config.train_sizes={text}").train_sizes == ((0, 128), (30, 160))
    assert resolve("resnet50", "--config.train_sizes=((0,160))").train_sizes == ((0, 160),)
    for text, message in {
        "128,160": "is not made of pairs",
        "((0,128),(30,160,1))": "is not made of pairs",
        "((1,128),)": "begin at 0",
        "((0,128),(30,160),(20,192))": "in order",
        "((0,128.5),)": "whole numbers",
        "((0,0),)": "out of range",
    }.items():
        with pytest.raises(ValueError, match=message):
            resolve("resnet50", f"--config.train_sizes={text}")
    with pytest.raises(ValueError, match="train_sizes=40 does not fit inception_v3 .*; use at least 75"):
        resolve("inception_v3", "--config.train_sizes=((0,40),)")
    with pytest.raises(ValueError, match="train_sizes needs batches from the host"):
        resolve("base", "--config.train_sizes=((0,28),)", "--config.cache=device")
    with pytest.raises(ValueError, match=r"has no step for 32 pixels in the run of 10 epochs; let the sizes begin"):
        resolve("base", "--config.train_sizes=((0,28),(11,32))", "--config.num_epochs=10")


def test_the_image_size_alone_does_not_replace_a_recipes_sizes():
    with pytest.raises(ValueError, match=r"image_size=96 alone changes the evaluation only: .*; give train_sizes too"):
        resolve("resnet50_tv2", "--config.image_size=96")
    config = resolve("resnet50_tv2", "--config.image_size=96", "--config.train_sizes=((0,80),)")
    assert config.image_size == 96 and config.train_sizes == ((0, 80),)


def test_options_of_a_loss_that_counts_nothing_are_refused():
    teacher = ("--config.teacher=runs/teacher", "--config.teacher_weight=1")
    for word in ("label_smoothing=0.1", "loss=binary_cross_entropy"):
        with pytest.raises(ValueError, match=f"{word.partition('=')[0]}=.* has no effect: with teacher_weight=1 only"):
            resolve("base", *teacher, f"--config.{word}")
    options = ("--config.label_smoothing=0.1", "--config.aux_weight=0.3")  # the auxiliary heads learn from the labels
    assert resolve("googlenet", *teacher, *options).label_smoothing == 0.1


def test_a_threshold_that_makes_all_targets_equal_is_refused():
    """Of ten classes smoothed by 0.1 the targets are 0.01 and 0.91."""
    words = ("--config.loss=binary_cross_entropy", "--config.label_smoothing=0.1")
    for threshold in (0.95, 0.005):
        with pytest.raises(
            ValueError, match="makes all targets equal: with label_smoothing=0.1 they are 0.01 and 0.91"
        ):
            resolve("base", *words, f"--config.target_threshold={threshold}")
    assert resolve("base", *words, "--config.target_threshold=0.2").target_threshold == 0.2


def test_a_batch_too_small_for_its_copies_is_refused():
    with pytest.raises(ValueError, match="batch_size=8 is too small for repeated_augmentation=6; give at least 24"):
        resolve("base", "--config.batch_size=8", "--config.repeated_augmentation=6")


def test_tuples_are_typed_with_commas():
    for text, value in {"0.3": (0.3,), "0.3,0.4": (0.3, 0.4), "(0.3,0.4)": (0.3, 0.4), "()": ()}.items():
        assert parse("googlenet", f"--config.aux_weight={text}")[0].aux_weight == value
    config, _ = parse("googlenet", "--config.aux_heads=inception4a,inception4b")
    assert config.aux_heads == ("inception4a", "inception4b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.lr=0.1"], "--config.lr does not exist; here it is --config.learning_rate"),
        (["--config.grad-accum-steps=2"], "here it is --config.accumulation_steps"),
        (["--config.modle=vgg16"], "did you mean model?"),
        (["--config.zzz=1"], "--config.zzz does not exist; train.py --options lists all"),
        (["--model=vgg16"], "--model is no flag; give --config.model=vgg16"),
        (["--batch-size", "32"], "--batch-size is no flag; give --config.batch_size=VALUE"),
        (["--lr=0.1"], "--lr is no flag; give --config.learning_rate=0.1"),
        (["vgg16"], "'vgg16' has no flag; did you mean --config=configs/vgg16.py?"),
        (["resnet50_v2"], "did you mean --config.model=resnet50_v2?"),
        (["seed=1"], "did you mean --config.seed=1?"),
        (["--config.random_flip", "configs/vgg16.py"], "did you mean --config=configs/vgg16.py?"),
        (["--workdir", "somewhere", "extra"], "'extra' has no flag; every option begins with --"),
    ],
)
def test_a_word_that_is_not_understood_is_answered_with_what_to_type(words, message, monkeypatch, capsys):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["train.py"])
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    monkeypatch.setattr(command_line.flags, "FLAGS", values)
    with pytest.raises(SystemExit) as ended:
        command_line._parse(["train.py", f"--config={CONFIGS}/base.py", *words], None, None)
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and message in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("resnet5", "did you mean .*configs/resnet50.py"), ("transformer", "--list_recipes lists all")],
)
def test_a_recipe_that_does_not_exist_is_answered_with_one_that_is_near(name, message, capsys):
    with pytest.raises(SystemExit):
        command_line._check_config_file(pathlib.Path(f"configs/{name}.py"))
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "message"), [("transformer", "list_models lists all"), ("ResNet-50", "mean 'resnet50'")]
)
def test_a_model_that_does_not_exist_is_answered_with_one_that_is_near(name, message):
    with pytest.raises(ValueError, match=f"unknown model '{name}'; .*{message}"):
        models.get_entry(name)


def test_a_folder_given_as_dataset_is_answered_with_image_folder(tmp_path):
    config = base.get_config()
    config.dataset = str(tmp_path)
    with pytest.raises(ValueError, match=f"is a folder; give --config.dataset=image_folder:{tmp_path}"):
        input_pipeline.load_dataset(config, "train")


def test_other_libraries_names_are_none_of_ours_and_mean_one_of_ours():
    assert not OTHER_NAMES.keys() & base.OPTIONS.keys()
    assert set(OTHER_NAMES.values()) <= base.OPTIONS.keys()
