import io
import re
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image
from sklearn.datasets import load_digits

import input_pipeline
from input_pipeline import decoding, eval_batches, load_dataset
from input_pipeline.tfrecords import masked_crc32c

REPOSITORY = Path(input_pipeline.__file__).parents[1]


def write_image(path, value, mode="RGB", form="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode == "L" else (value,) * len(mode)
    Image.new(mode, (12, 10), colour).save(path, form)


def images_of(dataset):
    return {int(decoding.decode(dataset[record][0], 1)[0, 0, 0]) for record in range(len(dataset))}


def test_digits_are_scikit_learns_and_360_are_held_out(make_config):
    config = make_config(dataset="digits", image_size=8)
    train, validation = load_dataset(config, "train"), load_dataset(config, "eval")
    assert (len(train), len(validation), train.num_classes) == (1437, 360, 10)
    assert train.class_names == tuple("0123456789")
    # Both splits together have each record once, with its label.
    pixels, labels = load_digits(return_X_y=True)
    pixels = np.round(pixels * 255 / 16).astype(int)
    expected = sorted(zip(pixels.tolist(), labels.tolist(), strict=True))
    records = [dataset[i] for dataset in (train, validation) for i in range(len(dataset))]
    assert sorted((image.ravel().tolist(), label) for image, label in records) == expected


def test_digits_are_resized_when_read(make_config):
    image, label = load_dataset(make_config(dataset="digits", image_size=32), "train")[0]
    assert (image.shape, image.dtype, type(label)) == ((32, 32, 1), np.uint8, int)


def test_split_seed_changes_what_is_held_out(make_config):
    held_out = [load_dataset(make_config(dataset="digits", split_seed=seed), "eval").describe(0) for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_synthetic(make_config):
    dataset = load_dataset(make_config(num_classes=5), "train")
    image, label = dataset[7]
    assert (len(dataset), dataset.num_classes, image.shape, image.dtype, label) == (20, 5, (8, 8, 3), np.uint8, 2)
    again = load_dataset(make_config(num_classes=5), "train")
    np.testing.assert_array_equal(image, again[7][0])
    assert load_dataset(make_config(), "eval").num_classes == 1000


def test_reading_past_the_end(make_config):
    dataset = load_dataset(make_config(), "train")
    assert len(list(dataset)) == 20
    with pytest.raises(IndexError):
        dataset[-1]


@pytest.mark.parametrize("eval_folder", ["val", "validation", "test"])
def test_folder_with_both_splits(make_config, tmp_path, eval_folder):
    for number, (split, label) in enumerate([("train", "cat"), ("train", "dog"), (eval_folder, "cat")]):
        write_image(tmp_path / split / label / "0.png", number)
    write_image(tmp_path / eval_folder / "dog" / "deeper" / "1.PNG", 3)
    write_image(tmp_path / "train" / "cat" / ".hidden.png", 9)
    config = make_config(dataset=f"image_folder:{tmp_path}")
    train, evaluation = load_dataset(config, "train"), load_dataset(config, "eval")
    assert train.class_names == evaluation.class_names == ("cat", "dog")
    assert (images_of(train), images_of(evaluation)) == ({0, 1}, {2, 3})
    assert [evaluation[record][1] for record in range(2)] == [0, 1]
    assert (train.split, evaluation.split) == ("train", eval_folder)


@pytest.mark.parametrize("inside", ["", "train"])
def test_folder_without_validation_holds_out_a_share(make_config, tmp_path, inside):
    for number in range(10):
        write_image(tmp_path / inside / f"class{number % 2}" / f"{number}.png", number)
    config = make_config(dataset=f"image_folder:{tmp_path}", validation_share=0.3)
    train, evaluation = images_of(load_dataset(config, "train")), images_of(load_dataset(config, "eval"))
    assert (len(train), len(evaluation)) == (7, 3)
    assert train | evaluation == set(range(10))


def test_folder_may_have_a_class_called_train(make_config, tmp_path):
    for number, label in enumerate(["car", "car", "train", "train"]):
        write_image(tmp_path / label / f"{number}.png", number)
    dataset = load_dataset(make_config(dataset=f"image_folder:{tmp_path}"), "train")
    assert dataset.class_names == ("car", "train")


def test_folder_reads_by_content(make_config, tmp_path):
    write_image(tmp_path / "val" / "a" / "grey.png", 50, mode="L")
    write_image(tmp_path / "val" / "a" / "inks.jpg", 0, mode="CMYK", form="JPEG")  # no ink: white
    write_image(tmp_path / "val" / "a" / "png.JPEG", 90, form="PNG")
    write_image(tmp_path / "train" / "a" / "0.png", 0)
    config = make_config(dataset=f"image_folder:{tmp_path}", eval_batch_size=3)
    with eval_batches(load_dataset(config, "eval"), config) as batches:
        batch = next(batches)
    for image, value in zip(batch["image"], [50, 255, 90], strict=True):
        np.testing.assert_array_equal(image, np.full((8, 8, 3), value))


def test_folder_errors(make_config, tmp_path):
    def message(error, split="train", **options):
        with pytest.raises(error) as raised:
            load_dataset(make_config(dataset=f"image_folder:{tmp_path / 'data'}", **options), split)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "no folder" in message(FileNotFoundError)
    (tmp_path / "data").mkdir()
    assert "no class folders" in message(ValueError)
    (tmp_path / "data" / "train" / "cat").mkdir(parents=True)
    assert "no image file in" in message(ValueError)
    write_image(tmp_path / "data" / "train" / "cat" / "0.png", 0)
    assert "validation_share=0.2 holds out 1 of 1 records" in message(ValueError)
    write_image(tmp_path / "data" / "val" / "dog" / "0.png", 0)
    assert "differ: cat, dog (2 in all)" in message(ValueError)
    assert "no folder test/ of class folders: there are" in message(ValueError, "eval", eval_split="test")


@pytest.mark.parametrize("name, nearest", [("digit", "digits"), ("cifar-10", "cifar10"), ("imagenet", "imagenet2012")])
def test_unknown_dataset_suggests_the_nearest(make_config, tmp_path, name, nearest):
    with pytest.raises(ValueError, match=f"unknown dataset '{name}': did you mean .*{nearest}") as raised:
        load_dataset(make_config(dataset=name, data_dir=str(tmp_path)), "train")
    assert "\n" not in str(raised.value)


def test_nothing_near(make_config, tmp_path):
    with pytest.raises(
        ValueError, match="unknown dataset 'xyzzy': use digits, synthetic, image_folder:/path or one of TFDS"
    ):
        load_dataset(make_config(dataset="xyzzy", data_dir=str(tmp_path)), "train")


@pytest.mark.parametrize("name", ["imagenet2012", "food101", "imagenet2012:5.1.0", "imagenette_max_side_96/160px-v2"])
def test_known_dataset_that_is_not_prepared(make_config, tmp_path, name):
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"dataset '{name}' is not prepared in '{tmp_path}'")
    ) as raised:
        load_dataset(make_config(dataset=name, data_dir=str(tmp_path)), "train")
    assert "\n" not in str(raised.value)
    expected = "imagenette/160px-v2 --max_side=96" if "max_side" in name else name.split(":")[0]
    assert f"python prepare.py {expected}" in str(raised.value)
    if "imagenet2012" in name:
        assert "ILSVRC2012_img_train.tar" in str(raised.value) and "image_folder:" in str(raised.value)


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (12, 10), (value,) * 3).save(file, "PNG")
    return file.getvalue()


