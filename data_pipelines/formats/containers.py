"""Which container a video file is, and whether it is whole: told by its bytes, never by its name.

Read: mp4 and its relatives (mov, m4v, 3gp, 3g2), matroska and webm, avi, flv, MPEG transport
streams (ts, mts, m2ts) and animated GIF. Whatever else is recognised is refused as the kind that
it is. Where a container declares its length, a file that was cut short is refused as well.
"""

from __future__ import annotations

import io
import os
import pathlib

from defi_jax import errors

_HEAD_BYTES = 1024
_EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_MATROSKA_SEGMENT = b"\x18\x53\x80\x67"
# First box of an ISO media or QuickTime file.
_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp")
_PICTURE_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
# Bytes from one packet of a transport stream to the next: plain, with time code (Blu-ray and
# camcorders), with error correction.
_TRANSPORT_PACKETS = ((188, 0), (192, 4), (204, 0))
_TRANSPORT_SYNC = 0x47
_GIF_TRAILER = b";"
_FLV_TAG_HEADER = 11  # bytes, besides the length that follows each tag

# What starts so is refused by this name.
_REFUSED = (
    (b"OggS", "an Ogg file (ogv)"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "an ASF file (wmv)"),
    (b"\x00\x00\x01\xba", "an MPEG program stream (mpg, vob)"),
    (b"\x00\x00\x01\xb3", "a bare MPEG video stream without times"),
    (b"\x00\x00\x00\x01", "a bare H.264 or H.265 stream without times"),
    (b"\x06\x0e\x2b\x34", "an MXF file"),
    (b".RMF", "a RealMedia file"),
    (b"DKIF", "an IVF file"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture or animation"),
    (b"#EXTM3U", "an HLS playlist, not the video itself"),
    (b"ffconcat", "an FFmpeg playlist, not the video itself"),
    (b"version https://git-lfs", "a Git LFS pointer, not the video itself ('git lfs pull')"),
    (b"\x00\x05\x16\x07", "what macOS keeps beside a file, not the video itself"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"ID3", "a sound file"),
    (b"fLaC", "a sound file"),
)


def find_format(path: str | os.PathLike) -> str:
    """Tells the container of a video from its first bytes.

    Returns:
        FFmpeg's name: "mp4" (also QuickTime), "matroska" (also webm), "avi", "flv", "mpegts" or
        "gif".

    Raises:
        DataError: the file is empty, truncated or none of these; playlists are none of these.
    """
    path = pathlib.Path(path)
    with errors.DataError.instead_of(OSError, "video cannot be read", path, "check the path"):
        if path.exists() and not path.is_file():  # a pipe would never end
            raise damaged("a folder or a device in place of a video", path)
        with path.open("rb") as file:
            head, size = file.read(_HEAD_BYTES), path.stat().st_size
            if head[4:8] in _ISO_BOXES and not _refused_name(head):
                _check_iso_boxes(file, size, path)
                return "mp4"
            if head[:4] == _EBML_MAGIC:
                _check_matroska_size(head[:64], size, path)
                return "matroska"
            if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
                _check_length(8 + int.from_bytes(head[4:8], "little"), size, path)
                return "avi"
            if head[:4] == b"FLV\x01":
                _check_flv_end(file, size, path)
                return "flv"
            if head[:6] in (b"GIF87a", b"GIF89a"):
                _check_gif_end(file, size, path)
                return "gif"
            if packet := _transport_packet(head):
                _check_length(-(-size // packet) * packet, size, path)
                return "mpegts"
    kind = _refused_name(head) or f"a file that starts with {head[:12]!r}"
    raise errors.DataError(
        f"not an mp4, mov, webm, mkv, avi, flv, ts or gif video but {kind}",
        path,
        "convert it ('ffmpeg -i IN OUT.mp4') or remove it",
    )


def damaged(what: str, path: pathlib.Path) -> errors.DataError:
    """Returns the error of a file that has no use."""
    return errors.DataError(what, path, "remove or replace this file")


def _refused_name(head: bytes) -> str:
    """Returns what a file is that is not read, "" where its kind is read or unknown."""
    if not head.strip(b"\0"):
        return "a file of zeros" if head else "an empty file"
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        return "a HEIF picture or animation (heic)"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "an AVIF picture or animation"
    if head[:4] == b"RIFF" and head[8:12] in (b"WEBP", b"WAVE"):
        return "a WebP picture or animation" if head[8:12] == b"WEBP" else "a sound file"
    return next((name for magic, name in _REFUSED if head.startswith(magic)), "")


def _check_length(declared: int, size: int, path: pathlib.Path) -> None:
    if declared > size:
        raise damaged(f"video is cut short ({size} of {declared} bytes)", path)


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
        raise damaged("video is cut short (its index box 'moov' is missing)", path)


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


def _transport_packet(head: bytes) -> int:
    """Returns the bytes of a packet of a transport stream (ISO 13818-1, 2.4.3.2); 0: it is none."""
    for length, start in _TRANSPORT_PACKETS:
        marks = head[start::length]
        if len(head) >= length and all(mark == _TRANSPORT_SYNC for mark in marks):
            return length
    return 0


def _check_gif_end(file: io.BufferedReader, size: int, path: pathlib.Path) -> None:
    file.seek(max(size - _HEAD_BYTES, 0))
    if not file.read().rstrip(b"\0").endswith(_GIF_TRAILER):
        raise damaged("video is cut short (the end mark of a GIF is missing)", path)


def _check_flv_end(file: io.BufferedReader, size: int, path: pathlib.Path) -> None:
    """Checks that the file ends with a whole tag and its length (FLV 10.1, annex E.3)."""
    file.seek(max(size - 4, 0))
    length = int.from_bytes(file.read(4))
    file.seek(max(size - 4 - length, 0))
    if int.from_bytes(file.read(4)[1:]) + _FLV_TAG_HEADER != length:
        raise damaged("video is cut short (its last tag is not whole)", path)
