import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.proto import tf_example_pb2

import input_pipeline
from input_pipeline import decoding, load_dataset, record_files
from input_pipeline.archives import members
from input_pipeline.preparation import prepare
from input_pipeline.record_files import shrink
from input_pipeline.stored_datasets import open_builder

REPOSITORY = Path(input_pipeline.__file__).parents[1]
IMAGENETTE = {
    "train": {
        "n01440764": ["n01440764_10026.JPEG", "n01440764_10027.JPEG", "ILSVRC2012_val_00000293.JPEG"],
        "n02102040": ["n02102040_1.JPEG"],
    },
    "val": {"n03888257": ["n03888257_7.JPEG", "n03888257_8.JPEG"]},
}


def image(value, size=(12, 10), mode="RGB", form="JPEG"):
    file = io.BytesIO()
    Image.new(mode, size, (value,) * len(mode) if len(mode) > 1 else value).save(file, form)
    return file.getvalue()


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def tar_bytes(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def imagenette_files():
    names = [(split, label, name) for split, folder in IMAGENETTE.items() for label in folder for name in folder[label]]
    files = {
        f"imagenette2-160/{split}/{label}/{name}": image(40 * number)
        for number, (split, label, name) in enumerate(names)
    }
    return files | {
        "imagenette2-160/noisy_imagenette.csv": b"path,label",
        "imagenette2-160/train/n01440764/._x.JPEG": b"",
    }


@pytest.fixture
def imagenette_archive(tmp_path):
    return str(write_tar(tmp_path / "imagenette2-160.tgz", imagenette_files(), "w:gz"))


def split_of(name, data_dir, split="train"):
    return list(
        tfds.data_source(name, split=split, data_dir=str(data_dir), decoders={"image": tfds.decode.SkipDecoding()})
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def examples_of(file):
    """Returns parsed messages and not bytes, because TFDS writes an example's features in a random order."""
    with ArrayRecordDataSource(str(file)) as records:
        return [tf_example_pb2.Example.FromString(record) for record in records]


@pytest.mark.smoke
def test_files_are_those_that_tfds_itself_writes(tmp_path, imagenette_archive, capsys):
    """TFDS itself shuffles and writes small datasets without TensorFlow, if they do not come from files."""
    parent, files = tfds.builder_cls("imagenette"), imagenette_files()

    def examples(part):
        for label, names in IMAGENETTE[part].items():
            for name in names:
                yield name, {"image": io.BytesIO(files[f"imagenette2-160/{part}/{label}/{name}"]), "label": label}

    with registered.skip_registration():
        attributes = {
            "name": "imagenette",
            "__module__": parent.__module__,
            "url_infos": None,
            "_split_generators": lambda self, dl_manager: {"train": examples("train"), "validation": examples("val")},
        }
        builder = type("Builder", (parent,), attributes)(
            data_dir=str(tmp_path / "tfds"), config="160px-v2", file_format="array_record"
        )
        skip = tfds.download.ComputeStatsMode.SKIP
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(compute_stats=skip))

    prepare("imagenette/160px-v2", [imagenette_archive], str(tmp_path / "ours"))
    ours, theirs = (tmp_path / whose / "imagenette/160px-v2/1.0.0" for whose in ("ours", "tfds"))
    assert sorted(contents(ours)) == sorted(contents(theirs))
    for name, content in contents(ours).items():
        if "array_record" in name:
            assert examples_of(ours / name) == examples_of(theirs / name)
        else:
            assert content == (theirs / name).read_bytes()
    printed = capsys.readouterr().out
    assert "4 train and 2 validation images" in printed
    assert "note: the official archives hold 9,469 train and 3,925 validation images" in printed
    assert not (tmp_path / "ours" / "downloads" / "decompressed").exists()


def test_imagenette_is_read_by_name(make_config, tmp_path, imagenette_archive):
    prepare("imagenette/160px-v2", [imagenette_archive], str(tmp_path))
    config = make_config(dataset="imagenette/160px-v2", data_dir=str(tmp_path))
    train, validation = load_dataset(config, "train"), load_dataset(config, "eval")
    assert sorted(train) == sorted(zip([image(40 * value) for value in range(4)], [0, 0, 0, 1], strict=True))
    assert (len(validation), train.class_names[0], train.class_names[9]) == (2, "tench", "parachute")
    assert train.describe(2) == "record 2 (imagenette-train.array_record-00000-of-00001, place 2)"


def test_imagenets_tars(tmp_path):
    """Makes archives in the official layout: a tar with a tar for each class, and a tar of validation images."""
    cmyk, png = "n01739381_1309.JPEG", "n02105855_2933.JPEG"
    classes = {
        "n01739381.tar": tar_bytes({cmyk: image(0, mode="CMYK"), "n01739381_1.JPEG": image(10)}),
        "n02105855.tar": tar_bytes({png: image(90, form="PNG"), "n02105855_2.JPEG": image(20, mode="L")}),
    }
    train = write_tar(tmp_path / "ILSVRC2012_img_train.tar", classes)
    numbers = (3, 1, 50000, 2)
    validation = {f"ILSVRC2012_val_{number:08d}.JPEG": image(number % 256) for number in numbers}
    prepare("imagenet2012", [str(train), str(write_tar(tmp_path / "val.tar", validation))], str(tmp_path))

    builder = open_builder("imagenet2012", tmp_path)
    assert (str(builder.version), builder.info.splits["train"].num_examples) == ("5.1.0", 4)
    found = {example["file_name"].decode(): example for example in split_of("imagenet2012", tmp_path)}
    labels = builder.info.features["label"]
    assert {name: labels.int2str(example["label"]) for name, example in found.items()} == {
        cmyk: "n01739381", "n01739381_1.JPEG": "n01739381", png: "n02105855", "n02105855_2.JPEG": "n02105855",
    }  # fmt: skip
    for name, value in ((cmyk, 255), (png, 90)):  # CMYK without ink is white
        with Image.open(io.BytesIO(found[name]["image"])) as fixed:
            assert (fixed.format, fixed.mode, fixed.getpixel((5, 5))) == ("JPEG", "RGB", (value,) * 3)
    assert found["n02105855_2.JPEG"]["image"] == image(20, mode="L")
    validation_labels = {
        example["file_name"].decode(): labels.int2str(example["label"])
        for example in split_of("imagenet2012", tmp_path, "validation")
    }
    # The first labels of ILSVRC2012_validation_ground_truth, from other lists: a sea snake, an alp, ...
    assert [validation_labels[f"ILSVRC2012_val_{number:08d}.JPEG"] for number in (1, 2, 3)] == [
        "n01751748", "n09193705", "n02105855",
    ]  # fmt: skip


@pytest.mark.parametrize("with_names", [True, False])
def test_cifar10(make_config, tmp_path, with_names):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), np.uint8)
    parts = [*(f"data_batch_{number}.bin" for number in (3, 1, 2, 4, 5)), "test_batch.bin"]
    files = {
        f"cifar-10-batches-bin/{part}": bytes([number]) + pixels[number].tobytes() for number, part in enumerate(parts)
    }
    if with_names:
        files["cifar-10-batches-bin/batches.meta.txt"] = (
            b"airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"
        )
    archive = write_tar(tmp_path / "cifar-10-binary.tar.gz", files, "w:gz")
    prepare("cifar10", [str(archive)], str(tmp_path))
    found = {example["id"]: example for example in split_of("cifar10", tmp_path)}
    assert sorted(found) == [b"train_00000", b"train_00001", b"train_00002", b"train_00003", b"train_00004"]
    third = found[b"train_00002"]  # data_batch_3, the first of the archive
    np.testing.assert_array_equal(decoding.decode(third["image"], 3), pixels[0].transpose(1, 2, 0))
    assert third["label"] == 0
    evaluation = load_dataset(make_config(dataset="cifar10", data_dir=str(tmp_path)), "eval")
    assert (len(evaluation), evaluation[0][1], evaluation.class_names[5]) == (1, 5, "dog")


