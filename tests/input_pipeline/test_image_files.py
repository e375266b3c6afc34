"""Image files that a user names: which they are, in which order, and how batches of them are decoded."""

import io
import os

import numpy as np
import pytest

from input_pipeline.image_files import decoded_batches, named_images


@pytest.fixture
def folder(tmp_path):
    """Files that hold their own first letter; odd names, other files and a hidden one among them."""
    for name in ("b.jpg", "a,1.png", "c/d.JPEG", "c/[e].bmp", "c/notes.txt", ".hidden.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name[0])
    return tmp_path


def names(folder, *words, stdin=b""):
    stream = io.TextIOWrapper(io.BytesIO(stdin))
    return [os.path.relpath(file, folder) for file in named_images(map(str, words), stream)]


def test_files_folders_and_patterns(folder):
    assert names(folder, folder) == ["a,1.png", "b.jpg", "c/[e].bmp", "c/d.JPEG"]
    assert names(folder, folder / "c" / "notes.txt", folder / "*.jpg") == ["c/notes.txt", "b.jpg"]
    assert names(folder, folder / "**" / "*.JPEG", folder / "b.jpg") == ["c/d.JPEG", "b.jpg"]
    assert names(folder, folder / "c" / "[e].bmp") == ["c/[e].bmp"]  # a file of this name comes before the pattern


def test_names_on_standard_input_need_not_exist(folder):
    lines = f"{folder}/b.jpg\n\n{folder}/gone.png\n".encode() + os.fsencode(folder) + b"/\xff.png"
    assert names(folder, "-", stdin=lines) == ["b.jpg", "gone.png", "\udcff.png"]


@pytest.mark.parametrize(
    ("word", "message"), [("gone.jpg", "is no file"), ("*.gif", "no pattern"), ("empty", "no image")]
)
def test_nothing_found_is_an_error(folder, word, message):
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        named_images([str(folder / word)])


def test_batches_are_in_order_and_name_what_cannot_be_read(folder):
    """70 files in batches of 32, of which two are damaged, one is too large and one does not exist."""
    files = [folder / f"{number}.bin" for number in range(70)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    files[40].write_bytes(b"")
    files[69].write_bytes(b"")
    files[3].write_bytes(bytes(100))
    files[33].unlink()

    def transform(encoded):
        if not encoded:
            raise ValueError("it is empty")
        return np.full((1, 1, 1), encoded[0], np.uint8)

    taken = []
    batches = list(decoded_batches((taken.append(f) or f for f in map(str, files)), transform, (32, 1, 1, 1), 99, 3))
    assert [len(batch.files) for batch in batches] == [31, 30, 5] and len(taken) == 70
    for batch in batches:
        expected = [int(os.path.basename(file).removesuffix(".bin")) for file in batch.files]
        assert batch.images.shape == (32, 1, 1, 1)
        assert batch.images[: len(batch.files), 0, 0, 0].tolist() == expected
    errors = [(os.path.basename(file), reason) for batch in batches for file, reason in batch.errors]
    assert [file for file, _ in errors] == ["3.bin", "33.bin", "40.bin", "69.bin"]
    assert "100 bytes are more than the 99" in errors[0][1]
    assert errors[1][1] == "No such file or directory" and errors[2][1] == "it is empty"


def test_files_are_taken_only_as_far_as_needed(folder):
    """So that the memory does not grow with the number of files."""
    taken = []
    files = (taken.append(number) or str(folder / "b.jpg") for number in range(10**9))
    batches = decoded_batches(files, lambda encoded: np.zeros((1, 1, 1), np.uint8), (4, 1, 1, 1), 99, 2)
    next(batches)
    next(batches)
    assert len(taken) <= 12
    batches.close()
