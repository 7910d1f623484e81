"""What an Open-X dataset must become: written with its published layout, converted and streamed."""

import pathlib

import numpy as np

from data_pipelines.formats import image
from data_pipelines.loading import stream_batches
from data_pipelines.open_x import base, columns, registry
from data_pipelines.sources import rlds, rlds_directory
from data_pipelines.store import convert
from data_pipelines.store import reader as store_reader
from tests.data_pipelines import loaders
from tests.data_pipelines.open_x import catalogue, expected

JPEG_NOISE = 3  # grey levels


def _lows(standard: base.Standard) -> dict[str, float]:
    """Fields whose documented range begins at 0."""
    parts = (*(standard.actions or ()), *(standard.states or ()))
    return {p.name: 0.0 for p in parts if isinstance(p, columns.Column) and p.low >= 0}


def _row(name: str) -> expected.Row:
    return expected.ROWS[expected.ALIASES.get(name, name)]


def _wanted(name: str, seed: int) -> dict:
    """The episode that a seed must become: kept steps, actions, states, colours by raw field."""
    layout, row = catalogue.layouts()[name], _row(name)
    raw = catalogue.raw_steps(layout, seed, _lows(registry.find(name)))
    kept = slice(1, -1) if row.dropped else slice(None)
    numbers = {path: values for path, values in raw.items() if isinstance(values, np.ndarray)}
    return {
        "actions": row.action and expected.evaluate(row.action, numbers)[kept],
        "states": row.state and expected.evaluate(row.state, numbers)[kept],
        "frames": {
            path: values[kept] for path, values in raw.items() if "image" in _kind(path, layout)
        },
    }


def _kind(path: str, layout: catalogue.Layout) -> str:
    return dict(catalogue.leaves(layout.features["steps"]))[path]


def _colours(encoded: list[bytes]) -> np.ndarray:
    """Returns the grey level of each picture, which has one colour."""
    return np.array([image.decode_image(data).mean() for data in encoded])


def assert_read(root: pathlib.Path, name: str, file_format: str) -> store_reader.EpisodeStore:
    """Writes episodes of a dataset; checks what conversion and a stream give, value by value.

    Returns:
        The converted store.
    """
    layout, standard = catalogue.layouts()[name], registry.find(name)
    options = rlds_directory.RldsOptions(splits=layout.splits)
    episodes = 2 if len(layout.splits) == 1 else 1  # of each split
    catalogue.write(root, layout, _lows(standard), episodes=episodes, file_format=file_format)
    source = rlds.RldsSource(root / name, options)
    assert source.name == name
    manifest = convert.convert(source, root / "store", origin={}, progress=False)
    assert manifest["rejected"] == []
    wanted = [_wanted(name, seed) for seed in range(episodes * len(layout.splits))]
    store = store_reader.EpisodeStore(root / "store")
    _assert_stored(store, standard, wanted)
    _assert_streamed(root, name, standard, wanted, layout.splits)
    return store


def _assert_stored(store, standard, wanted) -> None:
    assert len(store) == len(wanted)
    found = []
    for i in range(len(store)):
        meta = store.meta(i)
        (text,) = meta.instructions
        seed = int(text.removeprefix(catalogue.INSTRUCTION))
        found.append(seed)
        episode = wanted[seed]
        _assert_near(store.actions(i) if store.has_actions[i] else None, episode["actions"])
        _assert_near(store.states(i), episode["states"])
        for camera, field in standard.cameras.items():
            stored = store.frame_bytes(i, camera, range(meta.length))
            assert [bytes(data) for data in stored] == episode["frames"][field]
    assert sorted(found) == list(range(len(wanted)))


def _assert_near(found, wanted) -> None:
    if not isinstance(wanted, np.ndarray):
        assert found is None
        return
    assert found.dtype == np.float32 and found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def _assert_streamed(root, name, standard, wanted, splits) -> None:
    """Frame pairs of one epoch are those of the episodes, each once."""
    camera = next(iter(standard.cameras))
    width = _row(name).action_dim or 7
    pairs = _pairs(wanted, standard.cameras[camera], width)
    one = loaders.make(
        global_batch=1,
        root=str(root),
        mixture=f"{name}:1",  # a data set; without the weight "bridge" is a named mixture
        splits=splits,
        cameras=(camera,),
        pair_offset=(1, 1),
        action_dim=width,
        image_size=8,
        normalization="none",
        augment=False,
        holdout_percent=0,
    )
    assert isinstance(one.batches, stream_batches.StreamBatches)
    batches = [next(one) for _ in pairs]
    one.close()
    found = []
    for batch in batches:
        row = np.asarray(batch.frames[0], np.float32).mean(axis=(1, 2, 3))
        found.append([*row, *np.asarray(batch.action[0])])
    _assert_same_rows(found, pairs)


def _pairs(wanted, field: str, width: int) -> list[list[float]]:
    """Returns (first colour, second colour, action between them) of every frame but the last."""
    found = []
    for episode in wanted:
        colours = _colours(episode["frames"][field])
        has_actions = isinstance(episode["actions"], np.ndarray)
        actions = episode["actions"] if has_actions else np.zeros((len(colours), width))
        found += [[*colours[t : t + 2], *actions[t]] for t in range(len(colours) - 1)]
    return found


def assert_exported(steps: list[dict], store: store_reader.EpisodeStore, i: int) -> None:
    """Compares steps of an export, as TFDS reads them, with the store's episode `i`."""
    meta = store.meta(i)
    assert len(steps) == meta.length
    texts = {step["language_instruction"] for step in steps}
    assert texts == {meta.instructions[0].encode()}
    for name, wanted in (("action", store.actions(i)), ("state", store.states(i))):
        values = [step["observation"] if name == "state" else step for step in steps]
        if wanted is None:
            assert all(name not in step for step in values)
        else:
            np.testing.assert_array_equal([step[name] for step in values], wanted)
    for number, camera in enumerate(meta.cameras):
        pixels = np.stack([step["observation"][f"image_{number}"] for step in steps])
        difference = pixels.astype(np.int16) - store.frames(i, camera, range(meta.length))
        assert np.abs(difference).max() <= JPEG_NOISE


def _assert_same_rows(found, wanted) -> None:
    rest = [np.array(row) for row in wanted]
    for row in found:
        near = [
            np.abs(row[:2] - other[:2]).max() <= JPEG_NOISE
            and np.allclose(row[2:], other[2:], rtol=0, atol=1e-5)
            for other in rest
        ]
        assert any(near), row
        del rest[int(np.argmax(near))]
    assert not rest
