"""Body of a worker process, in the simulator's own Python: plays the episodes that it is handed.

Messages, JSON in both directions over one connection (see `workers`):

    parent -> worker   the job, then episodes, then null to end
    worker -> parent   {"kind": "ready"}, {"kind": "alive"}, {"kind": "row", "row": ...},
                       {"kind": "error", "text": ...}, {"kind": "fatal", "error": ...}
"""

import contextlib
import dataclasses
import json
import multiprocessing.connection
import os
import pathlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from defi_rollout import client, errors, executors
from defi_rollout.benchmarks import adapters, base, child_errors, play, registry

_ALIVE_SECONDS = 1.0  # at most one sign of life in this time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker needs, besides its episodes.

    Attributes:
        benchmark: its name, or MODULE:CLASS.
        policy: URL of the policy's server; "" for the scripted expert.
        token: that the server wants.
        adapter: between both.
        output: the results' directory.
        step_seconds: longest time of one step, inference included.
    """

    benchmark: str
    policy: str
    token: str | None
    adapter: adapters.Adapter
    output: str
    step_seconds: float


def main(arguments: Sequence[str]) -> int:
    """Plays until the parent ends it.

    Args:
        arguments: file descriptor of the connection to the parent.
    """
    # What a simulator prints belongs to the log.
    os.dup2(2, 1)
    connection = multiprocessing.connection.Connection(int(arguments[0]))

    def send(kind: str, **content: Any) -> None:
        connection.send_bytes(json.dumps({"kind": kind, **content}, allow_nan=False).encode())

    try:
        entries = json.loads(connection.recv_bytes())
        job = Job(**{**entries, "adapter": adapters.from_json(entries["adapter"])})
        with _policy(job) as make_actor:
            send("ready")
            _play_all(job, make_actor, connection, send)
    except errors.UserError as error:
        send("fatal", error=child_errors.encode(error))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass  # the parent is gone
    os._exit(0)  # some simulators crash while they end


@contextlib.contextmanager
def _policy(job: Job) -> Iterator[Callable[[base.Environment], executors.Actor]]:
    """What makes the actor of an environment."""
    if not job.policy:
        yield play.Expert
        return
    with client.Client(job.policy, token=job.token, infer_timeout=job.step_seconds) as policy:
        yield lambda environment: policy


def _play_all(
    job: Job,
    make_actor: Callable[[base.Environment], executors.Actor],
    connection: multiprocessing.connection.Connection,
    send: Callable[..., None],
) -> None:
    benchmark = registry.get_benchmark(job.benchmark)
    alive = _throttled(lambda: send("alive"))
    environment, loaded = None, None
    while (entries := json.loads(connection.recv_bytes())) is not None:
        episode = base.Episode.from_json(entries)
        try:
            if environment is None or loaded != episode.task:
                if environment is not None:
                    environment.close()
                environment = benchmark.make_environment(episode.task, job.adapter)
                loaded = episode.task
            row = play.play(
                episode,
                actor=make_actor(environment),
                adapter=job.adapter,
                environment=environment,
                benchmark=benchmark,
                output=pathlib.Path(job.output),
                alive=alive,
            )
            send("row", row=row | {"renderer": environment.renderer()})
        except play.PolicyFault as fault:
            assert isinstance(fault.__cause__, errors.UserError)
            raise fault.__cause__ from None
        except (EOFError, ConnectionError):
            raise
        except Exception as error:  # one broken episode must not end the run; its row tells
            environment, loaded = None, None
            expected = isinstance(error, errors.UserError)
            send("error", text=str(error) if expected else traceback.format_exc())


def _throttled(call: Callable[[], None]) -> Callable[[], None]:
    last = 0.0

    def throttled() -> None:
        nonlocal last
        if time.monotonic() - last >= _ALIVE_SECONDS:
            last = time.monotonic()
            call()

    return throttled
