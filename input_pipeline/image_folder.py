"""Datasets in folders of images: a folder for each class, with or without a folder for each split above them."""

import collections
import dataclasses
import os
import re
from pathlib import Path

from input_pipeline.class_names import in_words
from input_pipeline.dataset import Dataset, held_out_records, held_out_split
from input_pipeline.files import (
    MAX_IMAGE_PIXELS,
    SUFFIXES,
    identity,
    is_hidden,
    local_path,
    most_bytes,
    printable,
    read_file,
    regular_files,
    say_once,
)

SPELLINGS = {
    "train": {"train", "training", "trn"},
    "validation": {"val", "valid", "validation", "validate", "dev", "eval", "evaluation"},
    "test": {"test", "testing", "tst"},
}
"""The names of split folders, in upper or lower case, alone or with words such as set: Test_Set, valset."""


@dataclasses.dataclass(frozen=True)
class FolderSplit:
    """The images of one split.

    Attributes:
      name: name of the split's folder; if a share of the images is held out instead, train or validation.
      kind: train, validation or test, TFDS's names of splits; equal to name if the name is none of SPELLINGS.
      class_folders: names of the class folders, in the order of the labels.
      files: paths of the images, sorted by class and path.
      labels: the label of each file, a position in class_folders.
    """

    name: str
    kind: str
    class_folders: tuple[str, ...]
    files: list[str]
    labels: list[int]