def test_cifar100_from_a_folder(make_config, tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(bytes([11, 1]) + bytes(range(256)) * 12)
    prepare("cifar100", [str(folder)], str(tmp_path))
    (example,) = split_of("cifar100", tmp_path, "test")
    features = open_builder("cifar100", tmp_path).info.features
    assert features["label"].int2str(example["label"]) == "aquarium_fish"
    assert features["coarse_label"].int2str(example["coarse_label"]) == "large_omnivores_and_herbivores"


def idx(array, magic):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return magic.to_bytes(4, "big") + sizes + array.tobytes()


def test_what_can_be_downloaded_is_prepared_at_its_first_use(make_config, tmp_path, server, capsys, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
    arrays = {
        "train-images": idx(pixels[:5], 2051), "train-labels": idx(np.arange(5, dtype=np.uint8), 2049),
        "t10k-images": idx(pixels[5:], 2051), "t10k-labels": idx(np.arange(5, 7, dtype=np.uint8), 2049),
    }  # fmt: skip
    files = {f"/{name}.gz": gzip.compress(data) for name, data in arrays.items()}
    server.files |= files
    infos = {
        f"{server.url}{path}": checksums.UrlInfo(
            tfds.core.utils.Size(len(data)), hashlib.sha256(data).hexdigest(), path[1:]
        )
        for path, data in files.items()
    }
    monkeypatch.setattr(checksums, "load_url_infos", {tfds.core.tfds_path("url_checksums/mnist.txt"): infos}.get)
    config = make_config(dataset="mnist", data_dir=str(tmp_path))
    train = load_dataset(config, "train")
    printed = capsys.readouterr().out
    assert "dataset mnist is not in" in printed and f"downloading {server.url}/t10k-labels.gz" in printed
    evaluation = load_dataset(config, "eval")
    assert len(server.requests) == 4 and capsys.readouterr().out == ""
    found = {label: decoding.decode(data, 1)[..., 0] for dataset in (train, evaluation) for data, label in dataset}
    assert (len(train), len(evaluation)) == (5, 2)
    for label in range(7):
        np.testing.assert_array_equal(found[label], pixels[label])


@pytest.mark.parametrize("damage", [lambda data: data[:9000], lambda data: data[:3584] + b"\xff" * 512 + data[4096:]])
def test_damaged_tars(tmp_path, damage):
    whole = tar_bytes({f"{number}.JPEG": bytes(3000) for number in range(4)})
    (tmp_path / "a.tar").write_bytes(damage(whole))
    with pytest.raises(ValueError, match="a.tar is damaged: .*; get it again"):
        list(members(tmp_path / "a.tar", tmp_path))


def test_truncated_gzip(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(np.random.default_rng(0).bytes(1000))[:500])
    with pytest.raises(ValueError, match="a.gz is damaged: .*; get it again"):
        list(members(tmp_path / "a.gz", tmp_path / "scratch"))


def message(error, *arguments, **options):
    with pytest.raises(error) as raised:
        prepare(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_cannot_be_prepared(tmp_path, imagenette_archive, monkeypatch):
    data_dir = str(tmp_path / "data")
    assert "did you mean cifar10" in message(ValueError, "cifar-10", data_dir=data_dir)
    assert "choose one of imagenette/full-size-v2" in message(ValueError, "imagenette/160", data_dir=data_dir)
    assert "--archive=ILSVRC2012_img_train.tar" in message(OSError, "imagenet2012", data_dir=data_dir)
    assert "there is no archive /no.tar" in message(OSError, "imagenet2012", ["/no.tar"], data_dir)
    assert "imagenet2012 is prepared in version 5.1.0" in message(ValueError, "imagenet2012:5.0.0", data_dir=data_dir)
    assert "--archive is for imagenet2012" in message(ValueError, "food101", ["x.tar"], data_dir)
    assert "has no data_batch_1.bin" in message(ValueError, "cifar10", [imagenette_archive], data_dir)
    assert "there are no images of imagenet2012" in message(
        ValueError, "imagenet2012", [str(write_tar(tmp_path / "a.tar", {"a.JPEG": b""}))], data_dir
    )
    twice = [imagenette_archive, str(write_tar(tmp_path / "b.tar", imagenette_files()))]
    assert "is there twice" in message(ValueError, "imagenette/160px-v2", twice, data_dir)

    class NeedsTensorFlow:
        info = type("info", (), {"features": {"image", "label"}})

        def download_and_prepare(self, **options):
            raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

    monkeypatch.setattr(tfds, "builder", lambda *_, **__: NeedsTensorFlow())
    assert "needs a library to prepare 'food101' that is not installed (tensorflow)" in message(
        ValueError, "food101", data_dir=data_dir
    )
    assert not [path for path in Path(data_dir).glob("*/*") if path.parent.name != "downloads"]


def test_a_full_disk(tmp_path, imagenette_archive, monkeypatch):
    class Full:
        def __init__(self, path, options):
            Path(path).write_bytes(b"half")

        def write(self, record):
            pass

        def close(self):
            raise RuntimeError("write() failed: No space left on device; writing x; Failed to close chunk_writer")

    monkeypatch.setattr(record_files, "ArrayRecordWriter", Full)
    said = message(OSError, "imagenette/160px-v2", [imagenette_archive], str(tmp_path))
    assert said == f"the disk is full: make room in {tmp_path}, and run the same command again"
    assert not [path for path in (tmp_path / "imagenette").rglob("*") if path.name != "160px-v2"]


def test_killed_while_preparing_and_started_again(tmp_path, imagenette_archive):
    code = f"""
        import os, signal
        from input_pipeline import archives, preparation
        read, count = archives.Member.read, 0
        def kill(member):
            global count
            count += 1
            if count > 5:  # in the validation split
                os.kill(os.getpid(), signal.SIGKILL)
            return read(member)
        archives.Member.read = kill
        preparation.prepare("imagenette/160px-v2", [{imagenette_archive!r}], {str(tmp_path)!r})
        """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=REPOSITORY, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    left = [path.name for path in tmp_path.rglob("imagenette-train*")]
    assert left == ["imagenette-train.array_record-00000-of-00001"]  # the preparation failed in this file
    assert open_builder("imagenette/160px-v2", tmp_path) is None
    prepare("imagenette/160px-v2", [imagenette_archive], str(tmp_path))
    assert len(split_of("imagenette/160px-v2", tmp_path)) == 4
    assert [path.name for path in (tmp_path / "imagenette" / "160px-v2").iterdir()] == ["1.0.0"]
    assert not (tmp_path / "downloads" / "decompressed").exists()


def test_a_folder_of_images_keeps_its_training_and_validation_images(make_config, tmp_path):
    folder = tmp_path / "My flowers"
    for number in range(10):
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(20 * number, form="PNG"))
    prepare(str(folder), data_dir=str(tmp_path))
    for split in ("train", "eval"):
        there = load_dataset(make_config(dataset=f"image_folder:{folder}"), split)
        here = load_dataset(make_config(dataset="my_flowers", data_dir=str(tmp_path)), split)
        assert sorted(here) == sorted(there)
        assert here.class_names == there.class_names
    assert re.fullmatch(r"record 1 \(my_flowers-validation\S+, place 1\), file class\d/\d.png", here.describe(1))

    prepare(str(folder), data_dir=str(tmp_path))  # prepared already
    (folder / "class0" / "new.png").write_bytes(image(7, form="PNG"))
    with pytest.raises(ValueError, match="has 8 train and 2 validation images, and the folder 8 train and 3"):
        prepare(str(folder), data_dir=str(tmp_path))
    next((tmp_path / "my_flowers").rglob("*train*")).unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        prepare(str(folder), data_dir=str(tmp_path))
    (tmp_path / "mnist").mkdir()
    with pytest.raises(ValueError, match="would become the dataset 'mnist': rename"):
        prepare(str(tmp_path / "mnist"), data_dir=str(tmp_path))


def test_max_side_decodes_no_more_than_max_pixels():
    image = Image.fromarray(np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3))
    encoded = record_files.encode(image, "PNG")
    assert Image.open(io.BytesIO(shrink(encoded, 6, 90, max_pixels=108))).size == (4, 6)
    with pytest.raises(ValueError, match="9 x 12 pixels are more than max_image_pixels=107"):
        shrink(encoded, 6, 90, max_pixels=107)


def test_max_side_writes_another_dataset_with_smaller_images(make_config, tmp_path, imagenette_archive):
    prepare("imagenette/160px-v2", [imagenette_archive], str(tmp_path))
    prepare("imagenette/160px-v2", data_dir=str(tmp_path), max_side=6)  # from the prepared dataset
    prepare("imagenette/160px-v2", [imagenette_archive], str(tmp_path / "other"), max_side=6)  # from the archive
    folder = "imagenette_max_side_6/160px-v2/1.0.0"
    assert contents(tmp_path / folder) == contents(tmp_path / "other" / folder)
    assert [path.name for path in (tmp_path / "other").iterdir() if path.name != "downloads"] == [
        "imagenette_max_side_6"
    ]
    config = make_config(data_dir=str(tmp_path), dataset="imagenette/160px-v2")
    for split, size in (("train", 4), ("validation", 2)):
        whole = load_dataset(config, split)
        small = load_dataset(make_config(data_dir=str(tmp_path), dataset="imagenette_max_side_6/160px-v2"), split)
        assert (len(small), small.class_names) == (size, whole.class_names)
        for record in range(size):
            (encoded, label), (original, label_before) = small[record], whole[record]
            pixels = decoding.decode(encoded, 3)
            assert (pixels.shape, label) == ((5, 6, 3), label_before)
            assert abs(int(pixels[2, 2, 0]) - int(decoding.decode(original, 3)[5, 5, 0])) <= 1


def test_shrink():
    wide = image(100, size=(5000, 8))
    with Image.open(io.BytesIO(shrink(wide, 500, 90))) as small:
        assert (small.size, small.format) == ((500, 1), "JPEG")
    assert shrink(wide, 5000, 90) == wide
    for mode, form, expected in (
        ("L", "JPEG", "L"),
        ("CMYK", "JPEG", "RGB"),
        ("RGBA", "PNG", "RGB"),
        ("P", "PNG", "RGB"),
    ):
        with Image.open(io.BytesIO(shrink(image(0, (40, 20), mode, form), 20, 90))) as small:
            assert (small.size, small.format, small.mode) == ((20, 10), form, expected)


def test_the_program(tmp_path, imagenette_archive):
    def run(*arguments):
        command = [sys.executable, "prepare.py", *arguments, f"--data_dir={tmp_path}"]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    done = run("imagenette/160px-v2", f"--archive={imagenette_archive}")
    assert (done.returncode, done.stdout.splitlines()[-2]) == (
        0, f"imagenette/160px-v2/1.0.0 is in {tmp_path}/imagenette/160px-v2/1.0.0: 4 train and 2 validation images",
    )  # fmt: skip
    refused = run("imagenet2012", "cifar10")
    assert (refused.returncode, refused.stderr) == (
        2, "prepare.py: error: 'cifar10' is no flag; every option begins with --\n",
    )  # fmt: skip


def folder_of(tmp_path, *class_folders):
    folder = tmp_path / "flowers"
    for name in class_folders:
        for number in range(3):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(20 * number, form="PNG"))
    return folder


