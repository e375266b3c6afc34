"""Files of every format and mode that Pillow can write give Pillow's pixels; damaged and huge files are refused."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

import input_pipeline
from input_pipeline import decoding
from input_pipeline.files import FORMATS

Image.init()
WRITABLE = sorted(set(Image.SAVE) & (set(FORMATS) | {"MPO"}))
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F")
REPOSITORY = Path(input_pipeline.__file__).parents[1]


@pytest.fixture(params=["all", "Pillow alone"])
def installed(request, monkeypatch):
    if request.param == "Pillow alone":
        monkeypatch.setattr(decoding, "cv2", None)
        monkeypatch.setattr(decoding, "simplejpeg", None)


def colours(height=21, width=30):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / 9 + x / 7), np.cos(y / 6 - x / 8), np.sin(x / 5)]
    return Image.fromarray(np.stack([127 + 120 * wave for wave in waves], axis=-1).astype(np.uint8))


def encode(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def shown(encoded, channels):
    """Returns Pillow's pixels; grey is computed from its RGB."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    return np.asarray(image if channels == 3 else image.convert("L")).reshape(*image.size[::-1], channels)


def assert_shown(encoded, levels=1):
    for channels in (1, 3):
        found = decoding.decode(encoded, channels)
        expected = shown(encoded, channels)
        assert found.shape == expected.shape and found.dtype == np.uint8
        assert np.abs(found.astype(int) - expected).max() <= levels


@pytest.mark.parametrize("form", WRITABLE)
@pytest.mark.filterwarnings("ignore")
def test_every_format_and_mode_that_pillow_writes(installed, form):
    written = 0
    for mode in MODES:
        if (form, mode) == ("PPM", "I"):
            continue  # it has 16 bits, which another test covers
        image = colours().convert("L").convert(mode) if mode in ("I", "F") else colours().convert(mode)
        try:
            encoded = encode(image, form, **({"sizes": [(16, 16)]} if form == "ICO" else {}))
        except (OSError, ValueError, KeyError, SystemError):
            continue  # this format has no such mode
        assert_shown(encoded)
        written += 1
        if form == "ICNS" and written == 2:
            break  # such a file has several sizes of up to 1024 pixels
    assert written


OPTIONS = [
    ("PNG", "P", {"transparency": 3}), ("PNG", "P", {"bits": 2}), ("PNG", "L", {"transparency": 100}),
    ("PNG", "RGB", {"transparency": (127, 0, 0)}), ("PNG", "RGB", {"icc_profile": b"x" * 200}),
    ("PNG", "RGB", {"dpi": (72, 72)}), ("JPEG", "RGB", {"keep_rgb": True}), ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "RGB", {"subsampling": 2}), ("TIFF", "RGB", {"compression": "jpeg"}), ("TIFF", "L", {"big_tiff": True}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("WEBP", "RGBA", {"lossless": True}),
    ("WEBP", "RGB", {"quality": 30}), ("AVIF", "RGBA", {"quality": 90}),
    ("GIF", "P", {"interlace": True}), ("BMP", "RGBA", {}),
    ("JPEG2000", "RGBA", {"irreversible": False}),
]  # fmt: skip


@pytest.mark.parametrize("form, mode, options", OPTIONS)
@pytest.mark.filterwarnings("ignore")
def test_options_of_the_formats(installed, form, mode, options):
    if form == "AVIF" and not features.check("avif"):
        return  # a Pillow without this format cannot write the file
    assert_shown(encode(colours().convert(mode), form, **options))


def png(*chunks):
    """Returns a PNG file made of chunks, each (kind, data)."""
    made = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def pixels(colour):
    return zlib.compress((b"\0" + bytes(colour) * 2) * 2)


@pytest.mark.parametrize("chunk", [
    (b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455)), (b"gAMA", struct.pack(">I", 100000)), (b"sBIT", b"\5\5\5"),
    (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
])  # fmt: skip
@pytest.mark.parametrize("colour, grey", [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29), ((91, 91, 91), 91)])
def test_grey_is_that_of_itu_601_whatever_a_png_says_of_its_colours(installed, chunk, colour, grey):
    header = (b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0))
    encoded = png(header, chunk, (b"IDAT", pixels(colour)), (b"IEND", b""))
    np.testing.assert_array_equal(decoding.decode(encoded, 1), np.full((2, 2, 1), grey))
    np.testing.assert_array_equal(decoding.decode(encoded, 3), np.full((2, 2, 3), colour))