def open_image_folder(
    folder: str | Path,
    split: str,
    *,
    validation_share: float = 0.2,
    split_seed: int = 0,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> Dataset:
    """Opens a split of a folder of class folders.

    Args:
      folder: as for `find_images`.
      split: as for `find_images`.
      validation_share: as for `find_images`.
      split_seed: as for `find_images`.
      max_image_pixels: a file with more bytes than about this number is not read and counts as damaged.

    Returns:
      The dataset, whose name is image_folder:FOLDER.

    Raises:
      FileNotFoundError: if the folder does not exist.
      ValueError: if the split does not exist, a class has no images, or two classes have the same name.
      OSError: if a folder cannot be read.
    """
    found = find_images(folder, split, validation_share=validation_share, split_seed=split_seed)
    max_bytes = most_bytes(max_image_pixels)
    return Dataset(
        name=f"image_folder:{folder}",
        split=found.name,
        class_names=in_words(found.class_folders),
        size=len(found.files),
        read=lambda record: (read_file(found.files[record], max_bytes), found.labels[record]),
        describe=lambda record: f"record {record}, file {printable(found.files[record])}",
    )


def find_images(folder: str | Path, split: str, *, validation_share: float = 0.2, split_seed: int = 0) -> FolderSplit:
    """Finds the images of a split, and reports on standard error which files are left out.

    A folder is a split if its name is in SPELLINGS; all folders are splits if they contain folders of the same names.
    Class folders may contain folders. If all names of class folders are numbers, they are sorted as numbers: 2 before
    10.

    Args:
      folder: contains either the class folders, or split folders that contain the class folders.
      split: 'train', 'eval' (validation, or test if there is no validation folder), or the name of a split's folder;
        'all' if there is no folder for evaluation.
      validation_share: share of the images that are held out for validation if no folder is for evaluation.
      split_seed: seed for the shuffle that chooses the held-out images.

    Raises:
      FileNotFoundError: if the folder does not exist.
      ValueError: if the split does not exist, a class has no images, or two classes have the same name.
      OSError: if a folder cannot be read.
    """
    name, root = f"image_folder:{folder}", local_path(folder)
    if not str(folder) or not root.is_dir():
        raise FileNotFoundError(f"no folder {str(root)!r}: dataset=image_folder:/path needs a folder of class folders")
    root = _unwrapped(root)
    splits = _split_folders(root)
    chosen = _choose_split(split, splits, root)
    held_out = chosen is None
    if chosen:
        place, compared = root / chosen, {*_of_kind("train", splits)[:1], *_eval_folders(splits)[:1]}
    else:
        chosen, train = held_out_split(name, split), _only(_of_kind("train", splits), "train")
        place, compared = (root / train if train else root), set()
    class_folders = _class_folders(place)
    for other in compared:
        different = sorted(set(class_folders) ^ set(_class_folders(root / other)))
        if different:
            raise ValueError(
                f"class folders of {str(place)!r} and {str(root / other)!r} differ: "
                f"{', '.join(map(printable, different[:5]))} ({len(different)} in all) must be in both or in neither"
            )
    _check_names(class_folders, place)
    files, labels, left_out = _images_of_classes(place, class_folders, [root / other for other in splits])
    if beside := len(_subfolders(root)) - len(splits) if splits else 0:
        left_out["folders beside those of the splits"] = beside
    if left_out:
        counts = ", ".join(f"{what} ({count:,})" for what, count in sorted(left_out.items()))
        say_once(f"note: not read in {printable(place)}: {counts}")
    if held_out:
        records = held_out_records(name, chosen, len(files), validation_share, split_seed)
        files, labels = [files[record] for record in records], [labels[record] for record in records]
    return FolderSplit(chosen, split_kind(chosen) or chosen, tuple(class_folders), files, labels)


def has_split_folders(folder: str | Path) -> bool:
    """Whether a folder contains split folders, and not directly the class folders; False if there is no folder."""
    return Path(folder).is_dir() and bool(_split_folders(_unwrapped(Path(folder))))


def split_kind(name: str) -> str | None:
    """Returns 'train', 'validation' or 'test' for the name of a split in any of SPELLINGS; None for other names."""
    kinds = {kind for kind, spellings in SPELLINGS.items() if spellings & set(_words(name))}
    return kinds.pop() if len(kinds) == 1 else None


def _words(name: str) -> list[str]:
    """Returns the words of a name in lower case, without words such as set: ["train"] for Train_Set or trainset."""
    words = re.findall(r"[^\W\d_]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())
    return [rest for word in words if (rest := re.sub("(set|data|images?|imgs?|splits?|folder)$", "", word))]


def _unwrapped(folder: Path) -> Path:
    """Returns the folder of classes or splits; enters folders that contain only one folder, as unpacked archives do."""
    entered = folder
    while len(inner := _subfolders(entered)) == 1 and not split_kind(inner[0].name):
        if _has_images(entered) or _has_images(inner[0]):
            break
        entered = inner[0]
        if len(_subfolders(entered)) > 1:
            folder = entered
    return folder


def _split_folders(root: Path) -> dict[str, str | None]:
    """Returns a dict from the names of the split folders in a folder to their kinds; empty if there are none."""
    holders = {path.name: {inner.name for inner in _subfolders(path)} for path in _subfolders(root)}
    several = min(map(len, holders.values()), default=0) > 1
    # A class may have the name 'train', but its folder contains no folders.
    holders = {name: inner for name, inner in holders.items() if inner}
    kinds = {name: split_kind(name) for name in holders}

    def is_split(name: str) -> bool:
        """Whether a folder is a split by its name.

        The name may contain other words if another split folder contains about the same folders.
        """
        others = [holders[other] for other in holders if kinds[other] not in (None, kinds[name])]
        alike = any(2 * len(other & holders[name]) >= max(len(other), len(holders[name])) for other in others)
        return bool(kinds[name]) and (len(_words(name)) == 1 or alike)

    named = [name for name in holders if is_split(name)]
    if named:
        return {name: kinds[name] for name in holders if name in named or holders[name] == holders[named[0]]}
    equal = len(holders) > 1 and len(set(map(frozenset, holders.values()))) == 1
    if several and equal and not any(_has_images(root / name) for name in holders):
        return dict.fromkeys(holders)
    return {}


def _choose_split(split: str, splits: dict[str, str | None], root: Path) -> str | None:
    """Returns the name of a split's folder, or None if the split is a held-out share of the images."""
    evaluation, unnamed = _eval_folders(splits), [name for name, kind in splits.items() if not kind]
    if not evaluation and not unnamed:
        return None
    if split in splits:
        return split
    found = evaluation if split == "eval" else _of_kind(split_kind(split), splits)
    if found:
        return _only(found, split)
    folders = ", ".join(map(printable, splits))
    if unnamed and split in ("train", "eval"):
        raise ValueError(
            f"folders {folders} of {str(root)!r} hold the same folders, as splits do: set {split}_split to one of "
            "them; if they are classes, move the images out of the folders in them"
        )
    raise ValueError(f"{str(root)!r} has no folder {split}/ of class folders: there are {folders}")


def _eval_folders(splits: dict[str, str | None]) -> list[str]:
    return _of_kind("validation", splits) or _of_kind("test", splits)


def _of_kind(kind: str | None, splits: dict[str, str | None]) -> list[str]:
    return [name for name in splits if kind and splits[name] == kind]


def _only(names: list[str], split: str) -> str | None:
    """Returns the only name of a list, or None if the list is empty; raises ValueError if there are several."""
    if len(names) > 1:
        option = "train_split" if split == "train" else "eval_split"
        raise ValueError(f"{' and '.join(map(printable, names))} are all folders of one split: set {option} to one")
    return names[0] if names else None


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name) and path.is_dir())


