"""Measures one input pipeline; input_pipelines.py runs this file under a Python that has the pipeline's packages.

Arguments: the pipeline's name, a folder of JPEGs, the image size, the batch size, the number of cores. Every line on
standard input is a number of seconds: the pipeline is started, warmed up, measured for that long, and ended.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ours(files: list[str], size: int, batch_size: int, cores: int) -> Iterator:
    """Runs this project's pipeline: uint8 batches on the host, because the step normalises them."""
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
    import input_pipeline
    from configs import resnet50

    config = resnet50.get_config()
    config.update({"image_size": size, "channels": 3, "batch_size": batch_size})
    dataset = input_pipeline.Dataset(
        "files", "train", ("0",), len(files), lambda record: (pathlib.Path(files[record]).read_bytes(), 0), str
    )
    with input_pipeline.train_batches(dataset, config) as batches:
        yield from batches


def tf_data(files: list[str], size: int, batch_size: int, cores: int, as_uint8: bool = False) -> Iterator:
    """Runs tf.data as in Flax's ImageNet example: fused decode and crop, bicubic, flip, normalised float32."""
    import tensorflow as tf

    def load(path):
        encoded = tf.io.read_file(path)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.io.decode_and_crop_jpeg(encoded, tf.concat([begin[:2], extent[:2]], 0), channels=3)
        image = tf.image.resize(image, (size, size), "bicubic")
        image = tf.image.random_flip_left_right(tf.ensure_shape(image, (size, size, 3)))
        if as_uint8:
            return tf.saturate_cast(tf.round(image), tf.uint8), 0
        return (image - tf.constant(MEAN) * 255) / (tf.constant(STD) * 255), 0

    options = tf.data.Options()
    options.threading.private_threadpool_size = 48
    dataset = tf.data.Dataset.from_tensor_slices(files).with_options(options).repeat().shuffle(16 * batch_size, seed=0)
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size, drop_remainder=True)
    yield from dataset.prefetch(10).as_numpy_iterator()


def torch(files: list[str], size: int, batch_size: int, cores: int) -> Iterator:
    """Runs Pillow as torchvision uses it, uint8, in a DataLoader with a worker process for each core."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    transform = transforms.Compose(
        [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )

    class Files(Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, index):
            with Image.open(files[index]) as image:
                return transform(image.convert("RGB")), 0

    loader = DataLoader(
        Files(), batch_size, shuffle=True, num_workers=cores, drop_last=True, persistent_workers=True, prefetch_factor=4
    )
    while True:
        yield from loader


PIPELINES = {
    "ours": ours,
    "tf.data": tf_data,
    "tf.data, uint8": lambda *arguments: tf_data(*arguments, as_uint8=True),
    "Pillow, DataLoader": torch,
}


def main() -> None:
    """Measures once for each line of standard input."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    name, folder, *numbers = sys.argv[1:]
    size, batch_size, cores = map(int, numbers)
    files = sorted(str(path) for path in pathlib.Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for line in sys.stdin:
        batches = PIPELINES[name](files, size, batch_size, cores)
        for _ in range(20):  # batches that were loaded before the clock starts do not count
            next(batches)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < float(line):
            next(batches)
            count += batch_size
        print(json.dumps(count / (time.perf_counter() - start)), flush=True)
        batches.close()


if __name__ == "__main__":
    main()
