"""How a player shows a decoded frame: in BT.709 colours, upright, with square pixels.

A frame names its transfer function, primaries and matrix by numbers of ITU-T H.273. High dynamic
range, as phones record it, is tone-mapped to what a standard display shows:

1. Light of each channel, where 1 is the reference white of ITU-R BT.2408: 203 cd/m2 of PQ (SMPTE
   ST 2084), 75 % of the signal of HLG (ARIB STD-B67). HLG's is light of the scene; the display's
   is that times luminance ** (gamma - 1), gamma = 1.2 + 0.42 log10(peak / 1000) (ITU-R BT.2100,
   table 5). A standard display has 100 cd/m2 for the white, so 393 for the peak: gamma is 1.03.
2. Primaries of BT.2020 to those of BT.709 (ITU-R BT.2087).
3. Highlights: the brightest channel is rolled off above 0.8 by extended Reinhard (Reinhard 2002,
   equation 4) up to the peak; the others keep their ratio to it. White becomes 0.9.
4. light ** (1 / 2.4), the inverse of a standard display's function (ITU-R BT.1886).

Wide colours of standard range take 2 and 4 alone. Where no matrix is named, it is that of BT.601 up
to 1279 x 576 pixels and that of BT.709 above, as in players.
"""

from __future__ import annotations

import functools
import math
import pathlib
import struct
from dataclasses import dataclass

import av
import numpy as np

from data_pipelines.formats import image as image_lib
from defi_jax import errors

_UNNAMED = 2
_PQ, _HLG = 16, 18
_STANDARD_TRANSFERS = (1, 2, 4, 5, 6, 7, 11, 12, 13, 14, 15)
_MATRICES = (0, 1, 2, 4, 5, 6, 7, 9)  # those that swscale undoes
_BT2020, _DISPLAY_P3 = 9, 12
_TO_BT709 = {  # primaries -> matrix on linear light
    _BT2020: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    _DISPLAY_P3: ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),
}
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020
_DISPLAY_GAMMA = 2.4
_HLG_GAMMA = 1.03
_KNEE = 0.8
_PEAKS = {_PQ: 1000 / 203, _HLG: 3.92}  # of light; brighter PQ is clipped
_TONE_MAPPED = {_PQ: "tone-mapped from PQ", _HLG: "tone-mapped from HLG"}
_WIDE = {_BT2020: "colours of BT.2020 converted", _DISPLAY_P3: "colours of Display P3 converted"}
_SKEW = 0.01  # relative; a display matrix that turns by less is rounded


@dataclass(frozen=True)
class Display:
    """What is done to a frame.

    Attributes:
        transfer, primaries: codes of H.273, where they differ from BT.709's; else 0.
        matrix: code of H.273, where the frame names none; else None.
        aspect: width of a pixel by its height.
        transposed: whether rows become columns, before the flips.
        flips: axes that are reversed; 0 turns upside down.
    """

    transfer: int
    primaries: int
    matrix: int | None
    aspect: float
    transposed: bool
    flips: tuple[int, ...]

    @property
    def conversions(self) -> tuple[str, ...]:
        """What of it changes the picture, in words."""
        mirrored = self.transposed ^ (len(self.flips) == 1)
        found = (
            _TONE_MAPPED.get(self.transfer) or _WIDE.get(self.primaries),
            "aspect ratio corrected" if self.aspect != 1 else None,
            "mirrored" if mirrored else None,
            "turned upright" if (self.transposed or self.flips) and not mirrored else None,
        )
        return tuple(filter(None, found))

    def image(self, raw: av.VideoFrame, shorter_side: int | None) -> np.ndarray:
        """Returns uint8[H, W, 3], RGB; see `video.Frame.image`.

        One thread: PyAV keeps those of a conversion, 8 MB of a worker's limit each, with the frame.
        """
        if self.transfer or self.primaries:
            scale = min(1.0, (shorter_side or math.inf) / min(raw.height, raw.width))
            height, width = (max(1, round(side * scale)) for side in (raw.height, raw.width))
            signal = raw.to_ndarray(
                format="rgb48le",
                width=width,
                height=height,
                src_colorspace=self.matrix,
                interpolation="AREA",
                threads=1,
            )
            image = _to_bt709(signal, self.transfer, self.primaries)
        else:
            image = raw.to_ndarray(format="rgb24", src_colorspace=self.matrix, threads=1)
        if self.aspect != 1:  # the side that is too short grows
            height, width = image.shape[:2]
            size = round(height / min(self.aspect, 1)), round(width * max(self.aspect, 1))
            image_lib.check_image_size(*size, "display aspect ratio")
            image = image_lib.resize(image, size)
        return np.flip(image.swapaxes(0, 1) if self.transposed else image, self.flips)


