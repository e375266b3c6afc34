"""Prepares a dataset: python prepare.py NAME [--archive=FILE ...] [--data_dir=DIR] [--max_side=N].

NAME is imagenet2012, imagenette/160px-v2 (or 320px-v2 or full-size-v2), cifar10, cifar100, mnist, fashion_mnist,
another dataset of TFDS, or a folder of images in class folders. The program writes ArrayRecord files under TFDS's name
and in TFDS's layout, so that --config.dataset=NAME, tfds.data_source and other programs can read the dataset.
docs/data.md says how to get the archives of each dataset.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback


from absl import flags

from input_pipeline import prepare_image_libraries
from input_pipeline.files import MAX_IMAGE_PIXELS
from input_pipeline.preparation import prepare
from training import command_line

_ARCHIVE = flags.DEFINE_multi_string("archive", [], "A file or folder that NAME comes in; none: it is downloaded.")
_DATA_DIR = flags.DEFINE(
    command_line.PATH, "data_dir", None, "Where to; default: $TFDS_DATA_DIR or ~/tensorflow_datasets."
)
_MAX_SIDE = flags.DEFINE_integer(
    "max_side", 0, "Longest side, pixels: larger images are shrunk, and the name is NAME_max_side_N; 0: no limit.", 0
)
_MAX_IMAGE_PIXELS = flags.DEFINE_integer(
    "max_image_pixels", MAX_IMAGE_PIXELS, "Largest height times width of an image that --max_side decodes.", 1, 2**40
)
_QUALITY = flags.DEFINE_integer("quality", 90, "Quality of the JPEGs that --max_side writes.", 1, 95)


def main(name: str) -> None:
    """Runs the program."""
    prepare_image_libraries(_MAX_IMAGE_PIXELS.value)
    with command_line.refusing_bad_input():
        for flag in (_QUALITY, _MAX_IMAGE_PIXELS):
            if flag.present and not _MAX_SIDE.value:
                raise ValueError(f"--{flag.name} has no effect without --max_side; give both, or leave it out")
        prepare(
            name, _ARCHIVE.value, _DATA_DIR.value, _MAX_SIDE.value, _QUALITY.value, max_pixels=_MAX_IMAGE_PIXELS.value
        )


if __name__ == "__main__":
    command_line.run(main, argument="NAME")
