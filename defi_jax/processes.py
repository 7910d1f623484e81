"""The processes of a run on many hosts: joining, waiting for each other, ending together.

An exception ends its process at once: a normal exit would wait for peers that wait for it.
"""

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping

import jax
from jax._src.clusters import cloud_tpu_cluster  # no public door
from jax.experimental import multihost_utils

from defi_jax import errors, peers

# Environment variables that say that this process is one of several.
_CLUSTER_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")
_PLACE = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_TPU_WORKERS = "TPU_WORKER_HOSTNAMES"
# Seconds without a sign of life after which a process counts as lost, and the run ends. More where
# the processes of a run share few cores: a compiler can take them all for longer.
_HEARTBEAT = "DEFI_HEARTBEAT_SECONDS"
_HEARTBEAT_SECONDS = 15

_peers: peers.Peers | None = None


@contextlib.contextmanager
def joined(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Joins the other processes of a run for a block; an error in it ends this process at once.

    Enter before anything touches a device. One process needs nothing, and nothing happens to it.
    """
    initialize(environ)
    try:
        yield
    except BaseException as error:
        if jax.distributed.is_initialized():
            die(error)
        raise
    if _peers is not None:
        _peers.stop()


def initialize(environ: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of a run, when the environment says that there are any.

    A cluster that jax knows says who is who. Elsewhere each process is given the same
    JAX_COORDINATOR_ADDRESS=host:port and JAX_NUM_PROCESSES, and its own JAX_PROCESS_ID from 0.

    Raises:
        UserError: only one of the last two is given, or it is no number; so with
            DEFI_HEARTBEAT_SECONDS, after which a silent process counts as lost (15).
    """
    several_workers = "," in environ.get(_TPU_WORKERS, "")
    said_so = several_workers or any(name in environ for name in _CLUSTER_VARIABLES)
    if not said_so and (_TPU_WORKERS in environ or not _on_tpu_pod()):
        return
    num_processes, process_id = _place(environ)
    heartbeat = environ.get(_HEARTBEAT, str(_HEARTBEAT_SECONDS))
    if not heartbeat.isdecimal() or not int(heartbeat):
        raise errors.UserError(f"{_HEARTBEAT}={heartbeat}", "environment", "give seconds")
    jax.distributed.initialize(
        num_processes=num_processes,
        process_id=process_id,
        heartbeat_timeout_seconds=3 * int(heartbeat),  # its end is an abort: ours comes first
    )
    sys.excepthook = lambda kind, error, trace: die(error)
    threading.excepthook = lambda args: die(args.exc_value)
    logging.info("process %d of %d", jax.process_index(), jax.process_count())
    if jax.process_count() > 1:
        global _peers
        index, count = jax.process_index(), jax.process_count()
        _peers = peers.Peers(index, count, float(heartbeat), die)


def _on_tpu_pod() -> bool:
    """Whether this is a TPU VM with others: its metadata say so, its environment does not."""
    cluster = cloud_tpu_cluster.GceTpuCluster
    return cluster.is_env_present() and cluster.get_process_count() > 1


def _place(environ: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Returns (number of processes, this one's id), both None where the cluster knows them."""
    given = [environ.get(name) for name in _PLACE]
    if given == [None, None]:
        return None, None
    if not all(text is not None and text.isdecimal() for text in given):
        raise errors.UserError(
            f"{_PLACE[0]}={given[0]}, {_PLACE[1]}={given[1]}",
            "environment",
            "give numbers for both, the second below the first",
        )
    return int(str(given[0])), int(str(given[1]))


def barrier(name: str) -> None:
    """Waits until every process of the run is here; one process does not wait."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def others() -> peers.Peers | None:
    """The other processes of the run, if there are any."""
    return _peers


def die(error: BaseException | None) -> None:
    """Reports an error and leaves at once, past the barriers of a normal exit.

    An error that comes from the loss of another process becomes that loss.
    """
    if _peers is not None and error is not None:
        error = _peers.explain(error) or error
        if isinstance(error, errors.Preempted | errors.NumericsError):
            _peers.leave_together(type(error).__name__)  # all decided so at one step
        else:
            _peers.announce(exit_code(error), str(error) or type(error).__name__)
    with contextlib.suppress(OSError):  # the terminal may be gone
        if isinstance(error, errors.UserError):
            print(f"error: {error}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):  # before the loop listens to it
            print("error: interrupted", file=sys.stderr)
        elif error is not None:
            traceback.print_exception(error)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    os._exit(exit_code(error))


def exit_code(error: BaseException | None) -> int:
    """Exit code of a process that ends with `error` (design: 'Exit codes')."""
    if isinstance(error, errors.UserError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 0 if error is None else 1


def is_primary() -> bool:
    """Whether this process writes the run's files."""
    return jax.process_index() == 0