def prepare_tfds(data_dir, file_format="array_record"):
    """Prepares dataset 'tiny': 6 training and 3 test images of two classes, each of one grey level."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.2.3")
            url_infos = None  # otherwise TFDS 4.9.10 needs importlib_resources, which it does not install

            def _info(self):
                features = {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                    "file_name": tfds.features.Text(),
                }
                return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(range(6)), "test": self._generate_examples(range(6, 9))}

            def _generate_examples(self, values):
                for value in values:
                    yield value, {"image": io.BytesIO(png(value)), "label": value % 2, "file_name": f"{value}.png"}

        builder = Tiny(data_dir=str(data_dir), file_format=file_format)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP)
        )


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tensorflow_datasets")
    prepare_tfds(data_dir)
    return data_dir


def test_tfds_gives_back_the_encoded_bytes(make_config, tfds_dir):
    for name in ("tiny", "tiny:1.2.3"):
        config = make_config(dataset=name, data_dir=str(tfds_dir))
        train, evaluation = load_dataset(config, "train"), load_dataset(config, "eval")
        assert sorted(train[record] for record in range(6)) == sorted((png(value), value % 2) for value in range(6))
        assert sorted(evaluation[record] for record in range(3)) == sorted((png(v), v % 2) for v in range(6, 9))
    assert (train.class_names, train.split, evaluation.split) == (("cat", "dog"), "train", "test")
    value = decoding.decode(train[0][0], 1)[0, 0, 0]
    assert train.describe(0) == f"record 0 (tiny-train.array_record-00000-of-00001, place 0), file {value}.png"


def test_tfds_splits(make_config, tfds_dir):
    config = make_config(dataset="tiny", data_dir=str(tfds_dir), train_split="train[:4]", eval_split="train[4:]")
    train, evaluation = load_dataset(config, "train"), load_dataset(config, "eval")
    assert (len(train), len(evaluation)) == (4, 2)
    assert images_of(train) | images_of(evaluation) == set(range(6))
    assert len(load_dataset(config, "test")) == 3
    with pytest.raises(ValueError, match="has no split 'validation' but test, train: set train_split and eval_split"):
        load_dataset(config, "validation")


def test_misspelled_prepared_dataset(make_config, tfds_dir):
    with pytest.raises(ValueError, match=r"did you mean tiny.*\(there: tiny\)"):
        load_dataset(make_config(dataset="tinny", data_dir=str(tfds_dir)), "train")


def write_tfrecord(path, records):
    with open(path, "wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", masked_crc32c(length)))
            file.write(record + struct.pack("<I", masked_crc32c(record)))


def copy_tiny(tfds_dir, data_dir, file_format="array_record"):
    """Copies dataset 'tiny' and writes its records in another format, as TFDS would."""
    source, folder = tfds_dir / "tiny" / "1.2.3", data_dir / "tiny" / "1.2.3"
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if file_format == "array_record" or "array_record" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
        elif file_format == "tfrecord":
            with ArrayRecordDataSource(str(path)) as records:
                write_tfrecord(folder / path.name.replace("array_record", "tfrecord"), list(records))
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", file_format))
    return folder


def test_tfrecords_are_read_as_they_are(make_config, tfds_dir, tmp_path):
    folder = copy_tiny(tfds_dir, tmp_path, "tfrecord")
    options = dict(dataset="tiny", train_split="train[1:]")
    train = load_dataset(make_config(data_dir=str(tmp_path), **options), "train")
    other = load_dataset(make_config(data_dir=str(tfds_dir), **options), "train")
    assert list(train) == list(other) and len(train) == 5
    file = other.describe(2).split()[-1]
    assert train.describe(2) == f"record 2 (tiny-train.tfrecord-00000-of-00001, place 3), file {file}"
    assert (folder / "record_offsets.npz").exists()


def test_tfds_in_another_format(make_config, tfds_dir, tmp_path):
    copy_tiny(tfds_dir, tmp_path, "riegeli")
    (tmp_path / "tiny" / "1.2.3" / "tiny-train.riegeli-00000-of-00001").write_bytes(b"x")
    with pytest.raises(ValueError, match="is stored as riegeli: prepare it as array_record or tfrecord"):
        load_dataset(make_config(dataset="tiny", data_dir=str(tmp_path)), "train")


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_shards_that_are_missing_or_empty(make_config, tfds_dir, tmp_path, file_format):
    shard = copy_tiny(tfds_dir, tmp_path, file_format) / f"tiny-train.{file_format}-00000-of-00001"
    config = make_config(dataset="tiny", data_dir=str(tmp_path))
    shard.write_bytes(b"")
    with pytest.raises(ValueError, match=f"^{shard} is empty: [^\n]*$"):
        load_dataset(config, "train")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"^{shard} is missing: [^\n]*$"):
        load_dataset(config, "train")
    assert len(load_dataset(config, "eval")) == 3


@pytest.mark.parametrize("file_format, position", [("array_record", 400), ("tfrecord", 200)])
def test_a_damaged_record(make_config, tfds_dir, tmp_path, file_format, position):
    shard = copy_tiny(tfds_dir, tmp_path, file_format) / f"tiny-train.{file_format}-00000-of-00001"
    data = bytearray(shard.read_bytes())
    data[position] ^= 1
    shard.write_bytes(data)
    dataset = load_dataset(make_config(dataset="tiny", data_dir=str(tmp_path)), "train")
    with pytest.raises(ValueError, match="mismatch|checksum"):
        dataset[1]
    assert dataset.describe(1) == f"record 1 ({shard.name}, place 1)"
    assert len({dataset[record][0] for record in (0, 2, 3, 4, 5)}) == 5


def test_a_file_that_goes_away(make_config, tfds_dir, tmp_path):
    folder = copy_tiny(tfds_dir, tmp_path, "tfrecord")
    dataset = load_dataset(make_config(dataset="tiny", data_dir=str(tmp_path)), "train")
    (folder / "tiny-train.tfrecord-00000-of-00001").unlink()
    with pytest.raises(OSError, match="tiny-train.tfrecord-00000-of-00001"):
        dataset[1]


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_tfds_reads_without_tensorflow(tfds_dir, tmp_path):
    """The real TensorFlow is replaced by an empty module, so that an import of it is noticed and does not fail."""
    (tmp_path / "tensorflow.py").touch()
    result = run_python(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from ml_collections import ConfigDict
        from input_pipeline import load_dataset
        config = ConfigDict(dict(dataset="tiny", data_dir={str(tfds_dir)!r}, train_split="train", eval_split=None))
        image, label = load_dataset(config, "train")[0]
        print(label in (0, 1), "tensorflow" in sys.modules)
        """)
    assert result.stdout.split() == ["True", "False"], result.stderr


def test_import_is_light_and_synthetic_needs_no_decoder():
    result = run_python("""
        import sys
        import input_pipeline
        heavy = {"cv2", "grain", "tensorflow_datasets", "sklearn", "google_crc32c"}
        print(heavy & set(sys.modules))
        for name in ("cv2", "tensorflow_datasets", "sklearn", "PIL"):
            sys.modules[name] = None
        from ml_collections import ConfigDict
        config = ConfigDict(dict(dataset="synthetic", train_split=None, eval_split=None, image_size=8, channels=3,
            num_classes=4, synthetic_examples=6, batch_size=4, seed=0, decode_threads=1, prefetch_batches=1,
            num_steps=None, repeated_augmentation=1, train_sizes=()))
        dataset = input_pipeline.load_dataset(config, "train")
        with input_pipeline.train_batches(dataset, config) as batches:
            print(next(batches)["image"].shape)
        """)
    assert result.stdout.splitlines() == ["set()", "(4, 8, 8, 3)"], result.stderr