@pytest.mark.parametrize("form, bits", [("PNG", 16), ("TIFF", 16), ("PPM", 16), ("JPEG2000", 16)])
def test_of_16_bits_the_higher_8_are_taken(installed, form, bits):
    levels = np.arange(0, 65536, 97, dtype=np.uint16)[:600].reshape(20, 30)
    encoded = encode(Image.fromarray(levels), form)
    for channels in (1, 3):
        np.testing.assert_array_equal(decoding.decode(encoded, channels)[..., 0], levels >> 8)


def frames(*values):
    return [Image.new("RGB", (6, 5), value) for value in values]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_of_several_images_the_first_is_taken(installed, form):
    if form == "AVIF" and not features.check("avif"):
        return
    first, *others = frames((200, 0, 0), (0, 200, 0), (0, 0, 200))
    encoded = encode(first, form, save_all=True, append_images=others)
    assert np.abs(decoding.decode(encoded, 3).astype(int) - (200, 0, 0)).max() <= 4


def test_an_animated_png_shows_its_default_image(installed):
    first, *others = frames((255, 0, 0), (0, 255, 0), (255, 255, 0))
    encoded = encode(first, "PNG", save_all=True, append_images=others, default_image=True)
    np.testing.assert_array_equal(decoding.decode(encoded, 3), np.full((5, 6, 3), (255, 0, 0)))


@pytest.mark.parametrize("alpha", [0, 128, 255])
@pytest.mark.parametrize("form", ["AVIF", "WEBP", "PNG", "TIFF", "TGA", "JPEG2000"])
def test_transparency_is_dropped_and_colours_keep_their_order(installed, form, alpha):
    if form == "AVIF" and not features.check("avif"):
        return
    options = {"exact": True, "lossless": True} if form == "WEBP" else {}
    encoded = encode(Image.new("RGBA", (16, 16), (200, 100, 20, alpha)), form, **options)
    assert np.abs(decoding.decode(encoded, 3).astype(int) - (200, 100, 20)).max() <= 4


JPEG = encode(colours(64, 80), "JPEG", quality=95)


FOLLOWS = [JPEG, JPEG[:900], encode(colours(), "JPEG"), encode(colours(), "PNG"), b"more", bytes(99)]


