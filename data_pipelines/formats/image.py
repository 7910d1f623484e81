"""Pixels in and out of bytes: JPEG and PNG, resizing, contact sheets. Videos are in `video`.

The whole repository decodes images here and nowhere else, so that every road (training, streaming,
previews) sees the same values. Three rules hold throughout:

* The kind of an image is read from its first bytes, never from its name.
* Sizes are checked in the header, before any pixel is allocated.
* Damage is a `DataError` that names the item. JPEG is decoded strictly: lenient decoders return a
  wrong image for bytes that are damaged in the middle.

EXIF orientation of still images is ignored: robot data sets store frames as they are.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
import simplejpeg
from defi_rollout import preprocess
from defi_rollout.benchmarks import pictures

from defi_jax import errors

MAX_IMAGE_PIXELS = 8192 * 8192  # larger than any robot camera; stops a forged header early

_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_ERRORS = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)
_FIX = "remove or re-export this frame"


# ---- images ----


def decode_image(data: bytes, *, where: str = "image") -> np.ndarray:
    """Decodes JPEG or PNG bytes, told apart by their magic bytes.

    An error names `where`, for example "episode 12, camera static, frame 3".

    Returns:
        uint8[H, W, 3], RGB.

    Raises:
        DataError: the bytes are damaged, too large, or of another kind.
    """
    if data[:3] == _JPEG_MAGIC:
        return _decode_jpeg(data, where)
    if data[:8] == _PNG_MAGIC:
        return _decode_png(data, where)
    kind = "no bytes" if not data else f"bytes that start with {data[:8].hex(' ')}"
    raise errors.DataError(f"not a JPEG or PNG image ({kind})", where, _FIX)


def decode_images(encoded: Sequence[bytes], *, where: str = "images") -> Iterator[np.ndarray]:
    """Decodes images of one size, each when it is taken; see `decode_image`.

    Yields:
        uint8[H, W, 3], RGB.

    Raises:
        DataError: also where sizes differ.
    """
    size = None
    for data in encoded:
        image = decode_image(data, where=where)
        if size not in (None, image.shape):
            raise errors.DataError(
                f"frames of one camera differ in size ({_pixels(size)}, {_pixels(image.shape)})",
                where,
                "store frames of one size, or each camera under a name of its own",
            )
        size = image.shape
        yield image


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def image_size(data: bytes, *, where: str = "image") -> tuple[int, int]:
    """Reads (height, width) from the header of JPEG or PNG bytes, without decoding pixels.

    Raises:
        DataError: the header is damaged, names no pixels, or too many.
    """
    if data[:8] == _PNG_MAGIC and len(data) >= 24:
        width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    else:
        with errors.DataError.instead_of(ValueError, "damaged image header", where, _FIX):
            height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
    check_image_size(height, width, where)
    return height, width


def _decode_jpeg(data: bytes, where: str) -> np.ndarray:
    image = np.empty((*image_size(data, where=where), 3), np.uint8)
    with errors.DataError.instead_of(ValueError, "damaged JPEG", where, _FIX):
        return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=image, strict=True)


def _decode_png(data: bytes, where: str) -> np.ndarray:
    image_size(data, where=where)
    with errors.DataError.instead_of(_PNG_ERRORS, "damaged PNG", where, _FIX):
        _check_png_chunks(data)
        with PIL.Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            mode = image.mode
            if mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
                return np.array(image.convert("RGB"))
    raise errors.DataError(
        f"PNG of mode {mode} is not an 8-bit colour image", where, "export 8-bit RGB frames"
    )


def _check_png_chunks(data: bytes) -> None:
    """Raises ValueError unless every chunk is whole, up to the last.

    Pillow shows an image whose last rows are missing as if they were black. A chunk is: uint32
    length | byte[4] kind | byte[length] | uint32 crc32(kind and bytes), big-endian.
    """
    position, kind = len(_PNG_MAGIC), b""
    while kind != b"IEND":
        length = int.from_bytes(data[position : position + 4])
        end = position + 8 + length
        if end + 4 > len(data):
            raise ValueError("cut short")
        kind = data[position + 4 : position + 8]
        if zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ValueError(f"checksum of chunk {kind!r} differs")
        position = end + 4


def check_image_size(height: int, width: int, where: str) -> None:
    """Raises DataError unless the image has pixels, and no more than `MAX_IMAGE_PIXELS`."""
    if height < 1 or width < 1 or height * width > MAX_IMAGE_PIXELS:
        raise errors.DataError(
            f"image of {width} x {height} pixels (at most {MAX_IMAGE_PIXELS} are read)",
            where,
            "remove this frame or store it smaller",
        )


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """Encodes uint8[H, W, 3] as JPEG with full-resolution chroma (small images show 4:2:0)."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "444")


encode_png = pictures.encode_png
resize = preprocess.resize  # the one rule of training and serving


def resize_shorter_side(image: np.ndarray, side: int) -> np.ndarray:
    """Shrinks uint8[H, W, 3] so that its shorter side is at most `side` pixels; never enlarges."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter <= side:
        return image
    return resize(image, (round(height * side / shorter), round(width * side / shorter)))
