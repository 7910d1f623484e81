import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from data_pipelines.formats import contact_sheet
from data_pipelines.formats import image as image_lib
from defi_jax import errors

HEIGHT, WIDTH = 48, 64


def _picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth picture with a bright square, so that codecs keep it nearly unchanged."""
    ramp = np.linspace(0, 200, width, dtype=np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (height, width, 3)).copy()
    image[8:16, 4 + seed : 12 + seed] = (255, 40, 40)
    return image


def _png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


def test_png_round_trip_is_exact():
    image = _picture()
    np.testing.assert_array_equal(image_lib.decode_image(image_lib.encode_png(image)), image)


def test_jpeg_round_trip_is_close():
    image = _picture()
    decoded = image_lib.decode_image(image_lib.encode_jpeg(image))
    assert decoded.shape == image.shape and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - image).mean() < 2


def test_images_decoded_together_are_those_decoded_alone():
    encodings = (image_lib.encode_jpeg, image_lib.encode_png, image_lib.encode_jpeg)
    encoded = [encode(_picture(seed)) for seed, encode in enumerate(encodings)]
    for image, data in zip(image_lib.decode_images(encoded), encoded, strict=True):
        assert image.shape == (HEIGHT, WIDTH, 3)
        np.testing.assert_array_equal(image, image_lib.decode_image(data))


def test_images_of_two_sizes_are_refused():
    encoded = [image_lib.encode_jpeg(_picture()), image_lib.encode_jpeg(_picture(height=32))]
    with pytest.raises(errors.DataError, match=r"64 x 48, 64 x 32.*episode 7"):
        list(image_lib.decode_images(encoded, where="episode 7"))


def test_image_size_reads_the_header_of_both_kinds():
    image = _picture()
    assert image_lib.image_size(image_lib.encode_png(image)) == (HEIGHT, WIDTH)
    assert image_lib.image_size(image_lib.encode_jpeg(image)) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("encode", [image_lib.encode_jpeg, image_lib.encode_png])
def test_truncated_image_names_the_item(encode):
    data = encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    with pytest.raises(errors.DataError, match="episode 7"):
        image_lib.decode_image(data[: len(data) // 2], where="episode 7")


def test_jpeg_with_garbage_in_the_middle_is_refused():
    data = bytearray(
        image_lib.encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), "u1"))
    )
    middle = len(data) // 2
    data[middle : middle + 4] = b"\xff\xd9\xff\xd9"  # an end marker long before the end
    with pytest.raises(errors.DataError, match="damaged JPEG"):
        image_lib.decode_image(bytes(data))


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a" + bytes(20), b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]
)
def test_other_bytes_are_refused(data):
    with pytest.raises(errors.DataError):
        image_lib.decode_image(data)


def test_forged_png_size_is_refused_before_allocation():
    with pytest.raises(errors.DataError, match="20000 x 20000"):
        image_lib.decode_image(_png_header(20000, 20000))


@pytest.mark.parametrize("missing", [1, 12, 20, 100])
def test_png_that_is_cut_short_is_refused(missing):
    data = image_lib.encode_png(np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8))
    with pytest.raises(errors.DataError, match=r"damaged PNG .cut short.: frame 3"):
        image_lib.decode_image(data[:-missing], where="frame 3")


def test_png_with_a_flipped_bit_is_refused():
    data = bytearray(image_lib.encode_png(np.zeros((32, 48, 3), np.uint8)))
    data[-16] ^= 1  # checksum of the pixels
    with pytest.raises(errors.DataError, match=r"damaged PNG .checksum of chunk"):
        image_lib.decode_image(bytes(data))


def test_sixteen_bit_png_is_refused():
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.zeros((8, 8), np.uint16)).save(buffer, format="PNG")
    with pytest.raises(errors.DataError, match="8-bit"):
        image_lib.decode_image(buffer.getvalue())


def test_resize_averages_when_it_shrinks():
    checker = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    small = image_lib.resize(np.repeat(checker[..., None].astype(np.uint8), 3, -1), (8, 8))
    assert small.shape == (8, 8, 3)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 3  # aliasing would give 0 or 255


def test_resize_shorter_side_keeps_aspect_and_never_enlarges():
    assert image_lib.resize_shorter_side(_picture(height=48, width=96), 24).shape == (24, 48, 3)
    assert image_lib.resize_shorter_side(_picture(), 480).shape == (HEIGHT, WIDTH, 3)


def test_contact_sheet_places_images_and_labels():
    images = [_picture(0), _picture(10, 24, 32), _picture(20)]
    sheet = contact_sheet.contact_sheet(images, ["öffne die Schublade", "b", "c"], columns=2)
    np.testing.assert_array_equal(sheet[4 : 4 + HEIGHT, 4 : 4 + WIDTH], images[0])
    label = sheet[4 + HEIGHT : 4 + HEIGHT + 14, 4 : 4 + WIDTH]
    assert label.max() > 150  # some text was drawn
    with pytest.raises(ValueError, match="labels"):
        contact_sheet.contact_sheet(images, ["one"])
