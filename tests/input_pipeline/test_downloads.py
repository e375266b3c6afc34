"""A download is resumed, verified, and gets its name last, whatever the server does."""

import hashlib
import threading

import numpy as np
import pytest

from input_pipeline import downloads
from input_pipeline.downloads import download, read_headers

DATA = np.random.default_rng(0).bytes(5000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def get(server, tmp_path):
    """Returns a function that downloads /file, which has DATA, and returns its path."""
    server.files["/file"] = DATA
    target = tmp_path / "folder" / "file"

    def get(sha256=SHA256, size=None):
        try:
            download(f"{server.url}/file", target, sha256, size)
        except OSError:
            assert not target.exists()
            raise
        assert target.read_bytes() == DATA and [path.name for path in target.parent.iterdir()] == ["file"]
        return target

    return get


@pytest.mark.parametrize("size", [None, 5000])
@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8]])
def test_a_download_goes_on_where_it_stopped(server, get, sha256, size):
    server.faults["/file"] = [("stop", 3000), ("stop", 4000)]
    for _ in range(2):
        with pytest.raises(ConnectionError, match="the download of .* stopped after .* of 5,000 bytes|goes on"):
            get(sha256, size)
    get(sha256, size)
    assert server.requests == [("GET", "/file", start) for start in (0, 3000, 4000)]


def test_a_server_that_sends_the_whole_file_again(server, get):
    server.faults["/file"] = [("stop", 3000), ("whole",)]
    with pytest.raises(ConnectionError):
        get()
    get()


@pytest.mark.parametrize("kept", [DATA, DATA[:3000] + bytes(4000)])
def test_a_part_that_is_complete_or_too_long(server, get, tmp_path, kept):
    """The program was killed before the part got its name, or the file has become shorter."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file.part").write_bytes(kept)
    get()


def test_damaged_data_are_thrown_away(server, get, tmp_path):
    server.faults["/file"] = [("instead", DATA[:-1] + b"?")]
    with pytest.raises(OSError, match="is not what it was: its SHA-256 is .* it is not used"):
        get()
    assert list((tmp_path / "folder").iterdir()) == []
    get()


def test_redirects_are_followed(server, get):
    server.files["/elsewhere"] = DATA
    server.faults["/file"] = [("stop", 3000), ("status", 302, {"Location": "/elsewhere"})]
    with pytest.raises(ConnectionError):
        get()
    get()
    assert server.requests[-1] == ("GET", "/elsewhere", 3000)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(server, get, monkeypatch, status):
    waits = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.faults["/file"] = [("status", status, {"Retry-After": value}) for value in ("7", date)]
    get()
    assert waits == [7, 0]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([("status", 429, {"Retry-After": "3600"})], r"the server is busy \(HTTP 429\); try again in 3600 s"),
        ([("status", 429, {"Retry-After": "0"})] * 4, "HTTP 429"),
        ([("status", 429, {})], "HTTP 429"),
        ([("status", 404, {})], "cannot download .*/file: HTTP 404, .*goes on"),
        ([("hang",)], "cannot download .*timed out"),
    ],
    ids=["busy for long", "busy always", "busy without end", "missing", "silent"],
)
def test_errors_name_the_address_and_the_reason(server, get, monkeypatch, faults, message):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    server.faults["/file"] = faults
    with pytest.raises(OSError, match=message) as raised:
        get()
    assert "\n" not in str(raised.value)


def test_no_server(tmp_path):
    with pytest.raises(ConnectionError, match="cannot download .*refused.*, or ask a friend"):
        download("http://127.0.0.1:1/file", tmp_path / "file", SHA256, otherwise="ask a friend")
    assert list(tmp_path.iterdir()) == []


def test_many_downloads_of_one_file_at_once_ask_the_server_once(server, get):
    """As the processes of one training run do that start from the same weights."""
    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    get()
    assert len(server.requests) == 1


def test_headers_are_those_of_the_first_server(server):
    server.faults["/old"] = [("status", 307, {"Location": "/new"})]
    server.faults["/new"] = [("status", 302, {"Location": "http://127.0.0.1:1/elsewhere", "X-Linked-Etag": '"abc"'})]
    assert read_headers(f"{server.url}/old")["X-Linked-Etag"] == '"abc"'
    server.faults["/circle"] = [("status", 307, {"Location": "/circle"})] * 20
    with pytest.raises(OSError, match="circle"):
        read_headers(f"{server.url}/circle")
    with pytest.raises(OSError, match="404"):
        read_headers(f"{server.url}/none")
