"""The official video layout of stage 1: one annotation json a clip, videos beside them.

    <directory>/annotation/<split>/<clip>.json
    <directory>/videos/...

The published CALVIN data call the first folder `annotation_abc_13`: any one `annotation*` will do.

Fields read (official loader: Step1_GFDM/video_dataset/dataset_mix.py:110-205): `texts`,
`videos[i].video_path`, `video_length`, and, where present, `state` [n, P] and `action`
[n - 1 or n, A]. There is one action less than frames in the published clips: action t leads from
frame t to t + 1. The last frame then gets a neutral action, zero motion with the gripper as it was,
and the episode's metadata says so. `latent_videos[i].latent_video_path` is no part of an episode,
because latents depend on an encoder; `LatentFiles` gives them to `launch/data.py encode`.

The published videos play at 3 frames a second, whatever the robot's rate; give the true one with
`ClipOptions.fps` where it matters.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines import episodes, files
from data_pipelines.formats import json_files
from data_pipelines.sources import base, video_clips
from defi_jax import errors
from defi_jax.weights.torch_file import archive

ANNOTATION = "annotation"
_OTHER_LATENTS = "latent_videos_svd"
_FIX = "correct or remove it"
_CAMERAS = ("static", "gripper")  # of CALVIN, the only published data with two


@dataclass(frozen=True)
class _Item:
    """One annotation file; see `base.Item`."""

    episode_id: str
    path: pathlib.Path

    @property
    def item(self) -> str:
        return str(self.path)


def open_source(directory: str | pathlib.Path, how: video_clips.Reading) -> base.ItemSource:
    """Opens a directory that holds `annotation/`, whose folders are the splits.

    Raises:
        UserError: no such directory, split, or no annotation.
    """
    directory = pathlib.Path(directory)
    items = _items(directory, how.name, how.splits)
    recipe = {
        "kind": "official video layout",
        "captions": {"file": f"{ANNOTATION}/*/*.json", "field": "texts"},
        "selection": "every annotation, the whole video",
        "files": files.digest_files(directory, (item.path for item in items)),
    }
    return how.source(items, _read, recipe, directory=directory)


class LatentFiles:
    """The latents that a layout's annotations name; which encoder made them, it does not say.

    As the official loader does, a file that is missing below `latent_videos` is looked for below
    `latent_videos_svd`. Pickles are interpreted by `torch_pickle`, which runs nothing of them.

    Args:
        directory: that holds `annotation/`.

    Raises:
        UserError: no such directory, or no annotation.
        DataError: an annotation is damaged.
    """

    def __init__(self, directory: str | pathlib.Path):
        self._directory = pathlib.Path(directory)
        self._paths: dict[tuple[str, str], str] = {}
        for item in _items(self._directory, "", None):
            with _annotation(item.path) as annotation:
                for index, entry in enumerate(annotation.get("latent_videos") or ()):
                    path = str(entry["latent_video_path"])
                    self._paths[item.episode_id, _camera(index)] = path

    def __call__(self, episode_id: str, camera: str) -> np.ndarray:
        """Returns the latents of a video, float32[n, h, w, C], scaled in the published files.

        The id is of an episode that `open_source` gave, whatever the dataset was called.

        Raises:
            DataError: there are none, or they are damaged.
        """
        _, _, clip = episode_id.partition("/")
        path = self._paths.get((f"/{clip}", camera))
        if path is None:
            raise errors.DataError(
                f"no latents of {episode_id!r}, camera {camera!r}",
                self._directory,
                "encode the videos instead: leave out --official_latents",
            )
        return np.moveaxis(_load_latent(self._directory, path), 1, -1)


def _read(item: _Item, *, how: video_clips.Reading, directory: pathlib.Path) -> episodes.Episode:
    with _annotation(item.path) as annotation:
        clip = _parse_clip(directory, item, annotation)
    return video_clips.read_clip(clip, how=how)


def annotation_folder(directory: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of annotations, None where there is none.

    Raises:
        UserError: there are several.
    """
    if (directory / ANNOTATION).is_dir():
        return directory / ANNOTATION
    found = sorted(path for path in directory.glob(f"{ANNOTATION}*") if any(path.glob("*/*.json")))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        what = f"several annotation folders ({names})"
        raise errors.UserError(what, directory, f"name the right one {ANNOTATION}")
    return found[0] if found else None


