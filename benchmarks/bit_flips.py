"""Flips single bits all over a bundle or a checkpoint: each must be noticed.

    python -m benchmarks.bit_flips --bundle=RUN/bundle
    python -m benchmarks.bit_flips --checkpoint=RUN/checkpoints/100

Works on a copy. A file is drawn by --seed, every second time by its size, then a bit of it; then
the bundle, or the checkpoint's parameters, are read. Exit code 1 where a flip was not noticed.

Results stand in docs/benchmarks.md.
"""

import functools
import pathlib
import random
import shutil
import sys
import tempfile
from collections.abc import Callable

from absl import app, flags
from defi_rollout import bundle

from defi_jax import cli, errors
from defi_jax.checkpoints import digests, manager, storage

_F = flags.FLAGS


def main(_) -> None:
    """Prints what came of it."""
    cli.require_one({"--bundle": _F.bundle, "--checkpoint": _F.checkpoint})
    source = pathlib.Path(_F.bundle or _F.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(source, pathlib.Path(folder) / source.name)
        read = functools.partial(bundle.read_bundle if _F.bundle else manager.load_params, copy)
        if _F.checkpoint:
            shutil.copy(digests.digests_path(storage.absolute(source)), folder)
        read()
        missed = flip(pathlib.Path(folder), read, count=_F.flips, seed=_F.seed)
    print(f"seed {_F.seed}: {_F.flips} bits flipped, {len(missed)} not noticed {missed}")
    sys.exit(1 if missed else 0)


def flip(folder: pathlib.Path, read: Callable[[], object], *, count: int, seed: int) -> list[str]:
    """Flips one bit after another below a folder.

    Args:
        folder: its files are as before afterwards.
        read: raises DataError for what is damaged.
        count: number of bits.
        seed: seed of files and bits.

    Returns:
        Where a flip was not noticed.
    """
    rng = random.Random(seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    sizes, missed = [path.stat().st_size for path in paths], []
    for number in range(count):
        path = rng.choices(paths, sizes if number % 2 else None)[0]
        place, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        _flip(path, place, bit)
        try:
            read()
        except errors.DataError:
            pass
        else:
            missed.append(f"{path.relative_to(folder)}:{place}.{bit}")
        _flip(path, place, bit)
    return missed


def _flip(path: pathlib.Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


if __name__ == "__main__":
    flags.DEFINE_string("bundle", None, "Its directory.")
    flags.DEFINE_string("checkpoint", None, "Directory of one step.")
    flags.DEFINE_integer("flips", 200, "Number of bits.", 1)
    flags.DEFINE_integer("seed", 0, "Of files and bits.")
    app.run(main)