@pytest.mark.parametrize("follows", FOLLOWS)
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
def test_a_truncated_jpeg_is_refused_whatever_follows(follows, progressive, share):
    whole = encode(colours(64, 80), "JPEG", quality=95, progressive=progressive)
    with pytest.raises(ValueError, match="it is truncated"):
        decoding.decode(whole[: int(share * len(whole))] + follows, 3)
    np.testing.assert_array_equal(decoding.decode(whole + follows, 3), decoding.decode(whole, 3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", WRITABLE)
def test_damaged_files_are_refused_or_read_as_pillow_reads_them(installed, form):
    """Files that are truncated or have changed bytes at any place raise no exception other than ValueError."""
    mode = {"MSP": "1", "XBM": "1", "BLP": "P"}.get(form, "RGB")
    encoded, random, before = encode(colours().convert(mode), form), np.random.RandomState(0), peak_memory()
    for number in range(60):
        damaged = bytearray(encoded)
        for position in random.randint(0, len(encoded), 3):
            damaged[position] = random.randint(256)
        damaged = bytes(damaged) if number % 2 else encoded[: random.randint(len(encoded))]
        try:
            found = decoding.decode(damaged, 3, max_pixels=100_000)
        except ValueError as error:
            assert "\n" not in str(error) and "cannot decode its" in str(error)
            continue
        if form == "PNG" and number % 2 == 0:
            np.testing.assert_array_equal(found, shown(damaged, 3))
    assert peak_memory() < before + 200


def test_a_length_inside_a_png_that_is_wrong_takes_no_memory(installed):
    encoded, before = encode(colours(), "PNG"), peak_memory()
    for kind in (b"IHDR", b"IDAT", b"IEND"):
        position = encoded.index(kind) - 4
        damaged = encoded[:position] + b"\x7f\xff\xff\xff" + encoded[position + 4 :]
        try:
            np.testing.assert_array_equal(decoding.decode(damaged, 3), shown(encoded, 3))
        except ValueError:
            assert kind != b"IEND"
    assert peak_memory() < before + 100


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "encoded", [EPS, b"\xc5\xd0\xd3\xc6" + EPS, b"", b"no image", b"%PDF-1.4", b"\x89HDF\r\n\x1a\n", bytes(500)]
)
def test_what_is_no_image_starts_nothing(encoded, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(ValueError, match="cannot decode its"):
        decoding.decode(encoded, 3)


@pytest.mark.parametrize("tag", range(0, 10))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(installed, form, tag):
    """By default only a TIFF is turned, as in TFDS and torchvision; with the option images are turned as by Pillow."""
    exif = Image.Exif()
    exif[0x0112] = tag
    image = colours()
    encoded = encode(image, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))
    assert np.abs(decoding.decode(encoded, 3, exif_orientation=True).astype(int) - turned).max() <= 1
    assert_shown(encoded)

    def choose(height, width):
        assert (height, width) == turned.shape[:2]
        return 3, 4, 10, 7

    box = decoding.decode_box(encoded, 3, choose, exif_orientation=True)
    assert np.abs(box.astype(int) - turned[3:13, 4:11]).max() <= 1


def claims(form, width, height):
    """Returns a small file of a format, whose header claims the given size."""
    if form == "PNG":
        row = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return png(row, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    encoded = bytearray(encode(Image.new("RGB", (16, 16)), form))
    if form == "JPEG":
        position = encoded.index(b"\xff\xc0") + 5
        encoded[position : position + 4] = struct.pack(">HH", height, width)
    if form == "BMP":
        encoded[18:26] = struct.pack("<ii", width, height)
    if form == "GIF":
        encoded[6:10] = struct.pack("<HH", width, height)
    if form == "PPM":
        encoded = bytearray(b"P6 %d %d 255\n" % (width, height)) + bytes(100)
    if form == "QOI":
        encoded[4:12] = struct.pack(">II", width, height)
    return bytes(encoded)


def peak_memory():
    """Returns the peak memory of this process so far, in megabytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


BOMBS = [(form, 60000, 17000) for form in ("PNG", "JPEG", "BMP", "GIF", "PPM", "QOI")]
BOMBS += [("PNG", 2**31 - 1, 2**31 - 1), ("PNG", 1, 178_956_971), ("JPEG", 65500, 65500), ("JPEG", 13000, 13000)]


def test_bombs_are_refused_by_their_headers():
    """Runs in its own process, whose memory is measured."""
    code = """
from input_pipeline import decoding
from tests.input_pipeline.test_decoding import BOMBS, claims, peak_memory
before = peak_memory()
for bomb in BOMBS:
    for channels in (1, 3):
        try:
            decoding.decode(claims(*bomb), channels)
            print("accepted", bomb)
        except ValueError as error:
            pass
grown = peak_memory() - before
print("grown by", grown) if grown > 100 else None
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_large_image_that_is_no_bomb_takes_its_own_memory_and_little_more(mode):
    """36 million pixels of one colour, read as for training: Pillow holds 4 bytes of each."""
    code = f"""
import numpy as np
from input_pipeline import decoding
from tests.input_pipeline.test_decoding import Image, encode, peak_memory
Image.MAX_IMAGE_PIXELS = None
encoded = encode(Image.new("{mode}", (6000, 6000)), "PNG", compress_level=1)
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = peak_memory()
pixels = decoding.decode_box(encoded, 3, lambda height, width: (0, 0, height, width), 224)
assert not pixels.any() and min(pixels.shape[:2]) >= 448
print(peak_memory() - before)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert int(result.stdout) < 190, result.stderr


def test_large_boxes_are_averaged(monkeypatch, installed):
    monkeypatch.setattr(decoding, "_LARGE_IMAGE", 1000)
    image = colours(400, 600)
    for form in ("WEBP", "TIFF"):
        encoded = encode(image, form, **({"lossless": True} if form == "WEBP" else {}))
        pixels = decoding.decode_box(encoded, 3, lambda height, width: (10, 20, 360, 540), 30)
        expected = image.crop((20, 10, 560, 370)).reduce(6)
        assert pixels.shape == (60, 90, 3) and np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 1


def test_max_pixels():
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        encoded = encode(colours(21, 30), form)
        assert decoding.decode(encoded, 3, max_pixels=630).shape == (21, 30, 3)
        with pytest.raises(ValueError, match="30 x 21 pixels are more than max_image_pixels=629"):
            decoding.decode(encoded, 3, max_pixels=629)
