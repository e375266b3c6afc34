import io

import numpy as np
import pytest
from PIL import Image

from configs import base
from input_pipeline import crops, decoding, images


def smooth_image(height, width):
    """Returns an image of waves, different in each channel, which JPEG changes by only a few levels."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / 9 + x / 7), np.cos(y / 11 - x / 13), np.sin(x / 5)]
    return np.stack([127 + 100 * wave for wave in waves], axis=-1).astype(np.uint8)


def encode(image, form, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def uniforms(count):
    return np.random.default_rng(0).random((count, crops.UNIFORMS))


@pytest.fixture(params=["all", "no simplejpeg", "Pillow alone"])
def installed(request, monkeypatch):
    """The libraries that decode and resize; Pillow replaces a missing one."""
    if request.param != "all":
        monkeypatch.setattr(decoding, "simplejpeg", None)
    if request.param == "Pillow alone":
        monkeypatch.setattr(decoding, "cv2", None)


def test_png_decodes_to_its_pixels(installed):
    image = smooth_image(20, 30)
    np.testing.assert_array_equal(decoding.decode(encode(image, "PNG"), 3), image)


def test_jpeg_decodes_as_pillow_does(installed):
    encoded = encode(smooth_image(40, 56), "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(encoded))).astype(int)
    assert np.abs(decoding.decode(encoded, 3) - expected).max() <= 1


def test_cmyk_jpeg_decodes_to_the_colours_it_was_made_from(installed):
    image = smooth_image(40, 56)
    decoded = decoding.decode(encode(Image.fromarray(image).convert("CMYK"), "JPEG", quality=95), 3)
    assert np.abs(decoded.astype(int) - image).mean() < 3


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_grey_and_colour_convert_to_the_channels_asked_for(installed, form):
    grey, colour = smooth_image(20, 30)[..., 0], smooth_image(20, 30)
    as_colour = decoding.decode(encode(grey, form), 3)
    assert as_colour.shape == (20, 30, 3)
    np.testing.assert_array_equal(as_colour[..., 0], as_colour[..., 2])
    as_grey = decoding.decode(encode(colour, form), 1)
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert as_grey.shape == (20, 30, 1)
    assert np.abs(as_grey[..., 0] - luma).mean() < 2


def test_transparency_is_dropped(installed):
    image = smooth_image(20, 30)
    transparent = np.concatenate([image, np.full((20, 30, 1), 7, np.uint8)], axis=-1)
    np.testing.assert_array_equal(decoding.decode(encode(transparent, "PNG"), 3), image)


def test_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees
    assert decoding.decode(encode(smooth_image(20, 30), "JPEG", exif=exif), 3).shape == (20, 30, 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_truncated_file_is_refused(form):
    encoded = encode(smooth_image(40, 56), form)
    with pytest.raises(ValueError, match="cannot decode"):
        decoding.decode(encoded[: len(encoded) // 2], 3)


def test_a_jpeg_without_its_end_is_refused_and_one_with_more_is_not():
    """Pillow refuses the first two files; of the third, whose second half is zeros, it would invent the rest."""
    thumbnail = encode(smooth_image(8, 8), "JPEG")
    exif = Image.Exif()
    exif[0x9286] = thumbnail  # a user comment that contains an end marker
    encoded = encode(smooth_image(40, 56), "JPEG", exif=exif)
    assert encoded.count(b"\xff\xd9") == 2
    half = len(encoded) - 200
    for damaged in (encoded[:-2], encoded[:half], encoded[:half] + bytes(200)):
        with pytest.raises(ValueError, match="it is truncated"):
            decoding.decode(damaged, 3)
    np.testing.assert_array_equal(decoding.decode(encoded + b"more", 3), decoding.decode(encoded, 3))


JPEG_OPTIONS = {"4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "4:2:0": {"subsampling": 2}}
JPEG_OPTIONS |= {"progressive": {"progressive": True}, "restart markers": {"restart_marker_blocks": 3}}


@pytest.mark.parametrize("options", JPEG_OPTIONS.values(), ids=JPEG_OPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_is_that_of_the_whole_image_to_the_bit(options, channels, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    image = np.asarray(Image.fromarray(noise).resize((77, 61), Image.Resampling.BICUBIC))
    encoded = encode(image, "JPEG", quality=92, **options)
    heights, decode_jpeg = [], decoding.simplejpeg.decode_jpeg

    def watched(*arguments, **options):
        pixels = decode_jpeg(*arguments, **options)
        heights.append(len(pixels))
        return pixels

    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", watched)
    full = decoding.decode(encoded, channels)
    pillow = Image.open(io.BytesIO(encoded)).convert("L" if channels == 1 else "RGB")
    pillow = np.asarray(pillow).reshape(full.shape).astype(int)
    assert np.abs(full - pillow).max() <= 1  # Pillow's libjpeg-turbo may have another version
    for bottom in range(1, 62):
        top = bottom // 3
        box = decoding.decode_box(encoded, channels, lambda height, width, box=(top, 5, bottom - top, 40): box)
        np.testing.assert_array_equal(box, full[top:bottom, 5:45])
        assert heights[-1] == min(bottom + 1, 61)  # no more rows were decoded


def test_an_image_that_shrinks_much_is_decoded_smaller():
    """Compares with Pillow's average over blocks of the whole image."""
    image = np.asarray(Image.fromarray(smooth_image(60, 80)).resize((640, 480), Image.Resampling.BICUBIC))
    encoded = encode(image, "JPEG", quality=95)
    for size, scale in ((121, 1), (120, 2), (60, 4), (20, 8)):
        pixels = decoding.decode_box(encoded, 3, lambda height, width: (0, 0, height, width), size)
        assert pixels.shape == (480 // scale, 640 // scale, 3)
    left, top, side = 101, 33, 400
    pixels = decoding.decode_box(encoded, 3, lambda height, width: (top, left, side, side), 50)
    expected = Image.fromarray(image).crop((left, top, left + side, top + side)).resize((50, 50), Image.Resampling.BOX)
    assert np.abs(images.resize(pixels, 50, 50) - np.asarray(expected).astype(int)).mean() < 2


@pytest.mark.parametrize("height, width", [(70, 91), (64, 100), (150, 130), (300, 400)])
def test_shrinking_is_as_good_as_the_average_by_area(height, width):
    """An average by area is the integral over a pixel's square, computed here from 64 x 64 parts of every pixel."""
    image = np.random.default_rng(0).integers(0, 256, (height // 8 + 2, width // 8 + 2, 1), np.uint8)
    image = np.asarray(Image.fromarray(image[..., 0]).resize((width, height), Image.Resampling.BICUBIC))

    def averages(length):
        parts = np.repeat(np.eye(length), 64, axis=0).reshape(64, length, length)
        return parts.mean(axis=1)

    expected = averages(height) @ image @ averages(width).T
    difference = np.abs(images.resize(image[..., None], 64, 64)[..., 0] - expected)
    assert difference.mean() < 1.0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_padded_crop_and_its_mirror_image(installed, channels):
    config = base.get_config()
    config.update({"image_size": 20, "channels": channels, "train_crop": "pad", "crop_padding": 4, "random_flip": True})
    image = np.random.default_rng(0).integers(0, 256, (20, 20, channels), np.uint8)
    expected = np.pad(image, ((4, 4), (4, 4), (0, 0)))[6:26, 2:22]
    transform = images.training_transform(config)
    random = np.zeros(crops.UNIFORMS)
    random[2 * crops.TRIES : 2 * crops.TRIES + 2] = 6.5 / 9, 2.5 / 9  # of nine places in each direction
    np.testing.assert_array_equal(transform(image, random), expected[:, ::-1])
    random[2 * crops.TRIES + 2] = 0.9
    np.testing.assert_array_equal(transform(image, random), expected)


def test_shrinking_does_not_alias(installed):
    """Stripes of one pixel must become grey; bilinear resizing alone would leave a deviation of 70 grey levels."""
    stripes = np.tile(np.array([0, 255], np.uint8), 100)[None, :, None].repeat(200, 0)
    for size in (190, 150, 133, 101, 80, 67, 57, 31):
        assert images.resize(stripes, size, size)[:, 2:-2].std() < 52, size
        assert np.abs(images.resize(stripes, size, size).mean() - 127.5) < 3


def imagenet_kinds():
    """Returns the unusual kinds of files in ImageNet, each as a Pillow image and its file."""
    colour = Image.fromarray(smooth_image(60, 80))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    yield "grey", colour.convert("L"), {"format": "JPEG"}
    yield "CMYK", colour.convert("CMYK"), {"format": "JPEG"}
    yield "rotated", colour, {"format": "JPEG", "exif": rotated}
    yield "PNG", colour, {"format": "PNG"}
    yield "8 pixels high", colour.crop((0, 0, 80, 8)), {"format": "JPEG"}
    yield "5000 wide", colour.resize((5000, 30)), {"format": "JPEG"}
    yield "one pixel", colour.crop((0, 0, 1, 1)), {"format": "JPEG"}


@pytest.mark.parametrize("image, options", [pytest.param(*kind, id=name) for name, *kind in imagenet_kinds()])
def test_images_of_every_kind_in_imagenet(make_config, image, options):
    file = io.BytesIO()
    image.save(file, quality=95, **options)
    decoded, pillows = decoding.decode(file.getvalue(), 3), np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert np.abs(decoded - pillows).max() <= 1
    config = make_config(image_size=32, eval_resize=36, train_resize=(36, 60))
    # A box of the file and a box of Pillow's pixels are equal.
    transforms = [images.evaluation_transform(config)]
    for config.train_crop in crops.TRAIN_CROPS:
        transform = images.training_transform(config.copy_and_resolve_references())
        transforms += [lambda image, row=row, transform=transform: transform(image, row) for row in uniforms(4)]
    for transform in transforms:
        result = transform(file.getvalue())
        assert result.shape == (32, 32, 3)
        assert np.abs(result - transform(pillows.astype(np.uint8)).astype(int)).mean() < 1.5


@pytest.mark.parametrize("encoded", [b"", b"no image"])
def test_other_bytes_are_refused(encoded):
    with pytest.raises(ValueError, match=f"cannot decode its {len(encoded)} bytes"):
        decoding.decode(encoded, 3)


def test_random_resized_box_keeps_within_area_aspect_and_image():
    boxes = [crops.random_resized_box(300, 400, (0.08, 1.0), (3 / 4, 4 / 3), row) for row in uniforms(2000)]
    top, left, height, width = np.array(boxes).T
    share, aspect = height * width / (300 * 400), width / height
    assert top.min() >= 0 and left.min() >= 0
    assert (top + height).max() <= 300 and (left + width).max() <= 400
    # Sides are rounded to whole pixels.
    assert share.min() > 0.078 and share.max() <= 1
    assert aspect.min() > 0.74 and aspect.max() < 1.35
    # Area and logarithm of the aspect are uniform where both sides fit: sqrt(share * 300 * 400 * aspect) <= 400, ...
    shares, aspects = np.meshgrid(np.linspace(0.08, 1, 1001), np.geomspace(3 / 4, 4 / 3, 1001))
    fits = (shares * 300 * aspects <= 400) & (shares * 400 / aspects <= 300)
    assert share.mean() == pytest.approx(shares[fits].mean(), abs=0.02)
    assert np.log(aspect).mean() == pytest.approx(np.log(aspects[fits]).mean(), abs=0.02)
    assert share.min() < 0.1 and share.max() > 0.8


def test_random_resized_box_falls_back_to_the_centre():
    box = crops.random_resized_box(8, 5000, (0.9, 1.0), (3 / 4, 4 / 3), uniforms(1)[0])
    assert box == (0, (5000 - 11) // 2, 8, 11)  # round(8 * 4 / 3) = 11 pixels wide


def test_random_resized_places_are_uniform():
    boxes = [crops.random_resized_box(100, 100, (0.25, 0.25), (1, 1), row) for row in uniforms(2000)]
    top, left, height, width = np.array(boxes).T
    assert set(height) == set(width) == {50}
    assert set(top) == set(left) == set(range(51))


def test_scale_jitter_box_has_the_sides_of_the_drawn_scales():
    boxes = [crops.scale_jitter_box(300, 400, 224, (256, 480), row) for row in uniforms(2000)]
    top, left, height, width = np.array(boxes).T
    np.testing.assert_array_equal(height, width)
    assert height.min() == 140 and height.max() == 262  # 300 * 224 / 480 and 300 * 224 / 256
    assert len(set(height)) == 262 - 140 + 1
    assert top.min() == 0 and (top + height).max() <= 300
    assert left.min() == 0 and (left + width).max() <= 400


def test_scale_jitter_shows_as_much_at_every_size_of_train_sizes(make_config):
    """On a ramp from left to right the first and the last column tell the borders of the crop."""
    options = {"image_size": 64, "eval_resize": 0, "channels": 1, "random_flip": False}
    config = make_config(train_crop="scale_jitter", train_resize=(80, 80), **options)
    ramp = np.tile(np.arange(240, dtype=np.uint8), (240, 1))[..., None]
    small, large = (images.training_transform(config, size)(ramp, uniforms(1)[0])[0, :, 0] for size in (32, 64))
    assert int(large[-1]) - int(large[0]) == pytest.approx(240 * 64 / 80, abs=5)
    np.testing.assert_allclose(small[[0, -1]].astype(float), large[[0, -1]], atol=3)


def test_pad_and_crop_gives_every_shift_of_the_padded_image():
    image = np.random.default_rng(0).integers(1, 256, (6, 6, 1), np.uint8)
    padded = np.zeros((8, 8, 1), np.uint8)
    padded[1:7, 1:7] = image
    shifts = {padded[top : top + 6, left : left + 6].tobytes() for top in range(3) for left in range(3)}
    assert {images.pad_and_crop(image, 1, row).tobytes() for row in uniforms(200)} == shifts


@pytest.mark.parametrize("height, width", [(256, 300), (300, 256), (256, 256)])
def test_centre_crop_is_a_slice_where_nothing_is_resized(height, width):
    image = smooth_image(height, width)
    top, left = (height - 224) // 2, (width - 224) // 2
    expected = image[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(images.resize_and_centre_crop(image, 224, 256), expected)


def test_evaluation_agrees_with_pillow():
    """Pillow's box filter is an average by area too."""
    image = smooth_image(160, 240)
    expected = Image.fromarray(image).resize((120, 80), Image.Resampling.BOX).crop((28, 8, 92, 72))
    result = images.resize_and_centre_crop(image, 64, 80)
    assert np.abs(result - np.asarray(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("height, width", [(8, 5000), (5000, 8), (1, 1), (7, 9), (900, 600)])
def test_every_size_comes_out_right(make_config, height, width):
    image = smooth_image(height, width)
    config = make_config(image_size=32, eval_resize=36, train_resize=(36, 60))
    assert images.evaluation_transform(config)(image).shape == (32, 32, 3)
    for config.train_crop in crops.TRAIN_CROPS:
        assert images.training_transform(config)(image, uniforms(1)[0]).shape == (32, 32, 3)


def test_panorama_keeps_its_centre():
    image = np.zeros((8, 4000, 3), np.uint8)
    image[:, 1996:2004] = 255
    assert images.resize_and_centre_crop(image, 8, 8).min() == 255


def test_half_of_the_images_are_flipped(make_config):
    image = smooth_image(8, 8)
    transform = images.training_transform(make_config(train_crop="none", eval_resize=None))
    results = [transform(image, row) for row in uniforms(1000)]
    flipped = [np.array_equal(result, image[:, ::-1]) for result in results]
    assert all(flip or np.array_equal(result, image) for flip, result in zip(flipped, results, strict=True))
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.05)


def test_random_flip_off(make_config):
    image = smooth_image(8, 8)
    transform = images.training_transform(make_config(train_crop="none", eval_resize=None, random_flip=False))
    assert all(np.array_equal(transform(image, row), image) for row in uniforms(20))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train_crop": "center"}, "train_crop='center' is unknown: use random_resized"),
        ({"train_crop": "scale_jitter", "train_resize": (4, 12)}, "starts below image_size=8"),
        ({"train_crop": "none", "eval_resize": 4}, "eval_resize=4 is smaller than image_size=8"),
    ],
)
def test_wrong_options(make_config, options, message):
    with pytest.raises(ValueError, match=message):
        images.training_transform(make_config(**options))
