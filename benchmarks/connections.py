"""What a policy server keeps of connections that mean no good; by hand.

    python benchmarks/connections.py [--connections=1000] [--at_once=250] [--rounds=6]

A server in a process of its own answers a robot all the time, while connections of every kind in
`KINDS` come and go: so many a round, so many of them open at the same time. Its memory is read
after each round; the first two show what its largest messages need, and are the measure of the
others. Results stand in docs/benchmarks.md.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import pathlib
import random
import re
import socket
import statistics
import struct
import threading
import time

import numpy as np
from absl import app, flags
from defi_rollout import batching, client, server, wire

MESSAGE_BYTES = 2 << 20  # largest that the server takes
TIMEOUT = 1.0  # seconds of every limit of the server
_PATIENCE = 30 * TIMEOUT  # then a connection counts as kept by the server
_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_PING, _BINARY = 0x89, 0x82

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


class Immediate:
    """A policy that costs nothing and says much."""

    def prepare(self, obs, noise, max_rows):
        """Takes any observation."""
        del noise, max_rows
        return {"x": np.float32(obs["x"]).reshape(1, 1)}, False

    def run(self, inputs):
        """Returns what was asked, as a chunk of 40 kB."""
        return np.tile(inputs["x"][:, None], (1, 10, 1000))


def frame(opcode: int, content: bytes, claimed: int | None = None) -> bytes:
    """A websocket's frame of a client; `claimed` is the length that it pretends."""
    length = len(content) if claimed is None else claimed
    if length < 126:
        head = bytes([opcode, 0x80 | length])
    else:
        head = bytes([opcode, 0xFF]) + struct.pack(">Q", length)
    return head + bytes(4) + content  # the mask of zeros changes nothing


async def _silent(reader: Reader, writer: Writer) -> None:
    await reader.read()


async def _slow_handshake(reader: Reader, writer: Writer) -> None:
    for byte in _UPGRADE[:-2]:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(TIMEOUT / 10)


async def _giant_header(reader: Reader, writer: Writer) -> None:
    writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * MESSAGE_BYTES)
    await writer.drain()
    await reader.read()


async def _no_websocket(reader: Reader, writer: Writer) -> None:
    writer.write(random.randbytes(2000))
    await writer.drain()
    await reader.read()


async def _page_not_read(reader: Reader, writer: Writer) -> None:
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.sleep(2 * TIMEOUT)


async def _malformed(reader: Reader, writer: Writer) -> None:
    await _open(reader, writer)
    writer.write(frame(_BINARY, random.randbytes(5000)))
    await reader.read()


async def _bomb(reader: Reader, writer: Writer) -> None:
    """A message of a megabyte that stands for a million lists."""
    await _open(reader, writer)
    row = struct.pack(">BH", 0xDC, 4096) + b"\x90" * 4096
    writer.write(frame(_BINARY, struct.pack(">BH", 0xDC, 256) + row * 256))
    await reader.read()


async def _oversized(reader: Reader, writer: Writer) -> None:
    await _open(reader, writer)
    writer.write(frame(_BINARY, bytes(MESSAGE_BYTES), 8 * MESSAGE_BYTES))
    await writer.drain()
    await reader.read()


async def _largest(reader: Reader, writer: Writer) -> None:
    await _open(reader, writer)
    message = wire.pack({"x": 1, "image": np.zeros(MESSAGE_BYTES - 200, np.uint8)})
    writer.write(frame(_BINARY, message))
    await reader.read(1)