def find(raw: av.VideoFrame, stream: av.VideoStream, path: pathlib.Path) -> Display:
    """Reads from a frame and its stream how it is shown.

    Raises:
        DataError: it is interlaced, or its colours or its orientation cannot be shown faithfully.
    """
    if raw.interlaced_frame:
        fix = "deinterlace it: ffmpeg -i IN -vf bwdif OUT.mp4"
        raise errors.DataError("interlaced video", path, fix)
    transfer, primaries = (
        getattr(raw if getattr(raw, name) != _UNNAMED else stream.codec_context, name)
        for name in ("color_trc", "color_primaries")
    )
    _check_colours(raw, transfer, primaries, path)
    matrix = None
    if raw.colorspace == _UNNAMED and not raw.format.is_rgb:
        matrix = 1 if raw.width >= 1280 or raw.height > 576 else 5
    transposed, flips = _orientation(raw, path)
    return Display(
        transfer=transfer if transfer in _TONE_MAPPED else 0,
        primaries=primaries if primaries in _TO_BT709 else 0,
        matrix=matrix,
        aspect=float(stream.sample_aspect_ratio or 1),
        transposed=transposed,
        flips=flips,
    )


def _check_colours(raw: av.VideoFrame, transfer: int, primaries: int, path: pathlib.Path) -> None:
    is_wide = _BT2020 in (raw.colorspace, primaries)
    if _side_data(raw, "DOVI_RPU_BUFFER", path) and transfer not in _TONE_MAPPED:
        what = "Dolby Vision video without a picture of HLG or PQ"
    elif is_wide and transfer == _UNNAMED:
        what = "BT.2020 video that does not say its transfer function (HLG, PQ or standard)"
    elif transfer not in (*_STANDARD_TRANSFERS, *_TONE_MAPPED):
        what = f"video of transfer function {transfer} (H.273), which is neither SDR, HLG nor PQ"
    elif not raw.format.is_rgb and raw.colorspace not in _MATRICES:
        what = f"video of colour matrix {raw.colorspace} (H.273), which is not known here"
    else:
        return
    fix = "convert it to BT.709, or name its colours (for H.265 'ffmpeg -i IN -c copy -bsf:v "
    fix += "hevc_metadata=colour_primaries=9:transfer_characteristics=18 OUT', 18 is HLG, 16 PQ)"
    raise errors.DataError(what, path, fix)


def _side_data(raw: av.VideoFrame, kind: str, path: pathlib.Path) -> bytes:
    what = "frames carry data that PyAV does not know"  # 3D video, for example
    with errors.DataError.instead_of(ValueError, what, path, "convert it to mp4"):
        return bytes(raw.side_data.get(kind) or b"")


def _orientation(raw: av.VideoFrame, path: pathlib.Path) -> tuple[bool, tuple[int, ...]]:
    """Returns whether to transpose, and which axes to flip then.

    A display matrix takes a pixel (x, y) to (a x + c y, b x + d y); it is stored as int32 a, b, u,
    c, d, v, x, y, w (ISO 14496-12, 8.3.2).
    """
    data = _side_data(raw, "DISPLAYMATRIX", path)
    if not data:
        return False, ()
    a, b, _, c, d = struct.unpack("5i", data[:20])
    transposed = abs(b) > abs(a)
    main, other = ((c, b), (a, d)) if transposed else ((a, d), (b, c))
    if max(map(abs, other)) > _SKEW * min(map(abs, main)):
        what = f"display matrix that is no right angle ({raw.rotation} degrees)"
        raise errors.DataError(what, path, "turn it by a multiple of 90 degrees in an editor")
    return transposed, tuple(axis for axis, sign in ((1, main[0]), (0, main[1])) if sign < 0)


@functools.cache
def _light(transfer: int) -> np.ndarray:
    """Returns the light of each 16-bit signal, float32[65536], 1 for the reference white."""
    signal = np.linspace(0, 1, 1 << 16)
    if transfer == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        light /= (math.exp((0.75 - c) / a) + b) / 12
    elif transfer == _PQ:
        root = signal ** (1 / 78.84375)
        fraction = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
        light = 10_000 / 203 * fraction ** (1 / 0.1593017578125)
    else:
        light = signal**_DISPLAY_GAMMA
    return light.astype(np.float32)


def _to_bt709(signal: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Maps uint16[H, W, 3] to uint8[H, W, 3], by the steps above."""
    light = _light(transfer)[signal]
    if transfer == _HLG:
        light *= (light @ _LUMINANCE)[..., None] ** np.float32(_HLG_GAMMA - 1)
    if primaries:
        light = np.maximum(light @ np.array(_TO_BT709[primaries], np.float32).T, 0)
    if transfer:
        brightest = np.maximum(light.max(-1, keepdims=True), _KNEE)
        above, peak = ((x - _KNEE) / (1 - _KNEE) for x in (brightest, _PEAKS[transfer]))
        rolled = _KNEE + (1 - _KNEE) * above * (1 + above / peak**2) / (1 + above)
        light *= rolled / brightest
    return np.rint(255 * np.minimum(light, 1) ** (1 / _DISPLAY_GAMMA)).astype(np.uint8)
