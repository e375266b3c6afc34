"""Image folders in every usual layout give the classes and splits that a person sees in them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import input_pipeline
from input_pipeline import DamagedImageError
from input_pipeline.batches import read_image
from input_pipeline.files import FORMATS, local_path, read_file, say_once
from input_pipeline.image_folder import find_images, has_split_folders, open_image_folder, split_kind

REPOSITORY = Path(input_pipeline.__file__).parents[1]


@pytest.fixture
def make_folder(tmp_path):
    """Makes a folder of small PNG files at the given paths, whatever their suffixes."""

    def make(*paths):
        for number, name in enumerate(paths):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 3), (number, 0, 0)).save(path, "PNG")
        return tmp_path

    say_once.cache_clear()
    return make


def splits(train, evaluation, classes=("cat", "dog")):
    return [f"{split}/{name}/{number}.png" for split in (train, evaluation) for name in classes for number in range(2)]


@pytest.mark.parametrize("names", [
    ("train", "val"), ("train", "valid"), ("Training", "Testing"), ("TRAIN", "TEST"), ("Train", "Validation"),
    ("training_set", "test_set"), ("train-images", "val-images"), ("TrainSet", "TestSet"), ("trainset", "devset"),
    ("train2017", "val2017"), ("seg_train", "seg_test"), ("asl_alphabet_train", "asl_alphabet_test"), ("trn", "tst"),
    ("data/train", "data/eval"), ("archive/flowers/train", "archive/flowers/valid"),
])  # fmt: skip
def test_splits_in_any_case_and_spelling(make_folder, names):
    folder = make_folder(*splits(*names))
    train, evaluation = find_images(folder, "train"), find_images(folder, "eval")
    assert (train.name, evaluation.name) == tuple(name.split("/")[-1] for name in names)
    assert train.class_folders == evaluation.class_folders == ("cat", "dog")
    assert train.files == sorted(str(folder / path) for path in splits(*names)[:4]) and train.labels == [0, 0, 1, 1]
    assert evaluation.files == sorted(str(folder / path) for path in splits(*names)[4:])
    assert train.kind == "train" and evaluation.kind in ("validation", "test")


def test_a_split_is_known_by_words_of_its_name():
    assert [split_kind(name) for name in ("ILSVRC2012_img_train", "valid", "Dev", "test tube")] == [
        "train", "validation", "validation", "test",
    ]  # fmt: skip
    assert {split_kind(name) for name in ("cat", "trainer", "contest", "value", "train_test", "0", "Détesté")} == {None}


def test_validation_comes_before_test_which_has_its_name(make_folder):
    folder = make_folder(*splits("Train", "Test"), *splits("Valid", "more", ("cat", "dog"))[:4])
    assert find_images(folder, "eval").name == "Valid"
    assert find_images(folder, "Test").name == find_images(folder, "test").name == "Test"


def test_folders_of_the_same_folders_are_splits(make_folder):
    folder = make_folder(*splits("fold1", "fold2"))
    for split in ("train", "eval"):
        with pytest.raises(ValueError, match=f"fold1, fold2 of .* hold the same folders.*set {split}_split to one"):
            find_images(folder, split)
    assert [find_images(folder, name).class_folders for name in ("fold1", "fold2")] == [("cat", "dog")] * 2


def test_a_split_that_is_named_by_two_folders(make_folder):
    folder = make_folder(*splits("train", "val"), *splits("valid", "validation"))
    with pytest.raises(ValueError, match="val and valid and validation are all folders of one split: set eval_split"):
        find_images(folder, "eval")
    assert find_images(folder, "valid").name == "valid"


@pytest.mark.parametrize("paths, classes", [
    (["car/1.png", "car/2.png", "train/1.png"], ("car", "train")),
    (["steam train/old/1.png", "test tube/glass/1.png", "cup/1.png"], ("cup", "steam train", "test tube")),
    ([f"{name}/images/{number}.png" for name in ("n1", "n2") for number in range(3)], ("n1", "n2")),  # Tiny ImageNet
    ([f"{number}/a.png" for number in (0, 1, 2, 10, 100, 11)], ("0", "1", "2", "10", "11", "100")),
    ([f"{number:03}/a.png" for number in (1, 20, 3)], ("001", "003", "020")),
    (["2/a.png", "10/a.png", "a/a.png"], ("10", "2", "a")),
    (["flowers/rose/a.png", "flowers/lily/a.png"], ("lily", "rose")),
    (["__MACOSX/rose/._a.png", "rose/a.png", "rose/b.png"], ("rose",)),
])  # fmt: skip
def test_classes(make_folder, paths, classes):
    found = find_images(make_folder(*paths), "train")
    assert found.class_folders == classes and found.name == "train"


def test_a_test_folder_without_labels_is_not_asked_for_them(make_folder):
    folder = make_folder(*splits("train", "val"), "test/unknown/1.png")
    assert [len(find_images(folder, split).files) for split in ("train", "eval")] == [4, 4]
    with pytest.raises(ValueError, match="differ: cat, dog, unknown"):
        find_images(folder, "test")


def test_every_format_is_read_and_what_is_left_out_is_counted(make_folder, capsys):
    suffixes = [suffix for suffixes in FORMATS.values() for suffix in suffixes]
    images = [f"cat/{number}{suffix}" for number, suffix in enumerate(suffixes + [s.upper() for s in suffixes])]
    folder = make_folder(*images, *(f"dog/{number}.png" for number in range(5)))
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/notes.txt", "dog/noend", "dog/.DS_Store", "README.md"):
        (folder / name).write_bytes(b"")
    train, evaluation = find_images(folder, "train"), find_images(folder, "eval")
    assert len(train.files) + len(evaluation.files) == len(images) + 5
    assert {"webp", "tif", "tiff", "jfif", "bmp", "gif", "avif", "jp2"} <= {name.split(".")[1] for name in images}
    assert capsys.readouterr().err == (
        f"note: not read in {folder}: .heic files (2), .txt files (1), files beside the class folders (1), "
        "files without a suffix (1)\n"
    )


def test_links_and_what_is_no_file(make_folder, capsys):
    """Each folder is read once; named pipes and loops of links do not block or repeat forever."""
    folder = make_folder(*splits("train", "val"))
    elsewhere = make_folder("elsewhere/deep/1.png")
    cat = folder / "train" / "cat"
    for name, target in {"up": "..", "self": ".", "twin": "../dog", "root": "/", "again": str(elsewhere)}.items():
        (cat / name).symlink_to(target)
    (cat / "more").symlink_to(elsewhere / "elsewhere")
    (cat / "more too").symlink_to(elsewhere / "elsewhere" / "deep")
    (cat / "endless.png").symlink_to("/dev/zero")
    (cat / "loop.png").symlink_to("loop.png")
    (cat / "gone.png").symlink_to("gone")
    os.mkfifo(cat / "pipe.png")
    found = find_images(folder, "train")
    assert [Path(file).name for file in found.files] == ["0.png", "1.png", "1.png", "0.png", "1.png"]
    assert found.labels == [0, 0, 0, 1, 1]
    said = capsys.readouterr().err
    assert "links to folders that are read already (6)" in said
    assert "links, pipes and devices that are no files (4)" in said and said.count("\n") == 1


def test_a_class_that_links_to_another(make_folder):
    folder = make_folder("cat/1.png", "dog/1.png")
    (folder / "katze").symlink_to("cat")
    with pytest.raises(ValueError, match="katze' is a link to a folder that is read already"):
        find_images(folder, "train")


def test_two_classes_of_one_name(make_folder):
    with pytest.raises(ValueError, match="'n01440764' and 'tench' of .* are both called 'tench'"):
        find_images(make_folder("n01440764/1.png", "tench/1.png"), "train")


def test_a_file_that_becomes_something_else_or_is_too_large(make_folder):
    dataset = open_image_folder(make_folder("cat/1.png", "dog/1.png"), "train", max_image_pixels=1)
    path = Path(dataset.describe(0).partition(", file ")[2])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no regular file"):
        dataset[0]
    path.unlink()
    path.touch()
    os.truncate(path, 2**40)  # a sparse file, which takes no space on the disk
    with pytest.raises(ValueError, match="its 1,099,511,627,776 bytes are more than the 16,777,217"):
        dataset[0]
    with pytest.raises(OSError):
        read_file(path.parent, 100)


def test_odd_names_are_escaped_in_messages(make_folder):
    folder = make_folder("cat/a\n\x1b[31m.png", "cat/" + os.fsdecode(b"caf\xe9.png"))
    dataset = open_image_folder(folder, "train")
    for record in range(len(dataset)):
        assert dataset.describe(record).isprintable()
    Path(find_images(folder, "train").files[0]).write_bytes(b"damaged")
    with pytest.raises(DamagedImageError) as raised:
        read_image(dataset, 0, lambda image: (_ for _ in ()).throw(ValueError("bad")))
    assert "\n" not in str(raised.value)


def test_a_folder_of_bombs_takes_little_memory(make_folder):
    """The pipeline runs in its own process, refuses every file, and uses less than 1 GB."""
    folder = make_folder("a/0.png", "b/0.png", "b/1.png")
    (folder / "a" / "sparse.png").touch()
    os.truncate(folder / "a" / "sparse.png", 2**36)
    code = f"""