@pytest.mark.parametrize("name", [" dog ", "dog\n", "a\nb", "\tdog", "a\rb", os.fsdecode(b"caf\xe9"), "dog\u2003"])
def test_class_names_that_tfds_would_change_are_refused(tmp_path, name):
    folder = folder_of(tmp_path, "cat", name)
    assert f"cannot store the name of the class folder {name!r}" in message(
        ValueError, str(folder), data_dir=str(tmp_path)
    )
    assert not (tmp_path / "flowers" / "1.0.0").exists()
    assert load_dataset_of(folder).num_classes == 2  # the folder itself can be read


def load_dataset_of(folder):
    return input_pipeline.image_folder.open_image_folder(folder, "train")


def test_class_and_file_names_that_are_kept(make_config, tmp_path):
    names = ("n01440764", "犬 いぬ", "a,b/c".replace("/", "∕"), "[red]", "10")
    folder = folder_of(tmp_path, *names)
    odd = "a\n[b]" + os.fsdecode(b"caf\xe9") + ".png"
    (folder / "10" / odd).write_bytes(image(1, form="PNG"))
    prepare(str(folder), data_dir=str(tmp_path / "data"))
    stored = open_builder("flowers", tmp_path / "data").info.features["label"].names
    assert sorted(stored) == sorted(names)  # WordNet ids are stored as ids
    config = make_config(dataset="flowers", data_dir=str(tmp_path / "data"))
    datasets = [load_dataset(config, split) for split in ("train", "eval")]
    assert "tench" in datasets[0].class_names and datasets[0].class_names == load_dataset_of(folder).class_names
    described = [dataset.describe(record) for dataset in datasets for record in range(len(dataset))]
    assert all(text.isprintable() for text in described)
    assert sum("a\\n[b]caf\\udce9.png" in text for text in described) == 1


