"""What one core of a host delivers, by objective and by what it reads; by hand.

    python -m benchmarks.make_rlds --output=DATA/rlds --size_mib=48 --image_size=256
    python launch/data.py convert --source=rlds --input=DATA/rlds/bridge_dataset/1.0.0 \
        --output=DATA/stores/bridge_dataset
    python benchmarks/hosts.py --data=DATA [--seconds=8] [--rounds=3]

Clips of 16 frames, pairs or the policy's samples per CPU second of all threads of a process of its
own, at the pixels, lengths and augmentation of the preset `full`, in turns:

    store      an episode store, frames as JPEG
    stream     RLDS, without conversion
    latents    for GFDM, latents and embeddings of the published encoders' shapes, made up here

docs/scaling.md sets them beside what a plan's step takes.
"""

import concurrent.futures
import importlib
import itertools
import json
import multiprocessing
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

STORE = "bridge_dataset"
BATCH = 16
WARM_UP = 2  # batches
OBJECTIVES, KINDS = ("gfdm", "gidm", "joint"), ("store", "stream")
CASES = [("gfdm", "latents"), *itertools.product(OBJECTIVES, KINDS)]
LATENT, TEXT = (32, 32, 4), (20, 512)  # of a frame of 256 pixels, and of an instruction

_F = flags.FLAGS
flags.DEFINE_string("data", None, "Holds rlds/ and stores/, see above.", required=True)
flags.DEFINE_float("seconds", 8, "Of one measurement.")
flags.DEFINE_integer("rounds", 3, "Of all cases in turns.", 1)


class MadeUp:
    """In place of the encoders, whose numbers do not matter to who reads them, but their bytes."""

    posterior, image_size, batch_size = "mode", 256, 16

    def __init__(self):
        self.facts = {"latent_shape": list(LATENT), "text_shape": list(TEXT)}

    def frames(self, frames: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Noise for each frame."""
        return np.random.default_rng(int(keys[0, 0])).standard_normal((len(frames), *LATENT))

    def texts(self, texts: list[str]) -> np.ndarray:
        """Noise for each text."""
        return np.random.default_rng(0).standard_normal((len(texts), *TEXT))


def main(_) -> None:
    """Prints each measurement, then medians as JSON."""
    from data_pipelines.latents import encode
    from data_pipelines.store import reader

    data = pathlib.Path(_F.data)
    rates: dict[str, list[float]] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as latents:
        encode.encode(
            reader.EpisodeStore(data / "stores" / STORE),
            pathlib.Path(latents, STORE),
            MadeUp(),
            cameras=("static",),
            dtype="float16",
            overwrite=False,
            max_bad_fraction=0,
            progress=False,
        )
        for number, (objective, kind) in itertools.product(range(_F.rounds), CASES):
            folder = {"latents": latents}.get(kind, "")
            root = str(data / ("rlds" if kind == "stream" else "stores"))
            with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
                rate = pool.submit(measure, objective, root, folder, _F.seconds).result()
            rates.setdefault(f"{objective} {kind}", []).append(rate)
            print(f"round {number}: {objective} {kind} {rate:.1f} a CPU second", flush=True)
    print(json.dumps({case: round(statistics.median(found), 1) for case, found in rates.items()}))


def measure(objective: str, root: str, latents: str, seconds: float) -> float:
    """Returns samples per CPU second of this process, after a warm-up."""
    from data_pipelines.loading import loader
    from defi_jax import objectives

    module = importlib.import_module(f"configs.{objective}")
    config, full = module.get_config("small"), module.get_config("full")
    config.data.mixture = "synthetic"  # an objective of it needs no weights
    config.encoders.text_length = TEXT[0]
    tokenizers = objectives.make(config).tokenizers()  # those of `full` are published files
    if latents:
        config = full
    config.data.update(
        root=root,
        mixture="synthetic",
        image_size=full.data.image_size,
        num_frames=full.data.num_frames,
        frame_stride=1,  # the made-up episodes are short
        per_dataset={},
        augment=full.data.augment,
        latents=latents,
        workers=0,
        action_dim=7,
    )
    if objective == "joint":
        config.data.cameras = ("static", "secondary")  # what the made-up episodes have
    made = objectives.make(config)
    config.data.mixture = STORE
    batches = loader.make_loader(
        config.data,
        made.batch_spec(BATCH),
        tokenizers=tokenizers,
        split="train",
        seed=0,
        global_batch=BATCH,
        process_index=0,
        process_count=1,
    )
    for _ in range(WARM_UP):
        next(batches)
    count, stop, cpu = 0, time.monotonic() + seconds, time.process_time()
    while time.monotonic() < stop:
        next(batches)
        count += BATCH
    return count / (time.process_time() - cpu)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    app.run(main)
