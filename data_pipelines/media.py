"""Pixels in and out of files: JPEG and PNG bytes, video files, resizing, contact sheets.

The whole repository decodes pixels here and nowhere else, so that every road (training, streaming,
previews) sees the same values. Three rules hold throughout:

* The kind of a file is read from its first bytes, never from its name; a video's container is then
  forced, because FFmpeg otherwise opens playlists that point at other local files.
* Sizes are checked in the header, before any pixel is allocated.
* Damage is a `DataError` that names the item. JPEG is decoded strictly: lenient decoders return a
  wrong image for bytes that are damaged in the middle.

EXIF orientation of still images is ignored: robot data sets store frames as they are.
"""

from __future__ import annotations

import fractions
import io
import itertools
import math
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import av
import av.container
import av.error
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import simplejpeg

from defi_jax import errors

MAX_IMAGE_PIXELS = 8192 * 8192  # larger than any robot camera; stops a forged header early
MAX_CLIP_BYTES = 2 * 1024**3  # decoded frames that one `read_video` call may return

_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_MATROSKA_SEGMENT = b"\x18\x53\x80\x67"
# First box of an ISO media or QuickTime file.
_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


# ---- images ----


def decode_image(data: bytes, *, where: str = "image") -> np.ndarray:
    """Decodes JPEG or PNG bytes, told apart by their magic bytes.

    Args:
        data: the encoded bytes.
        where: what an error names, for example "episode 12, camera static, frame 3".

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
    raise errors.DataError(
        f"not a JPEG or PNG image ({kind})", where, "remove or re-export this frame"
    )


def image_size(data: bytes, *, where: str = "image") -> tuple[int, int]:
    """Reads (height, width) from the header of JPEG or PNG bytes, without decoding pixels.

    Raises:
        DataError: the header is damaged, names no pixels, or too many.
    """
    if data[:8] == _PNG_MAGIC and len(data) >= 24:
        width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    else:
        try:
            header = simplejpeg.decode_jpeg_header(data)
            height, width = int(header[0]), int(header[1])
        except ValueError as error:
            raise errors.DataError(
                f"damaged image header ({error})", where, "remove or re-export this frame"
            ) from error
    _check_image_size(height, width, where)
    return height, width


def _decode_jpeg(data: bytes, where: str) -> np.ndarray:
    image_size(data, where=where)
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError as error:
        raise errors.DataError(
            f"damaged JPEG ({error})", where, "remove or re-export this frame"
        ) from error


def _decode_png(data: bytes, where: str) -> np.ndarray:
    image_size(data, where=where)
    try:
        _check_png_chunks(data)
        with PIL.Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            mode = image.mode
            if mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
                return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise errors.DataError(
            f"damaged PNG ({error})", where, "remove or re-export this frame"
        ) from error
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


def _check_image_size(height: int, width: int, where: str) -> None:
    if height < 1 or width < 1 or height * width > MAX_IMAGE_PIXELS:
        raise errors.DataError(
            f"image of {width} x {height} pixels (at most {MAX_IMAGE_PIXELS} are read)",
            where,
            "remove this frame or store it smaller",
        )


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """Encodes uint8[H, W, 3] as JPEG with full-resolution chroma (small images show 4:2:0)."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "444")


def encode_png(image: np.ndarray) -> bytes:
    """Encodes uint8[H, W, 3] as PNG, lossless."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes by Pillow's bilinear filter, whose support grows with the factor (antialiased).

    The one resizing rule of training and serving. The aspect ratio is not kept.

    Args:
        image: uint8[H, W, 3].
        size: (height, width) wanted.

    Returns:
        uint8[height, width, 3]; the same array when it already has that size.
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    resized = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BILINEAR)
    return np.asarray(resized)


def resize_shorter_side(image: np.ndarray, side: int) -> np.ndarray:
    """Shrinks uint8[H, W, 3] so that its shorter side is at most `side` pixels; never enlarges."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter <= side:
        return image
    return resize(image, (round(height * side / shorter), round(width * side / shorter)))


# ---- video ----


@dataclass(frozen=True, kw_only=True)
class VideoClip:
    """Decoded frames of one video.

    Attributes:
        frames: uint8[H, W, 3] each, upright, all of one size.
        fps: frames per second of `frames`, so already divided by `every`; the mean rate of the
            stream when its frames are not evenly spaced.
    """

    frames: list[np.ndarray]
    fps: float


