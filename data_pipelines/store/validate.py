"""Looks for what would spoil a training run silently, and says where it is.

Errors: bytes that differ from their digest, images that do not decode or change size, values that
are not finite, columns whose width changes, a camera that some episodes lack, episodes without
frames. Warnings, because they can be intended: no instruction, a single frame, dimensions that
never change, cameras that are all black, and grippers whose values or beginnings look inverted.
"""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tqdm

from data_pipelines.formats import image as image_lib
from data_pipelines.open_x import registry
from data_pipelines.store import convert, reader
from defi_jax import embodiment, errors

_BLACK_BELOW = 4  # grey levels; JPEG does not keep exact zeros

# Demonstrations begin with an open hand, nearly always.
_BEGINS_CLOSED_SHARE, _BEGINS_CLOSED_EPISODES = 0.75, 4
_POLARITY = re.compile(r"([+-]?\d+) (opens|closes)")  # in `embodiment.Convention.gripper`


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
    """Checks an episode store; with `images`, every frame is decoded, too.

    Returns:
        The findings, errors first, and counts: `episodes, frames, errors, warnings`.

    Raises:
        UserError: no such store.
        DataError: the store cannot be opened at all.
    """
    store = reader.EpisodeStore(directory)
    manifest, findings = convert.read_manifest(directory), []
    if manifest is not None and not manifest.get("complete"):
        what = "conversion was interrupted"
        findings.append(Finding("error", "incomplete", what, str(directory)))
    bar = tqdm.tqdm(range(len(store)), desc="validate", unit="ep", disable=not progress)
    for i in bar:
        try:
            findings += _check_episode(store, i, images)
            store.verify(i)
        except errors.DataError as error:
            findings.append(Finding("error", "damaged", error.what, error.where))
    findings += _check_cameras(store)
    for name in ("actions", "states"):
        findings += _check_columns(store, name)
    findings += _check_grippers(store)
    findings.sort(key=lambda finding: finding.severity)
    counts = collections.Counter(finding.severity for finding in findings)
    return findings, {
        "episodes": len(store),
        "frames": int(store.lengths.sum()),
        "errors": counts["error"],
        "warnings": counts["warning"],
    }


def _check_episode(store: reader.EpisodeStore, i: int, images: bool) -> list[Finding]:
    meta = store.meta(i)
    where = f"episode {meta.episode_id}"
    findings = []
    if not any(text.strip() for text in meta.instructions):
        findings.append(Finding("warning", "language", "no instruction", where))
    if meta.length < 1:
        return [*findings, Finding("error", "length", "no frames", where)]
    if meta.length == 1:
        findings.append(Finding("warning", "length", "one frame, nothing moves", where))
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
            image = image_lib.decode_image(data, where=f"{where} frame {step}")
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


def _check_cameras(store: reader.EpisodeStore) -> Iterator[Finding]:
    everywhere = {camera for i in range(len(store)) for camera in store.meta(i).cameras}
    for i in range(len(store)):
        meta = store.meta(i)
        absent = sorted(everywhere - set(meta.cameras))
        if absent:
            what = f"no camera {', '.join(absent)}, which other episodes have"
            yield Finding("error", "camera", what, f"episode {meta.episode_id}")


def _check_columns(store: reader.EpisodeStore, name: str) -> Iterator[Finding]:
    """Widths that change, and dimensions that have one value in the whole store."""
    low, high, first = None, None, ""
    for i in range(len(store)):
        try:
            column = getattr(store, name)(i)
        except errors.DataError:
            continue  # reported as damaged
        if column is None or not len(column):
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


# ---- grippers ----


def _check_grippers(store: reader.EpisodeStore) -> Iterator[Finding]:
    """Compares each dataset's gripper with what its convention says."""
    members: dict[tuple[str, str], list[int]] = {}
    for i in np.flatnonzero(store.has_actions):
        meta = store.meta(int(i))
        members.setdefault((meta.source, meta.embodiment), []).append(int(i))
    for (source, robot), indices in members.items():
        convention = registry.convention_of(store.meta(indices[0]))
        try:
            grippers = _grippers(store, indices, convention)
        except errors.DataError:
            continue  # reported as damaged
        said = "unknown" if convention is None else convention.gripper
        if grippers:
            yield from _check_gripper(grippers, said, f"{source}, {robot}")


def _grippers(
    store: reader.EpisodeStore,
    indices: Sequence[int],
    convention: embodiment.Convention | None,
) -> dict[str, np.ndarray]:
    """Returns the gripper's first, smallest and largest value of each episode, float32[3], by id.

    {} where there is none that we know of. Without a convention, a last dimension of two values is
    taken for one.
    """
    names = () if convention is None else convention.action_names
    if convention is not None and "gripper" not in names:
        return {}
    number = names.index("gripper") if names else -1
    found: dict[str, np.ndarray] = {}
    widths: set[int] = {len(names)} if names else set()
    values: set[float] = set()
    for i in indices:
        actions = store.actions(i)
        if actions is None or not len(actions):
            continue  # reported
        widths.add(actions.shape[1])
        if len(widths) > 1 or not actions.shape[1]:
            return {}
        column = actions[:, number]
        if not names:
            values.update(np.unique(column).tolist())
            if len(values) > 2:
                return {}
        found[store.meta(i).episode_id] = np.array([column[0], column.min(), column.max()])
    return found if names or len(values) == 2 else {}


def _check_gripper(found: Mapping[str, np.ndarray], said: str, where: str) -> Iterator[Finding]:
    """Looks at the gripper of one dataset; `said` is "unknown" or such as "1 opens, 0 closes"."""
    low = min(float(lowest) for _, lowest, _ in found.values())
    high = max(float(highest) for _, _, highest in found.values())
    polarity = {word: float(number) for number, word in _POLARITY.findall(said)}
    if len(polarity) == 2:
        bounds = sorted(polarity.values())
        is_shifted = bounds[0] < 0 <= low  # 0 to 1 where -1 to 1 is said
        if low < bounds[0] - 1e-3 or high > bounds[1] + 1e-3 or (is_shifted and low < high):
            what = f"gripper goes from {low:g} to {high:g}, its convention is '{said}'"
            yield Finding("warning", "gripper", what, where)
            return
    elif said != "unknown":
        return  # another kind of signal, for example a velocity
    opens, closes = polarity.get("opens", high), polarity.get("closes", low)
    middle = (opens + closes) / 2
    closed = [
        name
        for name, (first, _, _) in found.items()
        if (float(first) - middle) * (opens - closes) < 0
    ]
    is_suspicious = len(closed) >= _BEGINS_CLOSED_SHARE * len(found)
    if is_suspicious and len(found) >= _BEGINS_CLOSED_EPISODES:
        what = f"gripper begins closed in {len(closed)} of {len(found)} episodes"
        what += f" if {opens:g} opens; the sign may be inverted"
        yield Finding("warning", "gripper", what, f"{where}, for example {closed[0]}")