def _items(directory: pathlib.Path, name: str, splits: Collection[str] | None) -> list[_Item]:
    root = annotation_folder(directory)
    if root is None:
        where = directory / ANNOTATION
        raise errors.UserError("no annotation folder", where, "give the folder that holds it")
    known = sorted(path.name for path in root.iterdir() if path.is_dir())
    base.check_splits(splits, known, root)
    items = [
        _Item(f"{name}/{split}/{path.stem}", path)
        for split in (known if splits is None else splits)
        for path in sorted((root / split).glob("*.json"))
    ]
    if not items:
        raise errors.UserError("no annotation json", root, "expected annotation/<split>/*.json")
    return items


@contextlib.contextmanager
def _annotation(path: pathlib.Path) -> Iterator[Any]:
    """Gives the content of an annotation; where the block finds it of another form, a DataError."""
    content = json_files.load(path, what="annotation", fix=_FIX)
    kinds = (ValueError, TypeError, KeyError, AttributeError, OverflowError)
    with errors.DataError.instead_of(kinds, "annotation cannot be used", path, _FIX):
        yield content


def _load_latent(directory: pathlib.Path, relative: str) -> np.ndarray:
    path = video_clips.inside(directory, relative)
    if not path.is_file():
        path = video_clips.inside(
            directory, relative.replace("latent_videos/", f"{_OTHER_LATENTS}/")
        )
    if not path.is_file():
        raise errors.DataError("no such latent file", relative, "encode the videos instead")
    values = archive.read_tensor(path)
    if values.ndim != 4 or not np.isfinite(values.astype(np.float32)).all():
        kind = f"{values.dtype}{list(values.shape)}"
        raise errors.DataError(f"latents are {kind}, not finite [n, C, h, w]", path)
    return values.astype(np.float32)


def _camera(index: int) -> str:
    return _CAMERAS[index] if index < len(_CAMERAS) else f"camera{index}"


def _parse_clip(
    directory: pathlib.Path, item: _Item, annotation: Mapping[str, Any]
) -> video_clips.Clip:
    actions, states = _matrix(annotation.get("action")), _matrix(annotation.get("state"))
    # As the official loader counts.
    num_frames = annotation.get("video_length") if states is None else len(states)
    if not isinstance(num_frames, int | None):
        raise ValueError(f"'video_length' is {num_frames!r}")
    padded = actions is not None and num_frames is not None and len(actions) == num_frames - 1
    if actions is not None and padded:
        neutral = np.zeros_like(actions[-1:])
        neutral[0, -1] = actions[-1, -1]
        actions = np.concatenate([actions, neutral])
    texts = annotation["texts"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("'texts' is not a list of texts")
    videos = {
        _camera(index): video_clips.inside(directory, video["video_path"])
        for index, video in enumerate(annotation["videos"])
    }
    if not videos:
        raise ValueError("it names no video")
    return video_clips.Clip(
        item=item.item,
        episode_id=item.episode_id,
        videos=videos,
        instructions=tuple(texts) or ("",),
        num_frames=num_frames,
        actions=actions,
        states=states,
        metadata={
            "annotation": str(item.path.relative_to(directory)),
            "official_episode_id": str(annotation["episode_id"]),
            episodes.LAST_ACTION_IS_PADDING: padded,
        },
    )


def _matrix(rows: Any) -> np.ndarray | None:
    """Reads [n, width] numbers, float32; None where the annotation has none."""
    if not rows:
        return None
    matrix = np.asarray(rows, np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"expected rows of numbers, found shape {matrix.shape}")
    return matrix
