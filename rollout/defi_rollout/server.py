"""A policy behind openpi's websocket protocol, so that robots' existing clients connect unchanged.

The server speaks first (its metadata), then each binary message is an observation and is answered
by a result; an error is a text message. All inference runs in the batcher's thread: pings and
`/healthz` are answered meanwhile. Addresses: `/healthz` says "OK", `/metrics` is for Prometheus.
"""

import asyncio
import concurrent.futures
import ctypes
import dataclasses
import gc
import hmac
import http
import ipaddress
import logging
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import websockets.exceptions
from websockets.asyncio import server as websocket

from defi_rollout import batching, client, connections, errors, noise, wire
from defi_rollout import bundle as bundle_lib

if TYPE_CHECKING:
    from defi_rollout import policy

MEBIBYTE = 1 << 20
_CONTROL = "__ctrl__"  # of newer openpi clients
_GOING_AWAY, _INTERNAL_ERROR = 1001, 1011
_LOBBY_PLACES = 64  # for connections that are no robots

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to serve.

    Attributes:
        host: address to listen at.
        port: 0 for any free one.
        token: that clients must send as `Authorization: Api-Key TOKEN`; None: none is wanted.
        max_connections: of robots; more are refused with 503.
        max_message_bytes: a longer message ends its connection.
        handshake_seconds: a connection that is no robot or answered by then is ended.
        send_seconds: so is one that does not read its answer.
        idle_seconds: and one that sends no whole message.
        drain_seconds: what a stopping server waits for calls in progress.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    max_connections: int = 64
    max_message_bytes: int = 32 * MEBIBYTE
    handshake_seconds: float = 10.0
    send_seconds: float = 10.0
    idle_seconds: float = 3600.0
    drain_seconds: float = 30.0

    def __post_init__(self):
        if self.token is None and not _is_loopback(self.host):
            raise errors.UserError(
                "whoever reaches this address could move the robot",
                f"--host={self.host}",
                "give --token_file=FILE",
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server:
    """Serves one policy until it is stopped.

    Args:
        batcher: runs the policy; its first calls are compiled already.
        metadata: first message of each connection.
        options: where and how.
    """

    def __init__(
        self, batcher: batching.Batcher, metadata: Mapping[str, Any], options: Options | None = None
    ):
        self._batcher, self._metadata = batcher, wire.pack(dict(metadata))
        self._options = options or Options()
        self._stopping = asyncio.Event()
        self._connections = 0
        self._lobby = connections.Lobby(_LOBBY_PLACES)
        self._counts = {"requests": 0, "refused": 0, "failed": 0}

    async def run(self, listening: Callable[[int], None] = lambda port: None) -> None:
        """Serves until `stop`; then finishes the calls in progress.

        Args:
            listening: called with the port once robots can connect.

        Raises:
            UserError: the address cannot be listened at.
        """
        options = self._options
        where, fix = f"{options.host}:{options.port}", "choose another --port"

        def connect(*arguments: Any, **how: Any) -> connections.Connection:
            return connections.Connection(self._lobby, *arguments, **how)

        with errors.UserError.instead_of(OSError, "cannot listen", where, fix):
            listener = await websocket.serve(
                self._handle,
                options.host,
                options.port,
                process_request=self._answer_http,
                create_connection=cast(Any, connect),
                open_timeout=options.handshake_seconds,
                close_timeout=options.handshake_seconds,
                compression=None,
                max_size=options.max_message_bytes,
                max_queue=2,
            )
        listening(next(iter(listener.sockets)).getsockname()[1])
        await self._stopping.wait()
        listener.close(close_connections=False)
        try:
            await asyncio.wait_for(listener.wait_closed(), options.drain_seconds)
        except TimeoutError:
            _log.warning("calls still in progress after %g s are given up", options.drain_seconds)

    def stop(self) -> None:
        """Ends `run`; call it in the event loop's thread."""
        self._stopping.set()

    def _answer_http(self, connection: Any, request: Any) -> Any:
        """Answers what is no websocket, and refuses whom we do not serve."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        token = self._options.token
        given = request.headers.get("Authorization", "")
        wanted = f"Api-Key {token}".encode()
        if token is not None and not hmac.compare_digest(given.encode(), wanted):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "send the server's token\n")
        if request.path == "/metrics":
            return connection.respond(http.HTTPStatus.OK, self._metrics())
        if self._connections >= self._options.max_connections:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many robots\n")
        return None

    async def _handle(self, connection: websocket.ServerConnection) -> None:
        self._lobby.leave(connection)
        self._connections += 1
        try:
            await self._converse(connection)
        except websockets.exceptions.ConnectionClosed:
            pass
        except TimeoutError:  # it does not read
            connection.transport.abort()
        finally:
            self._connections -= 1
            if not connection.transport.is_closing():
                self._lobby.enter(connection)

    async def _converse(self, connection: websocket.ServerConnection) -> None:
        agent = connection.request.headers.get("User-Agent", "") if connection.request else ""
        keeps_errors = agent.startswith(client.USER_AGENT)
        own_noise = noise.NoiseSequence()
        previous: float | None = None
        await self._send(connection, self._metadata)
        while (message := await self._next(connection)) is not None:
            started = time.perf_counter()
            self._counts["requests"] += 1
            try:
                answer = await self._infer(message, own_noise)
            except errors.UserError as error:
                self._counts["refused"] += 1
                said = str(error)
            except Exception:
                self._counts["failed"] += 1
                number = uuid.uuid4().hex[:8]
                _log.exception("failure %s", number)
                said = f"internal error; the server's log says more: {number}"
            else:
                timing = {"infer_ms": answer.get("policy_timing", {}).get("infer_ms", 0.0)}
                if previous is not None:
                    timing["prev_total_ms"] = 1000 * previous
                await self._send(connection, wire.pack({**answer, "server_timing": timing}))
                previous = time.perf_counter() - started
                continue
            await self._send(connection, said)
            if not keeps_errors:
                code, reason = _INTERNAL_ERROR, "the error is in the frame before"
                break
        else:
            code, reason = _GOING_AWAY, "the server is stopping, or nothing was sent"
        async with asyncio.timeout(self._options.send_seconds):
            await connection.close(code, reason)

    async def _send(self, connection: websocket.ServerConnection, message: str | bytes) -> None:
        """Raises TimeoutError where the other end does not read; nothing more can be sent then."""
        async with asyncio.timeout(self._options.send_seconds):
            await connection.send(message)

    async def _next(self, connection: websocket.ServerConnection) -> str | bytes | None:
        """The next message; None when the server stops or nothing comes for long."""
        receive = asyncio.ensure_future(connection.recv())
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait(
                (receive, stop),
                timeout=self._options.idle_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            return receive.result() if receive.done() else None
        finally:
            receive.cancel()
            stop.cancel()

    async def _infer(self, message: str | bytes, own_noise: noise.NoiseSequence) -> dict[str, Any]:
        if isinstance(message, str):
            raise errors.UserError("a text message", "message", "send msgpack in binary ones")
        obs = wire.unpack(message)
        if isinstance(obs, dict) and _CONTROL in obs:
            if obs[_CONTROL] == "reset":
                own_noise.reset()
            return {_CONTROL: obs[_CONTROL]}
        answer: concurrent.futures.Future = self._batcher.submit(obs, own_noise)
        return await asyncio.wrap_future(answer)

    def _metrics(self) -> str:
        """Prometheus' text format."""
        values = {
            **{f"{name}_total": count for name, count in self._counts.items()},
            "connections": self._connections,
            "waiting": self._batcher.num_waiting,
            "calls_total": self._batcher.calls,
            "rows_total": self._batcher.rows,
            "call_seconds_total": self._batcher.seconds,
        }
        lines = []
        for name, value in values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE defi_rollout_{name} {kind}", f"defi_rollout_{name} {value}"]
        return "\n".join(lines) + "\n"


async def alone(serving: Awaitable[None]) -> None:
    """Awaits what is all that this process does: what is loaded stays, and is not searched again.

    Closed connections are cycles, which hold their last messages until they are searched for; and
    C's heap keeps the room of the largest messages, full of holes, until it is told otherwise.
    """
    gc.collect()
    gc.freeze()
    return_free_pages = getattr(ctypes.CDLL(None), "malloc_trim", int)  # only glibc has it
    task = asyncio.ensure_future(serving)
    while not (await asyncio.wait((task,), timeout=1.0))[0]:
        if gc.collect():
            return_free_pages(0)
    task.result()


def serve(bundle: str, options: Options, *, max_batch: int = 8) -> None:
    """Loads a bundle, compiles its policy for all batch sizes, and serves it until SIGTERM.

    Raises:
        UserError: no such bundle, or the address cannot be listened at.
        BundleError: the bundle is damaged or refused.
    """
    loaded = load(bundle_lib.read_bundle(bundle), max_batch)
    batcher = batching.Batcher(loaded, max_rows=max_batch)
    try:
        asyncio.run(_serve_until_signal(batcher, loaded.metadata, options))
    finally:
        batcher.close()


def load(source: bundle_lib.Bundle, max_batch: int) -> "policy.Policy":
    """Returns the policy of a bundle, compiled for all batch sizes up to `max_batch`.

    Raises:
        BundleError: the bundle is damaged or refused.
    """
    from defi_rollout import policy  # jax, which a server of another policy does not need

    loaded = policy.Policy(source)
    for size in batching.batch_sizes(max_batch):
        started = time.perf_counter()
        loaded.run(loaded.example_inputs(size))
        _log.info("compiled for batches of %d in %.1f s", size, time.perf_counter() - started)
    return loaded


async def _serve_until_signal(
    batcher: batching.Batcher, metadata: Mapping[str, Any], options: Options
) -> None:
    server = Server(batcher, metadata, options)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    said = "listening at ws://%s:%d"
    await alone(server.run(lambda port: _log.info(said, options.host, port)))
