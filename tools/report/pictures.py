"""Pictures and films of a run as data URIs, so that one page carries them all.

Legend: T frames, H W image size, C colour channels.
"""

import base64
import contextlib
import dataclasses
import pathlib
from typing import Any

import numpy as np
import PIL.Image
from defi_rollout.benchmarks import pictures

from defi_jax import errors
from tools.report import files as files_lib

MAX_BYTES = 14_000_000  # of all pictures and films; the page stays below 15 MB

_MILLISECONDS = 350  # per frame of a predicted future
_SHEET_WIDTH = 1600
_QUALITY = 82
_GAP = 4  # pixels between the pairs of the GIDM's picture
_WHITE = 255
_MIME = {".mp4": "video/mp4", ".gif": "image/gif"}


@dataclasses.dataclass(frozen=True)
class Pictures:
    """All data URIs of a page.

    Attributes:
        sheets: contact sheet by source.
        futures: held-out clips, each {"true_strip", "predicted_strip", "true_film",
            "predicted_film"}.
        codes: by code, frame pairs to which the GIDM gives it; empty without a codebook.
        films: video by episode id; episodes whose film would make the page too large are absent.
    """

    sheets: dict[str, str]
    futures: list[dict[str, str]]
    codes: list[list[str]]
    films: dict[str, str]


def collect(files: files_lib.RunFiles, report: dict[str, Any]) -> Pictures:
    """Reads what `report` speaks of.

    Raises:
        UserError: a picture or film is missing; the text says what makes it.
        DataError: a picture is not readable or not of the size that the config says.
    """
    sheets = {name: _sheet(files.contact_sheet(name)) for name in report["trained_on"]}
    futures = [_future(*clip) for clip in _clips(files)]
    has_codes = report["gidm_code_usage"] is not None
    pairs = _pairs(files) if has_codes else []
    codes = [[_webp(_beside(pair)) for pair in row] for row in pairs]
    used = sum(map(len, sheets.values())) + sum(len(uri) for row in codes for uri in row)
    used += sum(len(uri) for future in futures for uri in future.values())
    rows = {row["id"]: row for row in report["shown"]["rollouts"] + report["shown"]["language"]}
    films = {}
    for name, row in rows.items():
        film = _film(files.film(row["video"]))
        if used + len(film) <= MAX_BYTES:
            films[name] = film
            used += len(film)
    return Pictures(sheets, futures, codes, films)


def split_clips(picture: np.ndarray, num_frames: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cuts the GFDM's picture, a row of true frames above a row of predicted ones for each clip.

    Args:
        picture: uint8[clips * 2 * H, T * W, C], square frames.
        num_frames: T.

    Returns:
        (true, predicted) of each clip, uint8[T, H, W, C].
    """
    side = picture.shape[1] // num_frames
    if picture.shape[1] % num_frames or picture.shape[0] % (2 * side):
        raise ValueError(f"no clips of {num_frames} square frames in {picture.shape}")
    rows = picture.reshape(-1, 2, side, num_frames, side, picture.shape[2])
    clips = rows.transpose(0, 1, 3, 2, 4, 5)
    return [(true, predicted) for true, predicted in clips]


def split_pairs(picture: np.ndarray, side: int) -> list[list[np.ndarray]]:
    """Cuts the GIDM's picture, a row of frame pairs for each code, white where pairs run out.

    Args:
        picture: uint8[codes * (H + gap), pairs * (2 * W + gap), C].
        side: H and W.

    Returns:
        The pairs of each code, uint8[2, H, W, C].
    """
    width = 2 * side + _GAP
    if picture.shape[0] % (side + _GAP) or picture.shape[1] % width:
        raise ValueError(f"no pairs of {side} x {side} frames in {picture.shape}")
    rows = []
    for row in picture.reshape(-1, side + _GAP, *picture.shape[1:]):
        cells = [row[:side, x : x + 2 * side] for x in range(0, row.shape[1], width)]
        shown = [cell for cell in cells if (cell != _WHITE).any()]
        rows.append([np.stack([cell[:, :side], cell[:, side:]]) for cell in shown])
    return rows


def _clips(files: files_lib.RunFiles) -> list[tuple[np.ndarray, np.ndarray]]:
    path = files.picture("gfdm", "true_above_predicted")
    with _expected(path):
        return split_clips(_read(path), files.config("gfdm")["data"]["num_frames"])


def _pairs(files: files_lib.RunFiles) -> list[list[np.ndarray]]:
    path = files.picture("gidm", "pairs_by_code")
    with _expected(path):
        return split_pairs(_read(path), files.config("gidm")["data"]["image_size"])


def _read(path: pathlib.Path) -> np.ndarray:
    with _expected(path), PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _expected(path: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    fix = "evaluate that stage again with this code"
    return errors.DataError.instead_of((OSError, ValueError), "unexpected picture", path, fix)


def _future(true: np.ndarray, predicted: np.ndarray) -> dict[str, str]:
    return {
        "true_strip": _webp(_beside(true)),
        "predicted_strip": _webp(_beside(predicted)),
        "true_film": _animation(true),
        "predicted_film": _animation(predicted),
    }


def _beside(frames: np.ndarray) -> np.ndarray:
    return np.concatenate(list(frames), axis=1)


def _sheet(path: pathlib.Path) -> str:
    image = PIL.Image.fromarray(_read(path))
    image.thumbnail((_SHEET_WIDTH, 4 * _SHEET_WIDTH))
    return _webp(np.asarray(image))


def _webp(image: np.ndarray) -> str:
    return _animation(image[None])


def _animation(frames: np.ndarray) -> str:
    fps = 1000 / _MILLISECONDS
    data = pictures.encode_animation(frames, fps, "WEBP", quality=_QUALITY)
    return _data_uri("image/webp", data)


def _film(path: pathlib.Path) -> str:
    return _data_uri(_MIME[path.suffix], path.read_bytes())


def _data_uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