from configs import base
from input_pipeline import eval_batches, load_dataset
config = base.get_config()
config.update(dict(dataset="image_folder:{folder}", image_size=8, channels=3, eval_batch_size=4, on_bad_image="skip"))
dataset = load_dataset(config, "train")
with eval_batches(dataset, config) as batches:
    print(sum(batch["mask"].sum() for batch in batches))
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    read, megabytes = result.stdout.split()
    assert float(read) >= 2 and int(megabytes) < 1000, result.stderr


def test_home_and_variables_in_paths_and_names_that_look_like_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PETS", "cats")
    assert local_path("~/$PETS/${PETS}") == tmp_path / "cats" / "cats"
    assert local_path("a~b/c") == Path("a~b/c") and local_path("a:/b") == Path("a:/b")
    price = tmp_path / "5$each.png"
    price.touch()
    assert local_path(price) == price
    for path in ("$NO_SUCH_VARIABLE/x", "~no_such_user/x", "gs://bucket/x"):
        with pytest.raises(ValueError, match="is remote|there is no such"):
            local_path(path)


def test_a_folder_without_splits_is_a_test_set_as_a_whole(make_folder):
    paths = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(5)]
    folder = make_folder(*paths)
    assert not has_split_folders(folder)
    found = find_images(folder, "all")
    assert found.files == sorted(str(folder / path) for path in paths) and found.name == "all"
    assert len(find_images(folder, "eval").files) == 2  # a share is held out
