"""Every option with its default and unit; the defaults train LeNet-5 on the handwritten digits of scikit-learn.

Run it: python train.py --config=configs/base.py
Change options: --config.model=resnet18 --config.dataset=image_folder:/data/flowers --config.image_size=128
List all options on the terminal: python train.py --options

Each entry has a default, the valid values and the meaning; configs/_option.py describes the other fields. An option
whose default is None gets a default of the network or of the dataset. The other files of this folder are recipes:
each starts from these values and overrides those that its paper sets differently.
"""

import functools

from ml_collections import ConfigDict, config_dict

from configs._option import Option

Range = functools.partial(Option, length=2, ascending=True)

SECTIONS = {
    "Network": {
        "model": Option("lenet5", "", "name of a network in models.REGISTRY"),
        "num_classes": Option(None, "[1, 1e6] classes", "size of the last layer; None: the dataset's", kind=int),
        "image_size": Option(None, "[1, 65536] pixels", "side of the images; None: the network's own", kind=int),
        "channels": Option(None, (1, 3), "1: grey, 3: colour; images are converted; None: the network's own", kind=int),
        "dropout_rate": Option(None, "[0, 1) of the activations", "share dropped; None: the network's own", kind=float),
        "stochastic_depth_rate": Option(
            0.0,
            "[0, 1) of the images",
            "share that skips the last residual block in training; it rises linearly from 0 at the first block",
        ),
        "aux_weight": Option(
            (0.0,), "[0, 1000]", "weight of the auxiliary classifiers' losses: one for all, or one for each; 0: no head"
        ),
        "aux_heads": Option(
            (), "", "stages followed by an auxiliary classifier; (): the network's own", kind=str, needs="aux_weight"
        ),
        "bn_virtual_batch_size": Option(
            0, "[0, 2^20] images", "images that share batch-normalisation statistics; 0: the whole batch"
        ),
        "dtype": Option(
            "float32", ("float32", "bfloat16", "float64"), "type of the computation; parameters are at least float32"
        ),
        "init_from": Option(
            "",
            "",
            "what the run starts from: a workdir, or published weights (convert.py --list); new classes get a new head",
        ),
    },
    "Dataset": {
        "dataset": Option("digits", "", "digits, synthetic, image_folder:/path, or a dataset of TFDS: docs/data.md"),
        "data_dir": Option(
            None,
            "",
            "folder of TFDS datasets; None: $TFDS_DATA_DIR, or ~/tensorflow_datasets",
            kind=str,
            affects_result=False,
        ),
        "train_split": Option(None, "", "split for training; None: train", kind=str),
        "eval_split": Option(
            None, "", "split for evaluation; None: validation, or test where there is no validation split", kind=str
        ),
        "validation_share": Option(
            0.2,
            "(0, 1) of the images",
            "share held out where the dataset has no validation split (digits, some folders)",
        ),
        "split_seed": Option(
            0, "[0, 2^32)", "seed for the choice of the held-out images; `seed` does not change that choice"
        ),
        "synthetic_examples": Option(
            1024, "[1, 1e9] images", "size of each split of the synthetic dataset", needs="dataset=synthetic"
        ),
    },
    "Images": {
        "train_crop": Option(
            "pad", ("random_resized", "scale_jitter", "pad", "none"), "how a training image is cut to image_size"
        ),
        "train_sizes": Option(
            (),
            "[1, 65536] pixels",
            "side of the training images by epoch: ((0, 128), (30, 160)) is 128 until epoch 30, then 160; evaluations "
            "are at image_size; (): image_size throughout",
            kind=int,
            by_epoch=True,
        ),
        "crop_area": Range(
            (0.08, 1.0), "(0, 1] of the image's area", "range of the crop's area", needs="train_crop=random_resized"
        ),
        "crop_aspect": Range(
            (3 / 4, 4 / 3),
            "(0, 100]",
            "range of the crop's width divided by its height",
            needs="train_crop=random_resized",
        ),
        "train_resize": Range(
            (256, 480),
            "[1, 65536] pixels",
            "range of the image's shorter side before the crop",
            needs="train_crop=scale_jitter",
        ),
        "crop_padding": Option(
            4, "[0, 65536] pixels", "black border added to each side before the random crop", needs="train_crop=pad"
        ),
        "random_flip": Option(False, "", "mirror each training image with probability 1/2"),
        "auto_augment": Option("", ("", "trivial", "rand"), "trivial: TrivialAugment, rand: RandAugment, '': neither"),
        "rand_augment_layers": Option(
            2, "[1, 100] operations", "operations applied to each image in turn", needs="auto_augment=rand"
        ),
        "rand_augment_magnitude": Option(9, "[0, 30]", "strength of the operations", needs="auto_augment=rand"),
        "color_jitter": Option(
            (0.0, 0.0, 0.0, 0.0),
            "[0, 100]",
            "values for brightness, contrast, saturation and hue: the first three are multiplied by a factor between "
            "1 - value and 1 + value; the hue is shifted by at most its value (0.5: half the colour circle)",
            length=4,
        ),
        "random_erasing": Option(
            0.0, "[0, 1] of the images", "share of the training images with a rectangle set to the mean"
        ),
        "erasing_area": Range(
            (0.02, 0.4), "(0, 1] of the image's area", "range of the rectangle's area", needs="random_erasing"
        ),
        "erasing_aspect": Range(
            (0.3, 1 / 0.3), "(0, 100]", "range of the rectangle's width divided by its height", needs="random_erasing"
        ),
        "repeated_augmentation": Option(
            1,
            "[1, 64] copies",
            "copies of each image in a batch, each augmented anew (Hoffer 2019); an epoch keeps its number of steps",
        ),
        "mixup_alpha": Option(0.0, "[0, 1000]", "blend pairs of images by shares from Beta(alpha, alpha); 0: no mixup"),
        "cutmix_alpha": Option(
            0.0,
            "[0, 1000]",
            "paste a rectangle of another image, its area from Beta(alpha, alpha); 0: no cutmix; if mixup is on too, "
            "each image gets one of the two at random",
        ),
        "eval_resize": Option(
            0, "[0, 65536] pixels", "shorter side before the centre crop; 0: resize both sides to image_size, no crop"
        ),
        "interpolation": Option(
            "bilinear", ("bilinear", "bicubic"), "how images are resized, for training and for evaluation"
        ),
        "mean": Option((0.5,), "[0, 1]", "subtracted from pixels in [0, 1]: one for all channels, or one each"),
        "std": Option((0.5,), "(0, 1]", "divisor after the subtraction: one for all channels, or one each"),
        "exif_orientation": Option(
            False, "", "turn images as their EXIF tag says, as cameras write it; TFDS and torchvision do not"
        ),
        "max_image_pixels": Option(
            178_956_970,
            "[1, 2^40] pixels",
            "largest height times width of an image file; a larger image counts as damaged",
            affects_result=False,
        ),
    },
    "Loading": {
        "cache": Option(
            "",
            ("", "device", "sharded"),
            "device: keep the decoded dataset on every device; sharded: a part of it on each; '': load batches",
        ),
        "steps_per_dispatch": Option(
            0,
            "[0, 10000] steps",
            "most steps in one call of the compiled program; 0: 20; on a CPU always 1",
            needs="cache",
            affects_result=False,
        ),
        "decode_threads": Option(
            0, "[0, 1024] threads", "threads that decode images; 0: cores + 1, at most 32", affects_result=False
        ),
        "prefetch_batches": Option(
            2,
            "[1, 1000] batches",
            "batches kept ready on the devices, besides those being loaded",
            affects_result=False,
        ),
        "on_bad_image": Option(
            "raise",
            ("raise", "skip"),
            "raise: an image that cannot be decoded ends the run; skip: another training image takes its place",
            affects_result=False,
        ),
    },
    "Length": {
        "batch_size": Option(64, "[1, 2^20] images", "images in a step, over all devices"),
        "eval_batch_size": Option(
            0, "[0, 2^20] images", "images in an evaluation step, over all devices; 0: batch_size", affects_result=False
        ),
        "num_epochs": Option(
            30.0,
            "[0, 1e6] epochs",
            "passes over the training images; may be a fraction",
            needs="num_steps=None",
            replaces="num_steps",
        ),
        "num_steps": Option(None, "[1, 2^31) steps", "optimizer steps; None: num_epochs decides", kind=int),
        "seed": Option(
            0, "[0, 2^32)", "seed for the initial weights, the order of the images, augmentation and dropout"
        ),
    },
    "Loss": {
        "loss": Option(
            "cross_entropy",
            ("cross_entropy", "binary_cross_entropy"),
            "cross_entropy: of the softmax; binary_cross_entropy: one yes-or-no question a class (Wightman 2021)",
        ),
        "label_smoothing": Option(0.0, "[0, 1) of the target", "share spread evenly over all classes"),
        "target_threshold": Option(
            0.0,
            "[0, 1) of the target",
            "targets above it count as 1 and the others as 0, after mixup and cutmix; 0: targets as they are",
            needs="loss=binary_cross_entropy",
        ),
    },
    "Distillation": {
        "teacher": Option(
            "", "", "trained network that the run learns from too: a workdir, or published weights (convert.py --list)"
        ),
        "teacher_weight": Option(
            0.5,
            "(0, 1] of the loss",
            "share of the divergence from the teacher; the rest is the loss. binary_cross_entropy, a mean over the "
            "classes, is far smaller than the divergence: give less with it",
            needs="teacher",
        ),
        "teacher_temperature": Option(
            1.0,
            "(0, 1000]",
            "divisor of both networks' logits; above 1 small probabilities count more",
            needs="teacher",
        ),
    },
    "Optimizer": {
        "optimizer": Option(
            "sgd",
            ("sgd", "rmsprop", "adamw", "lamb", "lars"),
            "sgd with momentum; rmsprop: steps of g / sqrt(mean square of g + epsilon); adamw (Loshchilov 2017); lamb "
            "and lars (You 2019, 2017): adamw and sgd with a step in proportion to the norm of each weight array",
        ),
        "learning_rate": Option(0.05, "(0, 1e6]", "peak learning rate, for the whole batch, not for one image"),
        "momentum": Option(
            0.9, "[0, 1)", "share of the last update that is added to the next", needs="optimizer=sgd|rmsprop|lars"
        ),
        "nesterov": Option(False, "", "use Nesterov's momentum", needs="momentum and optimizer=sgd|rmsprop|lars"),
        "rmsprop_decay": Option(
            0.9, "[0, 1) per step", "decay of the moving mean of squared gradients", needs="optimizer=rmsprop"
        ),
        "rmsprop_epsilon": Option(1.0, "(0, 1e6]", "added under the root", needs="optimizer=rmsprop"),
        "adam_betas": Option(
            (0.9, 0.999),
            "[0, 1) per step",
            "decays of the moving means of gradients and of squared gradients",
            length=2,
            needs="optimizer=adamw|lamb",
        ),
        "adam_epsilon": Option(
            1e-8,
            "(0, 1e6]",
            "added to the root of the mean square; lamb's authors have 1e-6",
            needs="optimizer=adamw|lamb",
        ),
        "trust_coefficient": Option(
            0.001,
            "(0, 1000]",
            "norm of lars's step over the norm of the weights, at a learning rate of 1",
            needs="optimizer=lars",
        ),
        "weight_decay": Option(
            1e-4,
            "[0, 1000]",
            "sgd, rmsprop, lars: L2 penalty, added to the gradient; adamw, lamb: each step shrinks the weights by the "
            "learning rate times this",
        ),
        "decay_norm_and_bias": Option(
            True,
            "",
            "apply weight decay, and the scaling by norms of lamb and lars, to biases and normalisation parameters too",
            needs="weight_decay or optimizer=lamb|lars",
        ),
        "gradient_clip_norm": Option(0.0, "[0, 1e6]", "largest global 2-norm of the gradient; 0: no clipping"),
        "accumulation_steps": Option(1, "[1, 2^20]", "micro-batches that each batch is cut into to save memory"),
        "sharpness_radius": Option(
            0.0,
            "[0, 100]",
            "SAM (Foret 2021): the gradient is taken after a step of this length (2-norm) along the gradient; doubles "
            "the time; 0: off",
        ),
        "shard_params": Option(
            False,
            "",
            "each device keeps a part of every large array of the state, and fetches the rest when it needs it",
            affects_result=False,
        ),
        "ema_decay": Option(
            0.0, "[0, 1) per step", "decay of the moving average of the weights, which is evaluated; 0: no average"
        ),
    },
    "Fine-tuning": {
        "freeze": Option(
            (),
            "",
            "parts that keep the weights of init_from: stem, stage1, stage*, a layer; backbone: all but the head",
            kind=str,
            needs="init_from",
        ),
        "layer_decay": Option(
            1.0,
            "(0, 1]",
            "the learning rate of each block is that of the next one times this, back to the stem; 1: all equal",
        ),
        "head_rate_factor": Option(
            1.0, "(0, 1e6]", "factor of the learning rate of the output layers, whose size is the number of classes"
        ),
    },
    "Schedule of the learning rate": {
        "schedule": Option(
            "cosine", ("constant", "step", "exponential", "cosine", "polynomial"), "shape after the warm-up"
        ),
        "warmup_epochs": Option(
            0.0, "[0, 1e6] epochs", "length of the rise to learning_rate, which is part of num_epochs; 0: no warm-up"
        ),
        "warmup_learning_rate": Option(
            0.0, "[0, 1e6]", "learning rate at the start of the warm-up", needs="warmup_epochs"
        ),
        "warmup_shape": Option(
            "linear",
            ("linear", "constant"),
            "constant: the warm-up stays at warmup_learning_rate",
            needs="warmup_epochs",
        ),
        "step_epochs": Option(
            (),
            "[0, 1e6] epochs",
            "when the rate is multiplied by step_factor",
            kind=float,
            needs="schedule=step",
            replaces="step_steps",
        ),
        "step_steps": Option(
            (),
            "[0, 2^31) steps",
            "when the rate is multiplied by step_factor, in optimizer steps; give this or step_epochs",
            kind=int,
            needs="schedule=step",
            replaces="step_epochs",
        ),
        "step_factor": Option(
            0.1, "(0, 1000]", "factor of the rate at each of step_epochs or step_steps", needs="schedule=step"
        ),
        "exponential_epochs": Option(
            2.0, "(0, 1e6] epochs", "time between two multiplications of the rate", needs="schedule=exponential"
        ),
        "exponential_factor": Option(0.94, "(0, 1000]", "factor of each multiplication", needs="schedule=exponential"),
        "polynomial_power": Option(
            1.0, "(0, 1000]", "learning_rate * (1 - progress) ** power", needs="schedule=polynomial"
        ),
        "final_learning_rate": Option(
            0.0, "[0, 1e6]", "learning rate at the end of the run", needs="schedule=cosine|polynomial"
        ),
    },
    "Run": {
        "log_every_steps": Option(50, "[1, 2^31) steps", "steps between rows of metrics", affects_result=False),
        "log_gradient_norms": Option(
            False, "", "add the gradient's 2-norm to the rows of metrics, in total and by part", affects_result=False
        ),
        "evaluate_every_epochs": Option(
            1.0, "[0, 1e6] epochs", "time between evaluations; the last step always has one", affects_result=False
        ),
        "checkpoint_every_steps": Option(
            0,
            "[0, 2^31) steps",
            "steps between checkpoints; 0: only the last step's and those of keep_best",
            affects_result=False,
        ),
        "keep_checkpoints": Option(3, "[1, 1e6] checkpoints", "newest checkpoints kept", affects_result=False),
        "keep_best": Option(
            True, "", "save a checkpoint after each evaluation, and keep the best one", affects_result=False
        ),
        "deterministic": Option(False, "", "use a GPU's reproducible kernels (slower); a CPU's always are"),
        "tf32": Option(True, "", "let a GPU round float32 factors to 10 bits of mantissa (faster)"),
        "compilation_cache_dir": Option(
            "~/.cache/convnets/xla",
            "",
            "folder of compiled programs, shared by all runs; '': none",
            affects_result=False,
        ),
        "remote_cache_dir": Option(
            "~/.cache/convnets/remote",
            "",
            "folder of the local copies of workdirs and datasets that are given as s3:// or gs://",
            affects_result=False,
        ),
        "remote_upload_seconds": Option(
            10.0, "[0.1, 86400] seconds", "time between two uploads to a remote workdir", affects_result=False
        ),
        "remote_timeout_seconds": Option(
            300.0,
            "[0, 86400] seconds",
            "if a store of a remote workdir or dataset keeps failing for this long, the run saves and ends",
            affects_result=False,
        ),
        "process_timeout_seconds": Option(
            40.0,
            "[1, 86400] seconds",
            "if one of several processes does not start or answer for this long, all of them end",
            affects_result=False,
        ),
    },
}

OPTIONS: dict[str, Option] = {name: option for section in SECTIONS.values() for name, option in section.items()}


def get_config() -> ConfigDict:
    """Returns the configuration with every option at its default."""
    return ConfigDict(
        {
            name: config_dict.placeholder(option.type) if option.default is None else option.default
            for name, option in OPTIONS.items()
        }
    )


def get_imagenet_config() -> ConfigDict:
    """Returns the options that the ImageNet recipes share: the dataset, mean and std of its pixels, flips, schedule."""
    config = get_config()
    config.dataset = "imagenet2012"
    config.random_flip = True
    config.eval_resize = 256
    config.mean = (0.485, 0.456, 0.406)
    config.std = (0.229, 0.224, 0.225)
    config.schedule = "step"
    config.log_every_steps = 100
    return config
