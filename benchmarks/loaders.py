"""Our loader beside Octo's, on the same frames, in turns; by hand.

    python benchmarks/loaders.py --store=DATA/rt1 --octo=OCTO --dlimp=DLIMP --seconds=15 --rounds=3

OCTO and DLIMP are checkouts of github.com/octo-models/octo and github.com/kvablack/dlimp; they need
tensorflow and tensorflow_datasets in this environment. Without them ours are measured alone.

Each measurement is a process of its own that reads batches of GIDM pairs (two frames of one camera,
one text) without augmentation and divides the frames it got by the CPU seconds of all its threads:

    store    our loader over the store
    stream   our loader over the store's RLDS export, without conversion
    octo     `octo.data.dataset.make_interleaved_dataset` over the same export, window_size=2
    bare     decoding and resizing the store's frames, nothing else

The store's episodes are repeated (--copies), as orders of few samples are slow to draw.

Results stand in docs/benchmarks.md.
"""

import concurrent.futures
import dataclasses
import importlib.util
import itertools
import json
import multiprocessing
import pathlib
import statistics
import sys
import tempfile
import time

from absl import app, flags

ROOT = pathlib.Path(__file__).parents[1]
BATCH = 64  # pairs
PAIR = 2  # frames
WARM_UP = 10  # batches
SHUFFLE_BUFFER = 1000  # of Octo, encoded frames

_F = flags.FLAGS
flags.DEFINE_string("store", None, "Episode store.", required=True)
flags.DEFINE_string("octo", "", "Checkout of octo-models/octo.")
flags.DEFINE_string("dlimp", "", "Checkout of kvablack/dlimp.")
flags.DEFINE_integer("image_size", 224, "Pixels of a side.")
flags.DEFINE_float("seconds", 15, "Of one measurement.")
flags.DEFINE_integer("copies", 20, "Of the store's episodes.", 1)
flags.DEFINE_integer("rounds", 3, "Of all loaders in turns.")


def main(_) -> None:
    """Prints each measurement, then medians as JSON."""
    sys.path[:0] = [str(ROOT), *filter(None, (_F.octo, _F.dlimp))]
    from data_pipelines.store import export, reader

    kinds = {"store": ours, "stream": ours, "bare": bare}
    missing = [name for name in ("tensorflow", "dlimp", "octo") if not _is_there(name)]
    if missing:
        print(f"Octo is left out, not importable: {', '.join(missing)}")
    else:
        kinds["octo"] = octo
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder, "stores", "frames")
        _repeat(_F.store, store)
        export.export_tfds(reader.EpisodeStore(store), folder, name="frames", progress=False)
        roots = dict.fromkeys(kinds, folder) | dict.fromkeys(("store", "bare"), str(store.parent))
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number, (kind, measure) in itertools.product(range(_F.rounds), kinds.items()):
            arguments = (measure, roots[kind], _F.image_size, _F.seconds)
            rates[kind].append(_apart(*arguments))
            print(f"round {number}: {kind} {rates[kind][-1]:.0f} frames per CPU second", flush=True)
    result = {kind: statistics.median(found) for kind, found in rates.items()}
    for other in kinds.keys() - {"store"}:
        pairs = zip(rates["store"], rates[other], strict=True)
        result[f"store/{other}"] = statistics.median(one / two for one, two in pairs)
    print(json.dumps(result))


def _repeat(directory: str, output: pathlib.Path) -> None:
    from data_pipelines.store import reader
    from data_pipelines.store import writer as store_writer

    store = reader.EpisodeStore(directory)
    with store_writer.EpisodeWriter(output, source="frames") as writer:
        for copy, i in itertools.product(range(_F.copies), range(len(store))):
            one = store.episode(i)
            writer.write(dataclasses.replace(one, episode_id=f"{copy}/{one.episode_id}"))


def _is_there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _apart(measure, *arguments) -> float:
    """Measures in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, initializer=_paths) as pool:
        return pool.submit(measure, *arguments).result()


def _paths() -> None:
    flags.FLAGS(sys.argv)
    sys.path[:0] = [str(ROOT), *filter(None, (_F.octo, _F.dlimp))]


def _rate(batches, seconds: float, frames_per_batch: int) -> float:
    """Returns frames per CPU second of this process, after a warm-up."""
    for _ in range(WARM_UP):
        next(batches)
    count, stop, cpu = 0, time.monotonic() + seconds, time.process_time()
    while time.monotonic() < stop:
        next(batches)
        count += frames_per_batch
    return count / (time.process_time() - cpu)


def ours(root: str, image_size: int, seconds: float) -> float:
    """The loader that training uses, over a store or an RLDS directory."""
    from configs import gidm
    from data_pipelines.loading import loader
    from defi_jax import objectives

    config = gidm.get_config("small")
    config.data.update(
        root=root,
        mixture="frames",
        image_size=image_size,
        augment=False,
        workers=0,
        action_dim=7,
    )
    objective = objectives.make(config)
    batches = loader.make_loader(
        config.data,
        objective.batch_spec(BATCH),
        tokenizers=objective.tokenizers(),
        split="train",
        seed=0,
        global_batch=BATCH,
        process_index=0,
        process_count=1,
    )
    return _rate(batches, seconds, BATCH * PAIR)


def octo(root: str, image_size: int, seconds: float) -> float:
    """Octo's loader: two consecutive frames, the text and one action a sample."""
    import tensorflow as tf
    from octo.data import dataset

    tf.config.set_visible_devices([], "GPU")
    batches = dataset.make_interleaved_dataset(
        [
            {
                "name": "frames",
                "data_dir": root,
                "image_obs_keys": {"primary": "image_0"},
                "language_key": "language_instruction",
            }
        ],
        train=True,
        shuffle_buffer_size=SHUFFLE_BUFFER,
        traj_transform_kwargs={"window_size": PAIR},
        frame_transform_kwargs={"resize_size": (image_size, image_size)},
        batch_size=BATCH,
    ).as_numpy_iterator()
    first = next(batches)["observation"]["image_primary"]
    assert first.shape == (BATCH, PAIR, image_size, image_size, 3)
    return _rate(batches, seconds, BATCH * PAIR)


def bare(root: str, image_size: int, seconds: float) -> float:
    """Decoding and resizing, as our loader does them, of frames that are in memory."""
    from data_pipelines.formats import image
    from data_pipelines.store import reader

    source = reader.EpisodeStore(pathlib.Path(root, "frames"))
    encoded = [
        data
        for i in range(min(len(source), 20))
        for data in source.frame_bytes(i, "static", range(source.meta(i).length))
    ]
    size = (image_size, image_size)
    frames = (image.resize(image.decode_image(data), size) for data in itertools.cycle(encoded))
    return _rate(frames, seconds, 1)


if __name__ == "__main__":
    app.run(main)
