"""Pictures in, predicted futures out: what `launch/imagine.py` reads and draws.

future.mp4, future.gif   one cell a seed beside the given picture, over time
future.png               one row a seed: the given picture, then the frames
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from defi_rollout import files
from defi_rollout.benchmarks import pictures

from data_pipelines import pixels
from data_pipelines.formats import contact_sheet
from data_pipelines.formats import image as image_lib
from defi_jax import errors

FILES = {"video": "future.mp4", "animation": "future.gif", "sheet": "future.png"}

_FILM_SIDE = 192  # pixels; smaller frames are enlarged by a whole factor, for human eyes
_SHEET_SIDE = 128  # pixels; larger frames are shrunk


def read_image(path: str) -> np.ndarray:
    """Reads a JPEG or PNG, uint8[H, W, 3].

    Raises:
        UserError: there is no such file.
        DataError: it is damaged or of another kind.
    """
    what, fix = "picture cannot be read", "give --image=FILE, JPEG or PNG"
    with errors.UserError.instead_of(OSError, what, path or "--image", fix):
        data = pathlib.Path(path).read_bytes()
    return image_lib.decode_image(data, where=path)


def prepare_image(image: np.ndarray, size: int) -> tuple[np.ndarray, str]:
    """Prepares a picture as training prepares frames.

    Args:
        image: uint8[H, W, 3].
        size: pixels of a side that the model takes.

    Returns:
        uint8[size, size, 3], and what was done to it, "" for nothing.
    """
    height, width = image.shape[:2]
    prepared = pixels.resize([image], size)[0]
    if (height, width) == (size, size):
        return prepared, ""
    squeezed = "" if height == width else "; its aspect ratio is not kept"
    return prepared, f"{width} x {height} pixels resized to {size} x {size}, as training{squeezed}"


def check_output(output: str, *, overwrite: bool) -> None:
    """Raises UserError where `write` would not write; `overwrite` allows for a prediction there."""
    if not output:
        raise errors.UserError("no path given", "--output", "give --output=DIRECTORY")
    path = pathlib.Path(output)
    if not path.exists():
        return
    names = {child.name for child in path.iterdir()} if path.is_dir() else {path.name}
    if names - set(FILES.values()):
        raise errors.UserError(
            "output holds other files", output, "choose another --output, a directory of its own"
        )
    if names and not overwrite:
        raise errors.UserError("output exists", output, "choose another, or add --overwrite")


def write(
    output: str,
    given: np.ndarray,
    futures: np.ndarray,
    seeds: Sequence[int],
    caption: str,
    *,
    fps: float,
) -> dict[str, str]:
    """Writes film, animation and sheet; all of them or none.

    Args:
        output: directory; an earlier prediction there is replaced.
        given: uint8[S, S, 3], the first frame.
        futures: uint8[seeds, T, S, S, 3].
        seeds: one a future.
        caption: one line above everything.

    Returns:
        Path by kind of file.
    """
    target = pathlib.Path(output)
    labels = ["given", *(f"seed {seed}" for seed in seeds)]
    factor = -(-_FILM_SIDE // given.shape[0])
    film = [
        _captioned(_grid([given, *futures[:, t]], labels, factor, len(labels)), caption)
        for t in range(futures.shape[1])
    ]
    with files.new_directory(target, replace=True) as building:
        (building / FILES["video"]).write_bytes(pictures.encode_mp4(film, fps))
        (building / FILES["animation"]).write_bytes(pictures.encode_animation(film, fps))
        sheet = _captioned(_sheet(given, futures, seeds), caption)
        (building / FILES["sheet"]).write_bytes(image_lib.encode_png(sheet))
        check_output(output, overwrite=True)  # somebody else may have written meanwhile
    return {kind: str(target / name) for kind, name in FILES.items()}


def _grid(
    images: Sequence[np.ndarray], labels: Sequence[str], factor: int, columns: int
) -> np.ndarray:
    """Pictures in rows, each pixel `factor` wide and high."""
    large = [image.repeat(factor, axis=0).repeat(factor, axis=1) for image in images]
    return contact_sheet.contact_sheet(large, labels, columns=columns)


def _sheet(given: np.ndarray, futures: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    images, labels = [], []
    for seed, future in zip(seeds, futures, strict=True):
        images += [given, *future]
        labels += ["given", *(f"seed {seed}, frame {t}" for t in range(len(future)))]
    small = [image_lib.resize_shorter_side(image, _SHEET_SIDE) for image in images]
    return _grid(small, labels, _SHEET_SIDE // small[0].shape[0], futures.shape[1] + 1)


def _captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    return np.concatenate([contact_sheet.text_strip(caption, picture.shape[1]), picture])
