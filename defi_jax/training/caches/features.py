"""Features of a frozen, deterministic part of the model: computed once, then read from disk.

    every sample with images -> objective.precompute_features -> <workdir>/cache/features-*.npy
    -> batches with features instead of images

One file for the training samples (a row a sample) and one for the held-out batches (a row a place
in them). The name holds a digest of all that the features depend on; a file has its name only when
it is complete. Until then it grows by whole rows, and a run that was stopped goes on after them.
Objectives that cache no features pass through untouched.

Config keys read: global_batch, eval_batches.
"""

import io
import itertools
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath

from defi_jax import batch as batch_lib
from defi_jax import errors
from defi_jax.array_typing import Params
from defi_jax.checkpoints import digests
from defi_jax.models import params as params_lib
from defi_jax.objectives import base
from defi_jax.training import sharding, watchdog

DIRECTORY = "cache"

_PARTIAL = ".partial"
_OFF = "give --config.cache_features=False"

ImageBatches = Iterable[tuple[batch_lib.JointBatch, np.ndarray]]


def prepare(
    config: Any,
    objective: base.Objective,
    frozen: Params,
    loader: batch_lib.Loader,
    held_out: batch_lib.Loader | None,
    mesh: jax.sharding.Mesh,
    workdir: epath.Path,
    watch: watchdog.Supervisor,
) -> tuple[Any, batch_lib.Batch]:
    """Computes or finds the features of an objective that wants them; `loader` then yields them.

    Args:
        frozen: parameters that do not train, on their devices.
        loader: the training split's loader, made with `objective.batch_spec`.
        held_out: loader of the held-out split, made with `objective.pixel_batch_spec`, or None.
        watch: asked whether to stop, and told of progress.

    Returns:
        The held-out loader, of batches with features if the objective wants them, and their spec.

    Raises:
        UserError: several processes, or no local workdir.
        StorageError: no space for the files.
        NumericsError: a feature is not finite.
        Preempted: asked to stop; what is done is kept.
    """
    pixels = objective.pixel_batch_spec(config.global_batch)
    if not isinstance(objective, base.FeatureObjective) or not objective.caches_features:
        return held_out, pixels
    compute = _Compute(config, objective, frozen, mesh, _local_directory(workdir), watch)
    path = compute.file(
        loader.fingerprint,
        loader.num_samples,
        lambda first: loader.scan(pixels, first),
        "training samples",
    )
    loader.use_features(path)
    spec = objective.batch_spec(config.global_batch)
    if held_out is None:
        return None, spec
    count = config.eval_batches
    good = np.ones(config.global_batch, bool)  # the loader has replaced damaged samples
    path = compute.file(
        f"{held_out.fingerprint}/{count}",
        count * config.global_batch,
        lambda first: (
            (batch, good) for batch in itertools.islice(held_out.first(count), first, None)
        ),
        "held-out samples",
    )
    return HeldOutFeatures(held_out, path), spec


class HeldOutFeatures:
    """The first batches of a loader, with features from a file in the place of images."""

    def __init__(self, loader: batch_lib.Loader, path: pathlib.Path):
        self._loader, self._path = loader, path

    def first(self, num_batches: int) -> Iterator[batch_lib.JointBatch]:
        """Yields as many batches as the file was made for, or fewer."""
        rows = np.load(self._path, mmap_mode="r")
        start = 0
        for batch in self._loader.first(num_batches):
            stop = start + len(batch.actions)
            yield batch.replace(images=None, features=np.array(rows[start:stop]))
            start = stop


