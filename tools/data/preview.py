"""Contact sheets: what a store holds, and exactly what a model receives.

A sheet has one row an example: its instruction, then its frames in time, for each camera, and its
actions drawn over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw

from data_pipelines import episodes
from data_pipelines.formats import contact_sheet
from data_pipelines.formats import image as image_lib
from defi_jax import batch as batch_lib

_COLORS = (
    (230, 25, 75),
    (60, 180, 75),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
)
_MASKED = (90, 90, 90)
_CAPTION_WIDTH = 800  # pixels; narrow pictures leave that much room for their captions

Cells = list[tuple[np.ndarray, str]]  # uint8[H, W, 3] with a label


@dataclass(frozen=True)
class Row:
    """One example: its instruction, and pictures side by side."""

    caption: str
    cells: Cells


def store_sheet(
    store: episodes.EpisodeSource, *, count: int = 8, frames: int = 6, side: int = 128
) -> np.ndarray:
    """Draws evenly spaced frames of evenly spaced episodes.

    Args:
        count: episodes at most.
        frames: per episode and camera.
        side: frames are shrunk until their shorter side has at most this many pixels.

    Returns:
        uint8[H, W, 3].
    """
    chosen = np.unique(np.linspace(0, len(store) - 1, min(count, len(store))).astype(int))
    return _sheet([_episode_row(store, int(i), frames, side) for i in chosen])


def batch_sheet(batch: batch_lib.Batch, *, count: int = 8) -> np.ndarray:
    """Draws the first examples of a batch as the model receives it: pixels, text, actions, masks.

    Args:
        batch: batch of one of the three objectives, numpy arrays.
        count: examples at most.

    Returns:
        uint8[H, W, 3].
    """
    row = {
        batch_lib.GFDMBatch: _gfdm_row,
        batch_lib.GIDMBatch: _gidm_row,
        batch_lib.JointBatch: _joint_row,
    }[type(batch)]
    size = len(next(iter(vars(batch).values())))
    return _sheet([row(batch, index) for index in range(min(count, size))])


def plot_actions(actions: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draws one line a dimension over time, all on one scale; masked steps are grey.

    Args:
        actions: float32[S, A].
        mask: bool[S], False where a step is padding.
        size: (height, width) of the picture.

    Returns:
        uint8[height, width, 3].
    """
    height, width = size
    image = PIL.Image.new("RGB", (width, height), (12, 12, 12))
    draw = PIL.ImageDraw.Draw(image)
    reach = max(float(np.abs(actions).max(initial=0)), 1e-6)
    x = np.linspace(2, width - 3, max(len(actions), 2))
    draw.line([(0, height // 2), (width, height // 2)], fill=(60, 60, 60))
    for dim in range(actions.shape[1]):
        y = (1 - actions[:, dim] / reach) * (height - 5) / 2 + 2
        for step in range(len(actions) - 1):
            color = _COLORS[dim % len(_COLORS)] if mask[step + 1] else _MASKED
            draw.line([(x[step], y[step]), (x[step + 1], y[step + 1])], fill=color)
    return np.asarray(image)


def _episode_row(store: episodes.EpisodeSource, i: int, frames: int, side: int) -> Row:
    meta = store.meta(i)
    times = np.linspace(0, meta.length - 1, frames).astype(int)
    cells: Cells = []
    for camera in meta.cameras:
        for time, image in zip(times, store.frames(i, camera, times), strict=True):
            cells.append((image_lib.resize_shorter_side(image, side), f"{camera} {time}"))
    actions = store.actions(i)
    if actions is not None:
        # Raw motions are tiny beside the gripper's 0 and 1, so each dimension has its own scale.
        scaled = actions / np.maximum(np.abs(actions).max(axis=0), 1e-6)
        plot = plot_actions(scaled, np.ones(len(actions), bool), cells[0][0].shape[:2])
        cells.append((plot, f"actions {list(actions.shape)}, scaled"))
    rate = f"{meta.length} frames at {meta.fps:g} Hz"
    return Row(f"{meta.instructions[0]}   [{meta.episode_id}, {meta.embodiment}, {rate}]", cells)


def _gfdm_row(batch: batch_lib.GFDMBatch, i: int) -> Row:
    assert batch.video is not None
    cells = [(frame, f"t{time}") for time, frame in enumerate(batch.video[i])]
    return Row(_describe(batch.text, i), cells)


def _gidm_row(batch: batch_lib.GIDMBatch, i: int) -> Row:
    cells = [(frame, f"frame {k}") for k, frame in enumerate(batch.frames[i])]
    action = np.repeat(batch.action[i][None], 2, axis=0)
    known = "mean action" if batch.action_mask[i] else "no action"
    mask = np.repeat(batch.action_mask[i], 2)
    cells.append((plot_actions(action, mask, cells[0][0].shape[:2]), known))
    return Row(_describe(batch.text, i), cells)


def _joint_row(batch: batch_lib.JointBatch, i: int) -> Row:
    assert batch.images is not None
    cells = [(image, f"camera {k}") for k, image in enumerate(batch.images[i])]
    mask = batch.action_mask[i]
    plot = plot_actions(batch.actions[i], mask, cells[0][0].shape[:2])
    cells.append((plot, f"{mask.sum()} of {len(mask)} actions"))
    return Row(_describe(batch.text["goal"], i), cells)


def _describe(text: batch_lib.TextTokens, i: int) -> str:
    return describe_tokens(text.ids[i], text.mask[i])


def describe_tokens(ids: np.ndarray, mask: np.ndarray) -> str:
    """Says what the real tokens are: text where they are bytes (id - 1), else their ids."""
    ids = ids[mask.astype(bool)]
    if not ids.size:
        return "(empty text)"
    if ids.min() >= 1 and ids.max() <= 256:
        return bytes((ids - 1).astype(np.uint8)).decode(errors="replace")
    return "ids " + " ".join(str(token) for token in ids)


def _sheet(rows: Sequence[Row]) -> np.ndarray:
    blocks = []
    for row in rows:
        images, labels = zip(*row.cells, strict=True)
        picture = contact_sheet.contact_sheet(images, labels, columns=len(images))
        blocks.append((row.caption, picture))
    captions = (min(contact_sheet.text_width(caption), _CAPTION_WIDTH) for caption, _ in blocks)
    width = max(*(picture.shape[1] for _, picture in blocks), *captions)
    parts = []
    for caption, picture in blocks:
        pad = ((0, 0), (0, width - picture.shape[1]), (0, 0))
        background = int(picture[0, 0, 0])  # a sheet begins with its margin
        parts += [
            contact_sheet.text_strip(caption, width),
            np.pad(picture, pad, constant_values=background),
        ]
    return np.concatenate(parts)
