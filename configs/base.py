"""Every option, once, with its unit: LeNet-5 on the handwritten digits that scikit-learn bundles.

Run it: python train.py --config=configs/base.py
Change anything: --config.model=resnet18 --config.dataset=image_folder:/data/flowers --config.image_size=128

The other files of this folder are recipes: each starts from these values and overrides what its paper does differently.
An option that is None takes the natural value of the network or the dataset named beside it.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Returns the configuration with every option at its default."""
    config = ConfigDict()

    # Network
    config.model = "lenet5"  # a name of models.REGISTRY
    config.num_classes = config_dict.placeholder(int)  # None: the dataset's
    config.image_size = config_dict.placeholder(int)  # pixels a side; None: the network's own
    config.channels = config_dict.placeholder(int)  # 1 grey, 3 colour; None: the network's own; images are converted
    config.dropout_rate = config_dict.placeholder(float)  # share of activations dropped; None: the paper's
    config.aux_weight = (0.0,)  # weight of the auxiliary classifiers' losses: one for all, or one a head; 0: no head
    config.aux_heads = ()  # stages after which auxiliary classifiers sit; (): the network's own
    config.bn_virtual_batch_size = 0  # images whose statistics batch normalisation shares; 0: the whole batch
    config.dtype = "float32"  # of the computation: float32, bfloat16 or float64; parameters stay float32 (or float64)
    config.init_from = ""  # a workdir whose newest weights the run starts from, all but a head of another size

    # Dataset
    config.dataset = "digits"  # digits, synthetic, image_folder:/path, or a dataset of TFDS: docs/data.md
    config.data_dir = config_dict.placeholder(str)  # where TFDS datasets lie; None: ~/tensorflow_datasets
    config.train_split = config_dict.placeholder(str)  # None: train
    config.eval_split = config_dict.placeholder(str)  # None: validation, or test where there is none
    config.validation_share = 0.2  # of the images, held out where a dataset comes in one piece (digits, some folders)
    config.split_seed = 0  # of the shuffle that chooses the held-out images; `seed` does not touch it
    config.synthetic_examples = 1024  # images that the synthetic dataset pretends to have, a split

    # Images
    config.train_crop = "pad"  # random_resized, scale_jitter, pad or none
    config.crop_area = (0.08, 1.0)  # random_resized: range of the crop's area, a share of the image's
    config.crop_aspect = (3 / 4, 4 / 3)  # random_resized: range of the crop's width over height
    config.train_resize = (256, 480)  # scale_jitter: range of the shorter side before the crop, pixels
    config.crop_padding = 4  # pad: black pixels added to each side before the random crop
    config.random_flip = False  # mirror every other training image
    config.auto_augment = ""  # trivial (TrivialAugment), rand (RandAugment) or '': none
    config.rand_augment_layers = 2  # rand: operations an image, one after the other
    config.rand_augment_magnitude = 9  # rand: their strength, 0 to 30
    config.color_jitter = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation (factor 1 +- this), hue (0 to 0.5)
    config.random_erasing = 0.0  # share of the training images that lose a rectangle, which becomes the mean
    config.erasing_area = (0.02, 0.4)  # random_erasing: range of the rectangle's area, a share of the image's
    config.erasing_aspect = (0.3, 1 / 0.3)  # random_erasing: range of its width over its height
    config.mixup_alpha = 0.0  # pairs of images are blended, their shares drawn from Beta(alpha, alpha); 0: no mixup
    config.cutmix_alpha = 0.0  # the same with a rectangle of the other image; with both on, half each; 0: no cutmix
    config.eval_resize = 0  # shorter side before the centre crop, pixels; 0: squeeze to image_size
    config.mean = (0.5,)  # subtracted from each channel of pixels in [0, 1]; one value serves all channels
    config.std = (0.5,)  # each channel is then divided by this

    config.exif_orientation = False  # turn images as their EXIF tag says, as cameras write it; TFDS, torchvision do not
    config.max_image_pixels = 178_956_970  # pixels of an image file, height times width; larger ones count as damaged

    # Loading
    config.cache = ""  # device: decode the dataset once, keep it on every device, crop and flip there; '': load batches
    config.steps_per_dispatch = 0  # cache=device: steps at most without the host between them; 0: 20; on a CPU always 1
    config.decode_threads = 0  # threads that decode images; 0: as many as the cores suggest
    config.prefetch_batches = 2  # batches kept ready on the devices, besides those that are being loaded
    config.on_bad_image = "raise"  # an image that cannot be decoded: raise, or skip: the next good one takes its place

    # Length
    config.batch_size = 64  # images a step, on all devices together
    config.eval_batch_size = 0  # images an evaluation step, on all devices together; 0: batch_size
    config.num_epochs = 30.0  # passes over the training images; may be a fraction
    config.num_steps = config_dict.placeholder(int)  # optimizer steps; None: num_epochs decides
    config.seed = 0  # of the initial weights, the order of the images, their crops and changes, and the dropout

    # Loss
    config.label_smoothing = 0.0  # share of the target spread evenly over all classes, [0, 1)

    # Optimizer
    config.optimizer = "sgd"  # sgd, with momentum, or rmsprop, whose steps are g / sqrt(mean square of g + epsilon)
    config.learning_rate = 0.05  # at the schedule's height; absolute, not per image
    config.momentum = 0.9
    config.nesterov = False
    config.rmsprop_decay = 0.9  # rmsprop: of the moving average of the gradient's square, a step
    config.rmsprop_epsilon = 1.0  # rmsprop: added under the root
    config.weight_decay = 1e-4  # L2, added to the gradient before the momentum, as the papers have it
    config.decay_norm_and_bias = True  # False: weight decay spares biases and batch-norm parameters
    config.gradient_clip_norm = 0.0  # largest global 2-norm of the gradient; 0: no clipping
    config.accumulation_steps = 1  # micro-batches that a batch is cut into to save memory
    config.ema_decay = 0.0  # of an exponential moving average of the weights, a step; it is evaluated; 0: none

    # Schedule of the learning rate
    config.schedule = "cosine"  # constant, step, exponential, cosine or polynomial
    config.warmup_epochs = 0.0  # from warmup_learning_rate to learning_rate; part of num_epochs
    config.warmup_learning_rate = 0.0  # where the warm-up starts
    config.warmup_shape = "linear"  # or constant: all of it at warmup_learning_rate
    config.step_epochs = ()  # step: epochs at which the rate is multiplied by step_factor
    config.step_steps = ()  # step: the same in optimizer steps; give one of the two
    config.step_factor = 0.1
    config.exponential_epochs = 2.0  # exponential: after each so many epochs the rate is multiplied by ...
    config.exponential_factor = 0.94  # exponential: ... this
    config.polynomial_power = 1.0  # polynomial: learning_rate * (1 - progress) ** power
    config.final_learning_rate = 0.0  # cosine, polynomial: where they end

    # Run
    config.log_every_steps = 50  # optimizer steps between rows of metrics
    config.log_gradient_norms = False  # 2-norm of the loss's gradient, whole and by part of the network, in these rows
    config.evaluate_every_epochs = 1.0  # the last step always has an evaluation
    config.checkpoint_every_steps = 0  # checkpoints; the last step always has one; 0: no others
    config.keep_checkpoints = 3  # newest checkpoints kept
    config.keep_best = True  # a checkpoint after every evaluation besides, of which the best is kept
    config.deterministic = False  # ask a GPU for reproducible kernels (slower); a CPU's always are
    config.tf32 = True  # let a GPU round the factors of float32 products to 10 bits of mantissa (faster)
    config.compilation_cache_dir = "~/.cache/convnets/xla"  # compiled programs, shared by all runs; '': no cache

    return config


def get_imagenet_config() -> ConfigDict:
    """Returns what the ImageNet recipes share: the dataset, its pixels' mean and deviation, flips, a stepped rate."""
    config = get_config()
    config.dataset = "imagenet2012"
    config.random_flip = True
    config.eval_resize = 256
    config.mean = (0.485, 0.456, 0.406)
    config.std = (0.229, 0.224, 0.225)
    config.schedule = "step"
    config.log_every_steps = 100
    return config