def _has_images(folder: Path) -> bool:
    """Whether a folder directly contains images."""
    return any(path.suffix.lower() in SUFFIXES and not is_hidden(path.name) for path in folder.iterdir())


def _class_folders(folder: Path) -> list[str]:
    """Returns the names of class folders in the order of their labels."""
    names = [path.name for path in _subfolders(folder)]
    if not names:
        raise ValueError(f"{str(folder)!r} has no class folders: put each class's images into a folder of its name")
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def _check_names(class_folders: list[str], folder: Path) -> None:
    """Raises ValueError if an ImageNet class has two folders, one named by its WordNet id and one by its name."""
    names = in_words(class_folders)
    first = {name: position for position, name in reversed(list(enumerate(names)))}
    for position, name in enumerate(names):
        if first[name] != position:
            both = f"{class_folders[first[name]]!r} and {class_folders[position]!r}"
            raise ValueError(f"class folders {both} of {str(folder)!r} are both called {name!r}: rename one of them")


def _images_of_classes(
    folder: Path, class_folders: list[str], splits: list[Path]
) -> tuple[list[str], list[int], collections.Counter[str]]:
    """Returns the image files of all classes, their labels, and the number of left-out files of each kind."""
    # A link in one class folder to another class or split must not give the images the wrong class.
    entered = {identity(path) for path in (folder, *folder.resolve().parents, *splits)}
    for name in class_folders:
        if identity(folder / name) in entered:
            raise ValueError(f"{str(folder / name)!r} is a link to a folder that is read already: remove the link")
        entered.add(identity(folder / name))
    files: list[str] = []
    labels: list[int] = []
    left_out = collections.Counter[str]()
    for label, name in enumerate(class_folders):
        found, others = regular_files(folder / name, entered)
        images = [file for file in found if os.path.splitext(file)[1].lower() in SUFFIXES]
        if not images:
            raise ValueError(f"no image file in {str(folder / name)!r}: add images or remove the folder")
        files += images
        labels += [label] * len(images)
        left_out += others
        left_out.update(_kind_of_file(file) for file in found if os.path.splitext(file)[1].lower() not in SUFFIXES)
    beside = sum(not is_hidden(path.name) and not path.is_dir() for path in folder.iterdir())
    left_out.update({"files beside the class folders": beside} if beside else {})
    return files, labels, left_out


def _kind_of_file(file: str) -> str:
    suffix = os.path.splitext(file)[1].lower()
    return f"{printable(suffix)} files" if suffix else "files without a suffix"