async def _stalled(reader: Reader, writer: Writer) -> None:
    await _open(reader, writer)
    writer.write(frame(_BINARY, bytes(MESSAGE_BYTES // 2), MESSAGE_BYTES))
    await writer.drain()
    await reader.read()


async def _trickling(reader: Reader, writer: Writer) -> None:
    await _open(reader, writer)
    writer.write(frame(_BINARY, b"", 1000))
    while not writer.transport.is_closing():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(TIMEOUT / 10)


async def _answers_not_read(reader: Reader, writer: Writer) -> None:
    await _open(reader, writer)
    while not writer.transport.is_closing():
        writer.write(frame(_BINARY, wire.pack({"x": 1})) * 100)
        await writer.drain()


async def _pongs_not_read(reader: Reader, writer: Writer) -> None:
    await _open(reader, writer)
    while not writer.transport.is_closing():
        writer.write(frame(_PING, b"x" * 125) * 1000)
        await writer.drain()


async def _vanishing(reader: Reader, writer: Writer) -> None:
    await _open(reader, writer)
    own = writer.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


KINDS = {
    kind.__name__[1:]: kind
    for kind in (
        *(_silent, _slow_handshake, _giant_header, _no_websocket, _page_not_read),
        *(_malformed, _bomb, _oversized, _largest, _stalled, _trickling),
        *(_answers_not_read, _pongs_not_read, _vanishing),
    )
}


async def _open(reader: Reader, writer: Writer) -> None:
    writer.write(_UPGRADE)
    answer = await reader.readuntil(b"\r\n\r\n")
    if b" 101 " not in answer.split(b"\r\n")[0]:
        raise ConnectionRefusedError(answer.split(b"\r\n")[0].decode())


async def _connect(port: int, name: str) -> str:
    """Returns how one connection ended: "ended", "refused" (no room) or "kept" by the server."""
    try:
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what is not read stays there
        own.setblocking(False)
        await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=own, limit=1 << 12)
    except OSError:
        return "refused"
    try:
        await asyncio.wait_for(KINDS[name](reader, writer), _PATIENCE)
    except TimeoutError:
        return "kept"
    except ConnectionRefusedError:
        return "refused"
    except (OSError, asyncio.IncompleteReadError):
        return "ended"
    finally:
        writer.transport.abort()
    return "ended"


async def _round(port: int, names: list[str], at_once: int) -> collections.Counter:
    places = asyncio.Semaphore(at_once)

    async def one(name: str) -> str:
        async with places:
            return f"{name} {await _connect(port, name)}"

    return collections.Counter(await asyncio.gather(*map(one, names)))


@dataclasses.dataclass(kw_only=True)
class Result:
    """What was measured.

    Attributes:
        memory_mib: of the server, resident: before, and after each round.
        peak_mib: its largest so far.
        ends: kind and end of the connections -> how many.
        robot_calls: answers that the robot got meanwhile.
        robot_median_ms: of its calls.
        robot_slowest_ms: of its calls.
    """

    memory_mib: list[float]
    peak_mib: float
    ends: dict[str, int]
    robot_calls: int
    robot_median_ms: float
    robot_slowest_ms: float

    @property
    def growth(self) -> float:
        """The highest memory of the later rounds beside the second one's, minus 1."""
        return max(self.memory_mib[3:]) / self.memory_mib[2] - 1


def run(connections: int, *, at_once: int, rounds: int, seed: int = 0) -> Result:
    """Serves a robot and, in each round, so many connections of all kinds.

    Raises:
        ClientError: the robot was not answered.
    """
    names = [list(KINDS)[number % len(KINDS)] for number in range(connections)]
    rng, ends = random.Random(seed), collections.Counter()
    context = multiprocessing.get_context("spawn")
    with (
        _serving(context, at_once) as (port, process),
        concurrent.futures.ProcessPoolExecutor(1, context) as pool,
    ):
        done = context.Manager().Event()
        robot = pool.submit(_drive, port, done)
        memory = [_memory(process.pid, "VmRSS")]
        for _ in range(rounds):
            rng.shuffle(names)
            ends += asyncio.run(_round(port, names, at_once))
            time.sleep(3 * TIMEOUT)  # what is being closed
            memory.append(_memory(process.pid, "VmRSS"))
        done.set()
        times = robot.result()
        with client.Client(f"127.0.0.1:{port}") as another:
            another.infer({"x": 1})
        return Result(
            memory_mib=[round(value, 1) for value in memory],
            peak_mib=round(_memory(process.pid, "VmHWM"), 1),
            ends=dict(sorted(ends.items())),
            robot_calls=len(times),
            robot_median_ms=round(statistics.median(times), 1),
            robot_slowest_ms=round(max(times), 1),
        )


def _drive(port: int, done: threading.Event) -> list[float]:
    """Milliseconds of each call of a robot."""
    times = []
    with client.Client(f"127.0.0.1:{port}") as robot:
        while not done.wait(0.02):
            started = time.perf_counter()
            robot.infer({"x": 1})
            times.append(1000 * (time.perf_counter() - started))
    return times


def _memory(pid: int, name: str) -> float:
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", text)
    return int(kilobytes) / 1024


@contextlib.contextmanager
def _serving(context, max_connections: int):
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(max_connections, theirs), daemon=True)
    process.start()
    yield ours.recv(), process
    process.terminate()
    process.join()


def _serve(max_connections: int, pipe) -> None:
    names = ("handshake_seconds", "send_seconds", "idle_seconds")
    options = server.Options(
        port=0,
        max_connections=max_connections,
        max_message_bytes=MESSAGE_BYTES,
        **dict.fromkeys(names, TIMEOUT),
    )
    serving = server.Server(batching.Batcher(Immediate()), {"bundle": "benchmark"}, options)
    asyncio.run(server.alone(serving.run(pipe.send)))  # as `serve` does


flags.DEFINE_integer("connections", 1000, "Of each round.", 1)
flags.DEFINE_integer("at_once", 250, "Open at the same time.", 1)
flags.DEFINE_integer("rounds", 6, "The first two warm up.", 3)


def main(_) -> None:
    """Prints the figures as JSON."""
    values = flags.FLAGS
    result = run(values.connections, at_once=values.at_once, rounds=values.rounds)
    growth = {"growth": round(result.growth, 4)}
    print(json.dumps(dataclasses.asdict(result) | growth, indent=1))


if __name__ == "__main__":
    app.run(main)