def video_format(path: str | os.PathLike) -> str:
    """Tells the container of a video from its first bytes.

    Returns:
        "mp4" (also QuickTime), "matroska" (also webm) or "avi".

    Raises:
        DataError: the file is empty, truncated or none of these; playlists are none of these.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            head, size = file.read(64), path.stat().st_size
            if head[4:8] in _ISO_BOXES:
                _check_iso_boxes(file, size, path)
                return "mp4"
    except OSError as error:
        raise errors.DataError(
            f"video cannot be read ({error.strerror})", str(path), "check the path"
        ) from error
    if head[:4] == _EBML_MAGIC:
        _check_matroska_size(head, size, path)
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        _check_length(8 + int.from_bytes(head[4:8], "little"), size, path)
        return "avi"
    kind = "an empty file" if not head else f"a file that starts with {head[:12]!r}"
    raise errors.DataError(
        f"not an mp4, mov, webm, mkv or avi video but {kind}", str(path), "remove or replace it"
    )


def read_video(
    path: str | os.PathLike,
    *,
    max_frames: int | None = None,
    every: int = 1,
    shorter_side: int | None = None,
) -> VideoClip:
    """Decodes a video, or its beginning.

    Args:
        path: an mp4, mov, webm, mkv or avi file.
        max_frames: stop after this many returned frames; None reads to the end.
        every: return every n-th frame, the first one included.
        shorter_side: shrink each frame as `resize_shorter_side` does, while decoding.

    Raises:
        DataError: unreadable, truncated, without frames, of changing frame size, or larger than
            MAX_CLIP_BYTES once decoded.
    """
    path = pathlib.Path(path)
    container_format = video_format(path)
    frames: list[np.ndarray] = []
    total_bytes = 0
    try:
        # An open file, not a path: FFmpeg then cannot follow protocols or references.
        with path.open("rb") as file, av.open(file, mode="r", format=container_format) as container:
            stream = _video_stream(container, path)
            rate = stream.average_rate or stream.guessed_rate
            for image in _decoded_frames(container, stream, every, path):
                if shorter_side is not None:
                    image = resize_shorter_side(image, shorter_side)
                if frames and image.shape != frames[0].shape:
                    raise _video_error("frame size changes within the video", path)
                frames.append(image)
                total_bytes += image.nbytes
                if total_bytes > MAX_CLIP_BYTES:
                    raise errors.DataError(
                        f"decodes to more than {MAX_CLIP_BYTES >> 20} MiB",
                        str(path),
                        "limit the frames or the side length, or cut the video into clips",
                    )
                if len(frames) == max_frames:
                    break
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _video_error(f"damaged video ({error})", path) from error
    if not frames:
        raise _video_error("video without a single frame", path)
    if not rate:
        raise _video_error("video without a frame rate", path)
    return VideoClip(frames=frames, fps=float(rate) / every)


def _decoded_frames(
    container: av.container.InputContainer, stream: av.VideoStream, every: int, path: pathlib.Path
) -> Iterator[np.ndarray]:
    for index, frame in enumerate(container.decode(stream)):
        if index % every:
            continue
        _check_image_size(frame.height, frame.width, str(path))
        image = frame.to_ndarray(format="rgb24")
        # `rotation` is the counter-clockwise turn, in degrees, that shows the frame upright.
        yield np.rot90(image, frame.rotation // 90) if frame.rotation % 90 == 0 else image


def _video_stream(container: av.container.InputContainer, path: pathlib.Path) -> av.VideoStream:
    if not container.streams.video:
        raise _video_error("file holds no video stream", path)
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise _video_error("video codec is not supported", path)
    _check_image_size(stream.codec_context.height, stream.codec_context.width, str(path))
    stream.thread_type = "AUTO"
    return stream


def _video_error(what: str, path: pathlib.Path) -> errors.DataError:
    return errors.DataError(what, str(path), "remove or replace this file")


# FFmpeg plays a cut file up to the cut without complaint, so declared lengths are checked first.


def _check_length(declared: int, size: int, path: pathlib.Path) -> None:
    if declared > size:
        raise _video_error(f"video is cut short ({size} of {declared} bytes)", path)


def _check_iso_boxes(file: io.BufferedReader, size: int, path: pathlib.Path) -> None:
    """Walks the top-level boxes (ISO 14496-12, 4.2) and checks that they end inside the file."""
    offset, kinds = 0, set()
    while offset + 8 <= size:
        file.seek(offset)
        header = file.read(16)
        length = int.from_bytes(header[:4])
        if length == 1:
            length = int.from_bytes(header[8:16])
        elif length == 0:  # to the end of the file
            length = size - offset
        if length < 8:
            break  # trailing bytes that are no box: players ignore them
        kinds.add(header[4:8])
        offset += length
        _check_length(offset, size, path)
    if b"moov" not in kinds:
        raise _video_error("video is cut short (its index box 'moov' is missing)", path)


def _check_matroska_size(head: bytes, size: int, path: pathlib.Path) -> None:
    """Checks the declared size of the segment; live recordings declare none (RFC 8794, 6.2)."""
    start = head.find(_MATROSKA_SEGMENT)
    if start < 0 or start + 5 > len(head):
        return  # FFmpeg reports what is wrong with so odd a header
    first = head[start + 4]
    length = 9 - first.bit_length()
    field = head[start + 4 : start + 4 + length]
    mask = (1 << (7 * length)) - 1
    declared = int.from_bytes(field) & mask
    if len(field) == length and declared != mask:
        _check_length(start + 4 + length + declared, size, path)


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes H.264 in mp4, the combination that every browser plays; replaces `path` at once.

    Args:
        path: file to write; its directory exists.
        frames: uint8[H, W, 3] each, of one size. Odd sizes gain one repeated row or column, because
            the codec halves the chroma.
        fps: frames per second.

    Raises:
        ValueError: there are no frames.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("write_video needs at least one frame")
    height, width = (side + side % 2 for side in first.shape[:2])

    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _encode_h264(partial, itertools.chain([first], frames), (height, width), fps)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _encode_h264(
    path: pathlib.Path, frames: Iterable[np.ndarray], size: tuple[int, int], fps: float
) -> None:
    height, width = size
    rate = fractions.Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in frames:
            pad = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
            frame = av.VideoFrame.from_ndarray(np.pad(image, pad, mode="edge"), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


# ---- contact sheets ----

_SHEET_BACKGROUND = 24
_SHEET_MARGIN = 4
_LABEL_HEIGHT = 14


def contact_sheet(
    images: Sequence[np.ndarray], labels: Sequence[str], *, columns: int | None = None
) -> np.ndarray:
    """Lays images out on one picture, row by row, each above its label.

    Args:
        images: uint8[H, W, 3] each; sizes may differ, every cell has the largest.
        labels: one text per image; cut where the cell ends.
        columns: images per row; None makes the sheet roughly square.

    Returns:
        uint8[H', W', 3].

    Raises:
        ValueError: no images, or not one label per image.
    """
    if not images or len(images) != len(labels):
        raise ValueError(f"{len(images)} images with {len(labels)} labels")
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    cell_height = max(image.shape[0] for image in images) + _LABEL_HEIGHT + _SHEET_MARGIN
    cell_width = max(image.shape[1] for image in images) + _SHEET_MARGIN
    rows = math.ceil(len(images) / columns)
    sheet = np.full(
        (rows * cell_height + _SHEET_MARGIN, columns * cell_width + _SHEET_MARGIN, 3),
        _SHEET_BACKGROUND,
        np.uint8,
    )
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        top = _SHEET_MARGIN + index // columns * cell_height
        left = _SHEET_MARGIN + index % columns * cell_width
        height, width = image.shape[:2]
        sheet[top : top + height, left : left + width] = image
        top += cell_height - _LABEL_HEIGHT - _SHEET_MARGIN
        strip = text_strip(label, cell_width - _SHEET_MARGIN)
        sheet[top : top + _LABEL_HEIGHT, left : left + strip.shape[1]] = strip
    return sheet


def text_width(text: str) -> int:
    """Returns how wide `text_strip` must be to show the whole text, pixels."""
    return math.ceil(PIL.ImageFont.load_default(size=10).getlength(text)) + 4


def text_strip(text: str, width: int) -> np.ndarray:
    """Draws one line of text, cut at the right edge, in the colours of a contact sheet.

    Returns:
        uint8[_LABEL_HEIGHT, width, 3].
    """
    strip = PIL.Image.new("RGB", (width, _LABEL_HEIGHT), (_SHEET_BACKGROUND,) * 3)
    font = PIL.ImageFont.load_default(size=10)
    PIL.ImageDraw.Draw(strip).text((2, 1), text, fill=(230, 230, 230), font=font)
    return np.asarray(strip)
