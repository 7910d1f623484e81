"""Data sets with the published layouts of `fixtures/open_x_features.yaml`, written by TFDS itself.

Episodes hold random numbers within the ranges that the data sets document, pictures of one colour
each and one instruction. What was written is returned, to be compared with what is read.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
import yaml

TABLE = pathlib.Path(__file__).parents[2] / "fixtures" / "open_x_features.yaml"
CATALOGUE = "https://www.tensorflow.org/datasets/catalog/"
STEPS = 4
_ENCODINGS = ("jpeg", "png")
INSTRUCTION = "drück den Knopf"

_TYPE = re.compile(r"(?P<kind>scalar )?(?P<name>\w+)(\[(?P<shape>[\d,]+)\])?(?P<more>( \w+)*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What the files of one data set hold; the fields are explained in the table's head."""

    name: str
    features: Mapping[str, Any]
    version: str = "0.1.0"
    splits: tuple[str, ...] = ("train",)
    written_as: str = ""
    source: str = ""
    verified: bool = True

    @property
    def builder_name(self) -> str:
        """The name in dataset_info.json and in the names of the shards."""
        return self.written_as or self.name


@functools.cache
def layouts() -> Mapping[str, Layout]:
    """Returns the table."""
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {
        name: Layout(name=name, **{"source": CATALOGUE + name} | entry | _tuples(entry))
        for name, entry in content.items()
        if not name.startswith("_")
    }


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"splits": tuple(entry["splits"])} if "splits" in entry else {}


# ---- features ----


def features(layout: Layout, *, as_bytes: bool = False) -> tfds.features.FeaturesDict:
    """Returns the feature types of a data set.

    Args:
        layout: layout of the data set.
        as_bytes: images of floats as those of the bytes that they are stored as; TFDS encodes
            floats with TensorFlow only.
    """
    steps = {"steps": tfds.features.Dataset(_features(layout.features["steps"], as_bytes))}
    return tfds.features.FeaturesDict(_features(layout.features, as_bytes) | steps)


def _features(node: Mapping[str, Any], as_bytes: bool) -> dict[str, Any]:
    return {
        name: _features(child, as_bytes)
        if isinstance(child, Mapping)
        else _feature(child, as_bytes)
        for name, child in node.items()
    }


def _feature(text: str, as_bytes: bool) -> tfds.features.FeatureConnector:
    kind, name, shape, more = _parse(text)
    if name == "image":
        dtype, encoding = _pixels(more)
        if as_bytes and dtype == "float32":
            shape, dtype = (*shape[:2], 4), "uint8"
        return tfds.features.Image(shape=shape, dtype=np.dtype(dtype), encoding_format=encoding)
    if name == "text":
        return tfds.features.Text()
    dtype = np.object_ if name == "string" else np.dtype(name)
    if kind:
        return tfds.features.Scalar(dtype=dtype)
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=more[0] if more else "none")


def _parse(text: str) -> tuple[bool, str, tuple[int, ...], list[str]]:
    match = _TYPE.fullmatch(text)
    assert match, text
    shape = tuple(int(size) for size in match["shape"].split(",")) if match["shape"] else ()
    return bool(match["kind"]), match["name"], shape, match["more"].split()


def _pixels(more: list[str]) -> tuple[str, str | None]:
    """Returns dtype and encoding_format of an image; TFDS takes PNG where there is none."""
    encoding = next((word for word in more if word in _ENCODINGS), None)
    return next((word for word in more if word not in _ENCODINGS), "uint8"), encoding


# ---- values ----


def leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yields (path with slashes, type) of each field below a node."""
    for name, child in node.items():
        where = f"{path}/{name}" if path else name
        if isinstance(child, Mapping):
            yield from leaves(child, where)
        else:
            yield where, child


def raw_steps(layout: Layout, seed: int, lows: Mapping[str, float]) -> dict[str, Any]:
    """Returns field of a step -> STEPS values.

    Args:
        layout: layout of the data set.
        seed: seed of the episode.
        lows: field -> smallest value, of those that do not begin at -1.
    """
    found = {}
    for path, text in leaves(layout.features["steps"]):
        rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
        found[path] = _values(text, path, rng, seed, lows.get(path, -1.0))
    return found


def _values(text: str, path: str, rng: np.random.Generator, seed: int, low: float) -> Any:
    _, name, shape, more = _parse(text)
    if name in ("text", "string"):
        return [f"{INSTRUCTION} {seed}"] * STEPS
    if name == "image":
        return [
            _picture(shape, *_pixels(more), int(colour)) for colour in rng.integers(0, 256, STEPS)
        ]
    if path == "observation/instruction":  # code points, padded with 0
        points = np.zeros((STEPS, *shape), name)
        letters = [ord(letter) for letter in f"{INSTRUCTION} {seed}"]
        points[:, : len(letters)] = letters
        return points
    if np.dtype(name).kind in "biu":
        return rng.integers(0, 2, (STEPS, *shape)).astype(name)
    return rng.uniform(low, 1, (STEPS, *shape)).astype(name)


@functools.cache
def _picture(shape: tuple[int, ...], dtype: str, encoding: str | None, colour: int) -> bytes:
    """Returns a picture of one colour as TFDS stores it; it encodes arrays with TensorFlow only."""
    pixels = np.full(shape, colour, dtype)
    if dtype == "float32":  # stored as the four bytes of each number
        pixels = pixels.view(np.uint8)
    out = io.BytesIO()
    image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.save(out, "JPEG" if encoding == "jpeg" else "PNG", compress_level=1)
    return out.getvalue()


def _example(layout: Layout, seed: int, lows: Mapping[str, float]) -> dict[str, Any]:
    raw = raw_steps(layout, seed, lows)
    steps = [_nested(layout.features["steps"], raw, "", step) for step in range(STEPS)]
    whole = {name: node for name, node in layout.features.items() if name != "steps"}
    rng = np.random.default_rng(seed)
    values = {path: _values(text, path, rng, seed, -1.0) for path, text in leaves(whole)}
    values |= {path: np.ones(STEPS, bool) for path in values if path == "success"}
    return _nested(whole, values, "", 0) | {"steps": steps}


def _nested(node: Mapping[str, Any], values: Mapping[str, Any], path: str, step: int) -> dict:
    found = {}
    for name, child in node.items():
        where = f"{path}/{name}" if path else name
        is_dict = isinstance(child, Mapping)
        value = _nested(child, values, where, step) if is_dict else values[where][step]
        found[name] = io.BytesIO(value) if isinstance(value, bytes) else value
    return found


# ---- files ----


def write(
    root: pathlib.Path,
    layout: Layout,
    lows: Mapping[str, float],
    *,
    episodes: int = 1,
    file_format: str = "array_record",
) -> pathlib.Path:
    """Writes <root>/<name>/<version> with TFDS, `episodes` of them in each split.

    Returns:
        The version folder. Episode i of split s has the seed s * episodes + i, counted from 0.
    """

    # Not registered, as TFDS has builders of some of these names.
    class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = layout.builder_name
        VERSION = tfds.core.Version(layout.version)
        code_path = None  # nothing is downloaded, so there are no checksums beside it

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self, features=features(layout, as_bytes=True), disable_shuffling=True
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager
            return {
                split: self._generate_examples(place * episodes)
                for place, split in enumerate(layout.splits)
            }

        def _generate_examples(self, first: int) -> Iterator[tuple[int, Any]]:
            for seed in range(first, first + episodes):
                yield seed, _example(layout, seed, lows)

    tfds.disable_progress_bar()
    builder = _Builder(data_dir=root / ".written", file_format=file_format)
    builder.download_and_prepare()
    features(layout).save_config(builder.data_dir)
    target = root / layout.name / layout.version
    target.parent.mkdir(parents=True, exist_ok=True)
    return pathlib.Path(builder.data_dir).rename(target)
