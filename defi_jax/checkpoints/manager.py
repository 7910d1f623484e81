"""Checkpoints that are complete or absent, and verified before anything is taken from them.

`<workdir>/checkpoints/<step>/` holds the items `params` (trained), `frozen`, `ema_params` and
`train` (optimizer state, objective arrays, counters, key), each a nested dict of arrays, and three
JSON items: `metadata` (schema, resolved config, mesh, statistics, ...), `data` (state of the batch
iterator) and `integrity` (shape, dtype and digest of every leaf, digests of the other two). The
commit marker is written last; a step without it does not exist until its digests say so
(leftovers.py). After the commit the digests of the files are written beside the step.

Paths may be local or in a bucket (`gs://`).
"""

import concurrent.futures
import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from defi_jax import errors, processes
from defi_jax.array_typing import Params
from defi_jax.checkpoints import digests, leftovers, library_noise, storage, train_state
from defi_jax.checkpoints import format as checkpoint_format

DIRECTORY = "checkpoints"

_SETTLE_SECONDS = 0.2  # between looks for the commit marker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What a verified checkpoint holds.

    Attributes:
        state: the train state, on the devices the abstract state asked for.
        metadata: what `save` was given, with "schema_version" and "step".
        data_state: what `save` was given.
    """

    state: train_state.TrainState
    metadata: dict[str, Any]
    data_state: Any


class Checkpointer:
    """Writes, restores and keeps the checkpoints of one run.

    Use as a context manager: leaving it waits for the save in flight, also after an exception.

    Args:
        workdir: the run's directory; steps are kept below `checkpoints/`.
        keep: how many of the latest steps stay; 0 keeps all.
        max_failed: so many saves in a row may fail before it is an error.
    """

    def __init__(self, workdir: str | epath.Path, *, keep: int, max_failed: int = 1):
        self.directory = storage.absolute(workdir) / DIRECTORY
        self._failures, self._max_failed = 0, max_failed
        self._unfinished: set[int | None] = set()
        self._keep = keep
        self._last_good: int | None = None
        self._quiet = contextlib.ExitStack()
        self._in_flight: int | None = None
        self._sealing: list[concurrent.futures.Future] = []
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "seal-checkpoint")
        self._closed = self._is_stale = False
        if jax.process_index() == 0:
            leftovers.settle(self.directory, keep)
        processes.barrier("steps without a marker are settled")
        mode = ocp.options.AtomicityMode.COMMIT_FILE
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep or None),
                atomicity_options=ocp.options.AtomicityOptions(mode=mode),
                save_root_metadata=False,
            ),
        )

    def __enter__(self) -> "Checkpointer":
        self._quiet.enter_context(library_noise.silenced())
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.wait()
        except errors.StorageError as failed:
            if error is None:
                raise
            logging.warning("%s", failed)  # the error that came first is the run's
        finally:
            self.close()
            self._quiet.close()

    def save(
        self,
        state: train_state.TrainState,
        *,
        metadata: Mapping[str, Any],
        data_state: Any,
    ) -> bool:
        """Starts to save `state`; its buffers may be donated as soon as this returns.

        A failure of an earlier save surfaces here: it is logged, what it left is removed, and this
        save is still made. `metadata` and `data_state`, that of the batch iterator, are JSON-able.

        Returns:
            False if the step exists already, or the save failed at once.

        Raises:
            StorageError: after `max_failed` failed saves in a row.
        """
        self._settle()
        self._tidy()
        step = int(state.step)
        try:
            if step in self._steps():
                return False
        except Exception as error:  # libraries of storage have no common type
            self._in_flight = step
            self._count_failure(error)
            return False
        items = checkpoint_format.to_items(state)
        documents = {
            "metadata": {
                **metadata,
                "schema_version": checkpoint_format.SCHEMA_VERSION,
                "step": step,
            },
            "data": {"state": data_state},
        }
        leaves = checkpoint_format.flat_items(items)
        documents["integrity"] = digests.integrity_document(leaves, documents)
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args |= {name: ocp.args.JsonSave(value) for name, value in documents.items()}
        self._in_flight = step
        try:
            if jax.process_index() == 0:
                leftovers.announce(self.directory / str(step))
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)
        except Exception as error:
            self._count_failure(error)
            return False
        if jax.process_index() == 0:
            self._sealing.append(self._executor.submit(self._seal, step))
        return True

    def restore(self, abstract: train_state.TrainState) -> Restored | None:
        """Returns the latest step that verifies, or None where there is no step at all.

        Damaged steps are renamed to `<step>.corrupt` and named in a warning.

        Args:
            abstract: tree of ShapeDtypeStruct with the shardings wanted, on any mesh.

        Raises:
            UserError: if the latest step is of another model.
            DataError: if there are steps, or what was left of some, and none verifies.
        """
        damaged = []
        for step in reversed(committed_steps(self.directory)):
            try:
                restored = self._restore_step(step, abstract)
            except errors.DataError as error:
                logging.warning("%s; trying the step before", error)
                damaged.append(step)
                continue
            # Only now: were nothing left, a second start would silently begin from scratch.
            self._quarantine(damaged, "corrupt")
            logging.info("restored step %d of %s", step, self.directory)
            self._last_good = step
            return restored
        present = leftovers.folders(self.directory)
        if present:
            raise errors.DataError(
                f"no checkpoint verifies (damaged: {', '.join(map(str, damaged or present))})",
                str(self.directory),
                "restore the directory from a copy, or start over with --overwrite",
            )
        return None

    def check_space(self, abstract: train_state.TrainState, saves: int) -> None:
        """Raises StorageError where the disk can't hold what the next `saves` saves leave there."""
        if jax.process_index() or "://" in str(self.directory):
            return
        leaves = checkpoint_format.flat_items(checkpoint_format.to_items(abstract)).values()
        one = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        # One more than stays: the eldest goes when the newest is committed.
        room = max(1, self._keep + 1 - len(self._steps())) if self._keep else saves
        need, free = one * min(saves, room), shutil.disk_usage(self.directory).free
        if need > free:
            raise errors.StorageError(
                f"the run's checkpoints need {need / 2**20:,.1f} MiB more, "
                f"{one / 2**20:,.1f} each, and {free / 2**20:,.1f} MiB are free",
                str(self.directory),
                "free space, lower keep_checkpoints, or name another --workdir",
            )

    def last_good(self) -> str:
        """Says which step is the last that is committed."""
        if self._last_good is None:
            return "no step was saved"
        return f"step {self._last_good} is the last good one"

    def distrust(self, step: int) -> int | None:
        """Renames checkpoints from `step` on to `<n>.distrusted`, where one before them is left.

        Returns:
            The newest step that is left, which is what a resumed run goes on from.
        """
        self.wait()
        steps = self._steps()
        left = [number for number in steps if number < step] or steps[:1]
        self._quarantine(steps[len(left) :], "distrusted")
        return left[-1] if left else None

    def wait(self) -> None:
        """Waits until the save in flight is committed and its file digests are written.

        Raises:
            StorageError: if the last save failed.
        """
        failed = self._settle()
        if failed is not None:
            raise self._failed("the last save failed", failed) from failed
        for future in self._sealing:
            future.result()
        self._sealing = []
        if jax.process_index() == 0:
            try:
                self._drop_orphan_digests()
            except Exception as error:  # then they stay
                logging.warning("%s: %s", self.directory, checkpoint_format.one_line(error))

    def close(self) -> None:
        """Frees the threads; `wait` first."""
        self._closed = True
        self._executor.shutdown()
        try:
            self._manager.close()
        except Exception as error:  # `wait` has counted the failures of saves
            logging.warning("%s: %s", self.directory, checkpoint_format.one_line(error))
        if self._unfinished:
            library_noise.join_threads()
        self._tidy(is_last=True)

    def _steps(self) -> list[int]:
        """Steps that the library knows; after a failed save those that are there."""
        if self._is_stale:
            self._manager.reload()
            self._is_stale = False
        return sorted(self._manager.all_steps())

    def _settle(self) -> Exception | None:
        """Waits for the save in flight; a failure is counted, tidied up after and returned."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # whatever a background thread of the library met
            self._count_failure(error)
            return error
        step, self._in_flight = self._in_flight, None
        if step is not None:
            self._failures, self._last_good = 0, step
            if jax.process_index() == 0:
                with contextlib.suppress(Exception):  # then the next start does it
                    leftovers.acknowledge(self.directory / str(step))
        return None

    def _count_failure(self, error: Exception) -> None:
        step, self._in_flight = self._in_flight, None
        self._failures += 1
        logging.warning(
            "saving step %s failed (%d of at most %d in a row): %s",
            *(step, self._failures, self._max_failed, checkpoint_format.one_line(error)),
        )
        self._unfinished.add(step)
        self._tidy()
        self._is_stale = True  # not now: the storage may not answer
        if self._failures >= self._max_failed:
            raise self._failed(f"{self._failures} saves in a row failed", error) from error

    def _tidy(self, *, is_last: bool = False) -> None:
        """Removes what failed saves left; again at the next save, as their threads may go on."""
        if jax.process_index():
            return
        for step in self._unfinished:
            with contextlib.suppress(Exception):  # then the next start does it
                leftovers.remove_parts(self.directory / str(step))
                if is_last:
                    leftovers.acknowledge(self.directory / str(step))

    def _failed(self, what: str, error: Exception) -> errors.StorageError:
        return errors.StorageError(
            f"{what} ({checkpoint_format.one_line(error)}); {self.last_good()}",
            str(self.directory),
            "free space or mend the storage; the same command goes on from there",
        )

    def _seal(self, step: int) -> None:
        """Waits for the commit of a step, then writes its file digests (background thread)."""
        path = self.directory / str(step)
        marker = path / checkpoint_format.COMMIT_MARKER
        try:
            while not marker.exists():
                if self._closed or not self._manager.is_saving_in_progress():
                    break
                time.sleep(_SETTLE_SECONDS)
            if not marker.exists():
                return
            self._last_good = step
            leftovers.acknowledge(path)
            digests.write_file_digests(path)
        except FileNotFoundError:  # deleted meanwhile by the keep policy
            digests.digests_path(path).unlink(missing_ok=True)
        except Exception as error:  # libraries of storage have no common type
            text = checkpoint_format.one_line(error)
            logging.warning("%s: file digests were not written: %s", path, text)

    def _drop_orphan_digests(self) -> None:
        """Deletes the file digests of steps that the keep policy has deleted."""
        for file in self.directory.glob(f"*{digests.FILE_DIGESTS_SUFFIX}"):
            step_name = file.name.removesuffix(digests.FILE_DIGESTS_SUFFIX)
            if not (self.directory / step_name).exists():
                file.unlink(missing_ok=True)

    def _restore_step(self, step: int, abstract: train_state.TrainState) -> Restored:
        path = self.directory / str(step)
        documents = checkpoint_format.verified_documents(path)
        items = checkpoint_format.to_items(abstract)
        checkpoint_format.check_fits(path, documents["integrity"]["leaves"], items)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:  # the library has no common type for unreadable data
            raise checkpoint_format.unreadable(path, "arrays are not readable", error) from error
        trees = {name: restored[name] for name in items}
        checkpoint_format.check_leaves(path, documents["integrity"]["leaves"], trees)
        return Restored(
            state=checkpoint_format.from_items(trees, abstract),
            metadata=documents["metadata"],
            data_state=documents["data"]["state"],
        )

    def _quarantine(self, steps: list[int], suffix: str) -> None:
        """Puts steps out of the way, so that the run can write them again."""
        processes.barrier("before quarantine")
        if jax.process_index() == 0:
            for step in steps:
                leftovers.set_apart(self.directory / str(step), suffix)
        processes.barrier("after quarantine")
        self._manager.reload()


def committed_steps(path: str | epath.Path) -> list[int]:
    """Steps with a commit marker below a workdir or checkpoint directory, ascending."""
    root = _root(storage.absolute(path))
    names = [name for name in storage.names(root) if name.isdigit()]
    return sorted(
        int(name) for name in names if (root / name / checkpoint_format.COMMIT_MARKER).exists()
    )


def latest_verified_step(path: str | epath.Path) -> int | None:
    """The newest step that verifies: the only one that exporters and evaluators may use."""
    for step in reversed(committed_steps(path)):
        step_path = _root(storage.absolute(path)) / str(step)
        problem = checkpoint_format.damage(step_path)
        if not problem:
            return step
        logging.warning("%s: %s; trying the step before", problem, step_path)
    return None


def load_params(
    path: str | epath.Path, step: int | None = None, *, ema: bool = True
) -> tuple[Params, dict[str, Any]]:
    """Reads all parameters, trained and frozen, without the mesh they were trained on.

    Args:
        path: a run's workdir, its checkpoint directory, or one step's directory.
        step: which step; None takes the latest that verifies.
        ema: whether the moving average replaces the trained parameters, where there is one.

    Returns:
        Nested dict of numpy arrays, and the checkpoint's metadata, of which "weights" says whether
        the trained parameters are "raw" or their moving average, "ema".

    Raises:
        UserError: if there is no such checkpoint.
        DataError: if it is damaged.
    """
    step_path = _find_step(storage.absolute(path), step)
    documents = checkpoint_format.verified_documents(step_path)
    leaves = documents["integrity"]["leaves"]
    items = {leaf.split("/")[0] for leaf in leaves}
    trained = "ema_params" if ema and "ema_params" in items else "params"
    names = [name for name in (trained, "frozen") if name in items]
    trees = checkpoint_format.read_items(step_path, names, leaves)
    merged = train_state.merge_params(trees.get(trained, {}), trees.get("frozen", {}))
    weights = "ema" if trained == "ema_params" else "raw"
    return merged, {**documents["metadata"], "weights": weights}


def load_metadata(path: str | epath.Path) -> dict[str, Any]:
    """Reads the metadata of the latest step that verifies, after checking its files."""
    step_path = _find_step(storage.absolute(path), None)
    return checkpoint_format.verified_documents(step_path)["metadata"]


def _find_step(path: epath.Path, step: int | None) -> epath.Path:
    if path.name.isdigit() and (path / checkpoint_format.COMMIT_MARKER).exists():
        return path
    root = _root(path)
    steps = committed_steps(path)
    if step is not None and step not in steps:
        raise errors.UserError(
            f"no checkpoint of step {step}", str(root), f"there are: {steps or 'none'}"
        )
    if not steps and leftovers.unmarked(root):
        raise errors.DataError(
            "the checkpoints have lost their commit marker",
            str(root),
            "start the run there once: what is whole by its digests is marked again",
        )
    if not steps:
        raise errors.UserError(
            "no checkpoint", str(root), "give the --workdir of a run that saved at least once"
        )
    found = latest_verified_step(path) if step is None else step
    if found is None:
        raise errors.DataError(
            "no checkpoint verifies", str(root), "restore the directory from a copy"
        )
    return root / str(found)


def _root(path: epath.Path) -> epath.Path:
    """Directory of the steps, given that or a workdir."""
    return path / DIRECTORY if DIRECTORY in storage.names(path) else path
