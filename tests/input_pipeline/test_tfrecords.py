import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tensorflow_datasets.core.utils.shard_utils import FileInstruction

from input_pipeline import tfrecords
from input_pipeline.tfrecords import INDEX_NAME, TFRecords, masked_crc32c

RECORDS = [b"", b"a", bytes(range(256)) * 9, b"123456789"]


def masked_crc32c_bit_by_bit(data):
    """The values are those of RFC 3720, appendix B.4, with TFRecord's mask."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_tfrecord(path, records):
    with open(path, "wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", masked_crc32c_bit_by_bit(length)))
            file.write(record + struct.pack("<I", masked_crc32c_bit_by_bit(record)))


def whole(path, count):
    return FileInstruction(filename=str(path), skip=0, take=count, examples_in_shard=count)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecords, "CACHE_DIR", tmp_path / "cache")
    return tmp_path / "cache"


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.smoke
def test_records_of_several_files_in_any_order(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    write_tfrecord(first, RECORDS)
    write_tfrecord(second, RECORDS[::-1])
    expected = [*RECORDS, *RECORDS[::-1]]
    records = TFRecords([whole(first, 4), whole(second, 4)])
    assert len(records) == 8
    with ThreadPoolExecutor(8) as pool:
        order = np.random.default_rng(0).integers(0, 8, 200)
        assert list(pool.map(records.__getitem__, order)) == [expected[record] for record in order]


def test_slices(tmp_path):
    path = tmp_path / "a"
    write_tfrecord(path, RECORDS)
    pieces = [FileInstruction(str(path), skip=3, take=1, examples_in_shard=4), FileInstruction(str(path), 1, 2, 4)]
    assert list(TFRecords(pieces)) == [RECORDS[3], *RECORDS[1:3]]


def test_the_index_is_built_once_and_again_for_a_file_that_changed(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    paths = [folder / name for name in "ab"]
    for path in paths:
        write_tfrecord(path, RECORDS)
    list(TFRecords([whole(path, 4) for path in paths]))
    assert (folder / INDEX_NAME).exists() and not (tmp_path / "cache").exists()
    assert "indexing 2 TFRecord files" in capsys.readouterr().out
    list(TFRecords([whole(path, 4) for path in paths]))
    assert capsys.readouterr().out == ""
    write_tfrecord(paths[1], RECORDS[:2])
    assert list(TFRecords([whole(paths[0], 4), whole(paths[1], 2)])) == [*RECORDS, *RECORDS[:2]]
    assert "indexing 1 TFRecord files" in capsys.readouterr().out
    (folder / INDEX_NAME).write_bytes(b"PK damaged")
    assert list(TFRecords([whole(paths[0], 4)])) == RECORDS


def test_the_index_of_a_folder_that_cannot_be_written_is_kept_elsewhere(tmp_path, cache_dir, capsys):
    (tmp_path / "data" / INDEX_NAME).mkdir(parents=True)  # a folder of this name prevents the index from being written
    path = tmp_path / "data" / "a"
    write_tfrecord(path, RECORDS)
    for _ in range(2):
        assert list(TFRecords([whole(path, 4)])) == RECORDS
    assert capsys.readouterr().out.count("indexing") == 1
    assert len(list(cache_dir.iterdir())) == 1
    assert sorted(file.name for file in (tmp_path / "data").iterdir()) == ["a", INDEX_NAME]


@pytest.mark.parametrize("position", [12, 16])  # the byte of record 1, its checksum
def test_a_record_that_does_not_fit_its_checksum(tmp_path, position):
    path = tmp_path / "a"
    write_tfrecord(path, RECORDS[1:])
    flip(path, position - (position == 16) * 3)
    records = TFRecords([whole(path, 3)])
    assert records[1] == RECORDS[2]
    with pytest.raises(ValueError, match=f"the checksum of the record at byte 0 of {path} is wrong"):
        records[0]


def test_files_that_are_damaged(tmp_path):
    path = tmp_path / "a"
    write_tfrecord(path, RECORDS)
    with pytest.raises(ValueError, match=f"{path} holds 4 records instead of 5"):
        TFRecords([whole(path, 5)])
    flip(path, 16)  # the length of record 1
    with pytest.raises(ValueError, match=f"{path} is no TFRecord file, or damaged, at byte 16"):
        TFRecords([whole(path, 4)])
    write_tfrecord(path, RECORDS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path} is truncated"):
        TFRecords([whole(path, 4)])


def test_masked_checksum_is_the_formats():
    for data in RECORDS:
        assert masked_crc32c(data) == masked_crc32c_bit_by_bit(data)