class _Compute:
    """Makes feature files of one model; compiles once, for batches of global_batch."""

    def __init__(
        self,
        config: Any,
        objective: base.FeatureObjective,
        frozen: Params,
        mesh: jax.sharding.Mesh,
        directory: pathlib.Path,
        watch: watchdog.Supervisor,
    ):
        self._batch_size, self._mesh, self._directory = config.global_batch, mesh, directory
        self._watch = watch
        self._params = objective.feature_params(frozen)
        self._facts = [
            objective.feature_facts(),
            digests.leaf_digests(params_lib.flatten(self._params)),
        ]
        self._compute = jax.jit(objective.precompute_features)
        leaf = jax.eval_shape(
            self._compute, self._params, objective.pixel_batch_spec(self._batch_size)
        )
        self._row_shape, self._dtype = leaf.shape[1:], leaf.dtype

    def file(self, fingerprint: str, num_rows: int, batches: Any, label: str) -> pathlib.Path:
        """Returns the file of these rows, computed unless it is there.

        Args:
            fingerprint: what identifies the data.
            num_rows: how many rows the file has.
            batches: (number of the first) -> `ImageBatches`; their examples in order, up to
                `num_rows`, are the rows.
            label: what the rows are, for the log.
        """
        digest = digests.json_digest([fingerprint, self._facts])[:16]
        path = self._directory / f"features-{digest}.npy"
        shape = (num_rows, *self._row_shape)
        if _is_complete(path, shape, self._dtype):
            logging.info("features of %d %s are in %s", num_rows, label, path)
            return path
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + _PARTIAL)
        with open(partial, "a+b") as file, self._watch.phase("startup"):
            done = self._begin(file, shape)
            self._append(file, done, num_rows, batches(done // self._batch_size), label)
            os.fsync(file.fileno())
        os.replace(partial, path)
        return path

    def _begin(self, file: io.BufferedRandom, shape: tuple[int, ...]) -> int:
        """Cuts a file to its header and the whole batches that it holds; returns their rows."""
        header = _header(shape, self._dtype)
        size = math.prod(shape[1:]) * np.dtype(self._dtype).itemsize
        file.seek(0)
        if file.read(len(header)) != header:
            file.truncate(0)
            file.write(header)
        left = file.seek(0, os.SEEK_END) - len(header)
        done = min(left // size, shape[0]) // self._batch_size * self._batch_size
        file.truncate(len(header) + done * size)
        self._check_space((shape[0] - done) * size)
        return done

    def _append(
        self, file: io.BufferedRandom, start: int, num_rows: int, batches: ImageBatches, label: str
    ) -> None:
        """Computes the rows from `start` on and writes them, a batch at a time."""
        progress = tqdm.tqdm(
            desc=f"features of {label}", total=num_rows, initial=start, unit="sample"
        )
        for batch, good in batches:
            if self._watch.stop_requested():
                raise errors.Preempted(
                    f"stopped on request, before step 1, after the features of {start} {label}",
                    str(self._directory),
                    "the same command goes on from there",
                )
            self._watch.enter("startup")
            on_devices = sharding.global_batch_array(batch, self._batch_size, self._mesh)
            features = np.array(self._compute(self._params, on_devices))
            if not np.isfinite(features[good]).all():
                raise errors.NumericsError(
                    f"features of {label} are not finite",
                    "init.gfdm",
                    "give a GFDM that has trained well",
                )
            features[~good] = np.nan
            stop = min(start + len(features), num_rows)
            with errors.StorageError.instead_of(
                OSError, "features cannot be written", self._directory, f"make space, or {_OFF}"
            ):
                file.write(features[: stop - start].data)
                file.flush()  # these rows stay if the process is killed
            progress.update(stop - start)
            start = stop
        progress.close()

    def _check_space(self, size: int) -> None:
        free = shutil.disk_usage(self._directory).free
        if size > free:
            raise errors.StorageError(
                f"cache_features=True needs {size / 2**30:.1f} GiB, {free / 2**30:.1f} are free",
                str(self._directory),
                f"make space, raise --config.data.window_stride, or {_OFF}",
            )


def _header(shape: tuple[int, ...], dtype: Any) -> bytes:
    """The first bytes of a .npy file."""
    file = io.BytesIO()
    facts = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


def _is_complete(path: pathlib.Path, shape: tuple[int, ...], dtype: Any) -> bool:
    try:
        rows = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return False
    return rows.shape == shape and rows.dtype == dtype


def _local_directory(workdir: epath.Path) -> pathlib.Path:
    """Returns the run's cache directory.

    Raises:
        UserError: the run has several processes, or its workdir is in a bucket.
    """
    if jax.process_count() > 1:
        raise errors.UserError(
            f"cache_features=True works in one process, not in {jax.process_count()}",
            "--config.cache_features",
            _OFF,
        )
    if "://" in str(workdir):
        raise errors.UserError(
            "cache_features=True needs a local workdir",
            f"--workdir={workdir}",
            f"give a local one, or {_OFF}",
        )
    return pathlib.Path(workdir) / DIRECTORY
