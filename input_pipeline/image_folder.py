"""Folders of images: a folder for each class, below a folder for each split or in one piece."""

import os
from pathlib import Path

from input_pipeline.class_names import in_words
from input_pipeline.dataset import Dataset, held_out_records, held_out_split

EVAL_FOLDERS = ("val", "validation", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def open_image_folder(folder: str | Path, split: str, *, validation_share: float = 0.2, split_seed: int = 0) -> Dataset:
    """Opens a split of a folder of class folders.

    Args:
      folder: holds the class folders, or train/ and val/, validation/ or test/, which hold them.
      split: 'train', 'eval', or the name of a split's folder.
      validation_share: share of the images that are held out for validation where there are no folders for it.
      split_seed: seed for the shuffle that chooses them.

    Returns:
      The dataset, called image_folder:FOLDER.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: there is no such split, or a class has no images.
    """
    name, root = f"image_folder:{folder}", Path(folder).expanduser()
    if not str(folder) or not root.is_dir():
        raise FileNotFoundError(f"no folder {str(root)!r}: dataset=image_folder:/path needs a folder of class folders")
    splits = {path.name: path for path in _subfolders(root) if path.name in ("train", *EVAL_FOLDERS)}
    splits = {split: path for split, path in splits.items() if _subfolders(path)}  # a class may be called 'train'
    eval_split = next((folder for folder in EVAL_FOLDERS if folder in splits), None)
    if split == "eval" and eval_split:
        split = eval_split

    if split in splits and eval_split:
        folder, held_out = splits[split], False
    elif eval_split:
        raise ValueError(f"{str(root)!r} has no folder {split}/ of class folders: there are {', '.join(splits)}")
    else:
        folder, held_out = splits.get("train", root), True
        split = held_out_split(name, split)

    class_folders = [path.name for path in _subfolders(folder)]
    if not class_folders:
        raise ValueError(f"{str(folder)!r} has no class folders: put each class's images into a folder of its name")
    for other in splits.values():
        different = sorted(set(class_folders) ^ {path.name for path in _subfolders(other)})
        if different:
            raise ValueError(
                f"class folders of {str(folder)!r} and {str(other)!r} differ: {', '.join(different[:5])} "
                f"({len(different)} in all) must be in both or in neither"
            )
    files, labels = [], []
    for label, class_folder in enumerate(class_folders):
        found = _image_files(folder / class_folder)
        if not found:
            raise ValueError(f"no JPEG or PNG file in {str(folder / class_folder)!r}: add images or remove the folder")
        files += found
        labels += [label] * len(found)
    if held_out:
        records = held_out_records(name, split, len(files), validation_share, split_seed)
        files, labels = [files[record] for record in records], [labels[record] for record in records]
    return Dataset(
        name=name,
        split=split,
        class_names=in_words(class_folders),
        size=len(files),
        read=lambda record: (Path(files[record]).read_bytes(), labels[record]),
        describe=lambda record: f"record {record}, file {files[record]}",
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[str]:
    return sorted(
        os.path.join(parent, file)
        for parent, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith(".")
    )
