"""Rows are written to JSON and CSV files and read again."""

import pytest

from analysis import rows

FAILED = {"model": "vgg16", "mode": "train", "batch_size": 8, "image_size": 224, "dtype": "float32"}
FAILED |= {"status": "error", "auto": False}


def test_rows_are_read_as_they_were_written(tmp_path):
    written = [FAILED | {"status": "ok", "images_per_second": 7.5}, FAILED | {"images_per_second": None}]
    (tmp_path / "rows.json").write_text(rows.as_json(written))
    assert rows.read(str(tmp_path / "rows.json")) == written


@pytest.mark.parametrize("text", ["{}", "[]", "[1]", '[{"model": 1, "mode": 1, "status": "ok", "auto": 1}]', "x"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ValueError, match="holds no rows"):
        rows.read(str(tmp_path / "rows.json"))


@pytest.mark.parametrize("status", [{"status": "ok"}, {"status": "ok", "images_per_second": 0}])
def test_a_measured_row_without_a_rate_is_refused(tmp_path, status):
    (tmp_path / "rows.json").write_text(rows.as_json([FAILED | status]))
    with pytest.raises(ValueError, match="holds no rows"):
        rows.read(str(tmp_path / "rows.json"))


def test_a_folder_is_no_file_for_rows(tmp_path):
    with pytest.raises(IsADirectoryError, match="--json"):
        rows.check_file("json", str(tmp_path))
