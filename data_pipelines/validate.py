"""Looks for what would spoil a training run silently, and says where it is.

Errors: bytes that differ from their digest, images that do not decode or change size, values that
are not finite, columns whose width changes, a camera that some episodes lack, episodes without
frames. Warnings, because they can be intended: no instruction, dimensions that never change, and
cameras that are all black.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tqdm

from data_pipelines import convert, episodes, media
from defi_jax import errors

_BLACK_BELOW = 4  # grey levels; JPEG does not keep exact zeros


@dataclass(frozen=True)
class Finding:
    """Something wrong or doubtful.

    Attributes:
        severity: "error" or "warning".
        check: short name of the check.
        what: what was found.
        where: episode, camera, frame or step, as far as known.
    """

    severity: Literal["error", "warning"]
    check: str
    what: str
    where: str


def validate(
    directory: str | os.PathLike, *, images: bool = True, progress: bool = True
) -> tuple[list[Finding], dict[str, Any]]:
    """Checks an episode store.

    Args:
        directory: of the store.
        images: also decode every frame.
        progress: draw a progress bar on stderr.

    Returns:
        The findings, errors first, and counts: `episodes, frames, errors, warnings`.

    Raises:
        UserError: no such store.
        DataError: the store cannot be opened at all.
    """
    store = episodes.EpisodeStore(directory)
    findings = list(_check_manifest(directory))
    bar = tqdm.tqdm(range(len(store)), desc="validate", unit="ep", disable=not progress)
    for i in bar:
        try:
            findings += _check_episode(store, i, images)
        except errors.DataError as error:
            findings.append(Finding("error", "damaged", error.what, error.where))
    findings += _check_digests(store, findings)
    findings += _check_cameras(store)
    for name in ("actions", "states"):
        findings += _check_columns(store, name)
    findings.sort(key=lambda finding: finding.severity)
    counts = collections.Counter(finding.severity for finding in findings)
    return findings, {
        "episodes": len(store),
        "frames": int(store.lengths.sum()),
        "errors": counts["error"],
        "warnings": counts["warning"],
    }


def _check_manifest(directory: str | os.PathLike) -> Iterator[Finding]:
    manifest = convert.read_manifest(directory)
    if manifest is not None and not manifest.get("complete"):
        yield Finding("error", "incomplete", "conversion was interrupted", str(directory))


def _check_episode(store: episodes.EpisodeStore, i: int, images: bool) -> list[Finding]:
    meta = store.meta(i)
    where = f"episode {meta.episode_id}"
    findings = []
    if not any(text.strip() for text in meta.instructions):
        findings.append(Finding("warning", "language", "no instruction", where))
    if meta.length < 1:
        return [*findings, Finding("error", "length", "no frames", where)]
    for name, column in (("actions", store.actions(i)), ("states", store.states(i))):
        if column is None:
            continue
        if len(column) != meta.length:
            what = f"{len(column)} {name} for {meta.length} frames"
            findings.append(Finding("error", "length", what, where))
        for step in np.flatnonzero(~np.isfinite(column).all(axis=1))[:1]:
            findings.append(
                Finding("error", "finite", f"{name} not finite", f"{where} step {step}")
            )
    if images:
        for camera in meta.cameras:
            findings += _check_images(
                store.frame_bytes(i, camera, range(meta.length)), f"{where} camera {camera}"
            )
    return findings


def _check_images(frames: Sequence[bytes], where: str) -> Iterator[Finding]:
    first_shape, brightest = None, 0
    for step, data in enumerate(frames):
        try:
            image = media.decode_image(data, where=f"{where} frame {step}")
        except errors.DataError as error:
            yield Finding("error", "image", error.what, error.where)
            continue
        first_shape = first_shape or image.shape
        brightest = max(brightest, int(image.max()))
        if image.shape != first_shape:
            what = f"size is {image.shape[:2]}, {first_shape[:2]} in the first frame"
            yield Finding("error", "image", what, f"{where} frame {step}")
    if first_shape and brightest < _BLACK_BELOW:
        yield Finding("warning", "black", "all frames are black", where)


def _check_digests(store: episodes.EpisodeStore, findings: Iterable[Finding]) -> Iterator[Finding]:
    if any(finding.check == "damaged" for finding in findings):
        return  # named already, and `verify` stops at the first
    try:
        store.verify()
    except errors.DataError as error:
        yield Finding("error", "damaged", error.what, error.where)


def _check_cameras(store: episodes.EpisodeStore) -> Iterator[Finding]:
    everywhere = {camera for i in range(len(store)) for camera in store.meta(i).cameras}
    for i in range(len(store)):
        meta = store.meta(i)
        absent = sorted(everywhere - set(meta.cameras))
        if absent:
            what = f"no camera {', '.join(absent)}, which other episodes have"
            yield Finding("error", "camera", what, f"episode {meta.episode_id}")


def _check_columns(store: episodes.EpisodeStore, name: str) -> Iterator[Finding]:
    """Widths that change, and dimensions that have one value in the whole store."""
    low, high, first = None, None, ""
    for i in range(len(store)):
        try:
            column = getattr(store, name)(i)
        except errors.DataError:
            continue  # reported as damaged
        if column is None:
            continue
        where = f"episode {store.meta(i).episode_id}"
        if low is None:
            low, high, first = column.min(axis=0), column.max(axis=0), where
        elif column.shape[1] != len(low):
            what = f"{name} are {column.shape[1]} wide, {len(low)} in {first}"
            yield Finding("error", "width", what, where)
        else:
            low, high = np.minimum(low, column.min(axis=0)), np.maximum(high, column.max(axis=0))
    if low is None:
        return
    for dim in np.flatnonzero(low == high):
        what = f"{name} dimension {dim} is always {low[dim]:g}"
        yield Finding("warning", "constant", what, "the whole store")