def test_folders_of_other_splits_and_other_classes(make_config, tmp_path):
    for split in ("Training", "Testing"):
        folder_of(tmp_path, f"{split}/cat", f"{split}/dog")
    prepare(str(tmp_path / "flowers"), data_dir=str(tmp_path / "data"))
    config = make_config(dataset="flowers", data_dir=str(tmp_path / "data"))
    assert [(len(load_dataset(config, split)), load_dataset(config, split).split) for split in ("train", "eval")] == [
        (6, "train"), (6, "test"),
    ]  # fmt: skip
    for split in ("Training", "Testing"):
        (tmp_path / "flowers" / split / "dog").rename(tmp_path / "flowers" / split / "puppy")
    said = message(ValueError, str(tmp_path / "flowers"), data_dir=str(tmp_path / "data"))
    assert "has other classes than the folder" in said


def test_archives_that_are_no_files_or_too_large(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    for archive in (tmp_path / "pipe.tar", Path("/dev/zero")):
        with pytest.raises(ValueError, match="is neither a file nor a folder"):
            list(members(archive, tmp_path))
    with gzip.open(tmp_path / "bomb.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(2**20))
    with pytest.raises(ValueError, match="bomb.gz decompresses to more than 50 times its size"):
        list(members(tmp_path / "bomb.gz", tmp_path / "scratch"))
    assert sum(path.stat().st_size for path in (tmp_path / "scratch").iterdir()) < 2**25
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "loop").symlink_to(".")
    (folder / "zero.JPEG").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.JPEG")
    (folder / "sparse.JPEG").touch()
    os.truncate(folder / "sparse.JPEG", 2**40)
    (found,) = members(folder, tmp_path)
    assert found.name == "sparse.JPEG"
    with pytest.raises(ValueError, match="has 1,099,511,627,776 bytes, more than"):
        found.read()


def test_links_and_devices_inside_a_tar_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, kind in enumerate(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
        ):
            entry = tarfile.TarInfo(f"{number}.JPEG")
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
        entry = tarfile.TarInfo("file.JPEG")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"abc"))
    assert [(file.name, file.read()) for file in members(tmp_path / "a.tar", tmp_path)] == [("file.JPEG", b"abc")]


def test_shrinking_keeps_the_orientation_and_refuses_what_is_damaged():
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.new("RGB", (40, 20)).save(file, form, exif=exif)
        with Image.open(io.BytesIO(shrink(file.getvalue(), 20, 90))) as small:
            assert small.size == (20, 10) and small.getexif()[0x0112] == 6
    for damaged in (b"%!PS-Adobe-3.0 EPSF-3.0", file.getvalue()[:60], b""):
        with pytest.raises(ValueError, match="cannot decode"):
            shrink(damaged, 20, 90)
