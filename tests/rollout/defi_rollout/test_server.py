"""The policy server, over real sockets.

`Slow` (policy_servers.py) stands in for a policy where a test needs calls of a known time or that
fail; the real bundle is served beside it, by the real command.
"""

import concurrent.futures
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import websockets.exceptions
from defi_rollout import client, connections, errors, noise, server, wire
from policy_servers import Slow, serving
from websockets.sync import client as websocket

ROOT = pathlib.Path(__file__).parents[3]


def stock(port, **headers):
    """A connection as openpi-client 0.1.2 makes it."""
    return websocket.connect(
        f"ws://127.0.0.1:{port}", compression=None, max_size=None, additional_headers=headers
    )


def get(port, path="/healthz", **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.status, answer.read().decode()


def test_speaks_first_then_answers_in_lock_step():
    with serving(Slow()) as port, stock(port) as robot:
        assert wire.unpack(robot.recv()) == {"bundle": "b", "action_horizon": 5}
        for call in range(2):
            robot.send(wire.pack({"x": 7}))
            answer = wire.unpack(robot.recv())
            np.testing.assert_array_equal(answer["actions"][0], [0, call, 0, 7])
            assert answer["actions"].dtype == np.float32
            assert answer["policy_timing"]["infer_ms"] >= 0
            assert ("prev_total_ms" in answer["server_timing"]) == (call > 0)


def test_health_and_pings_are_answered_during_a_call():
    with serving(Slow()) as port, stock(port) as robot:
        robot.recv()
        robot.send(wire.pack({"x": 1, "sleep": 2.0}))
        time.sleep(0.2)
        started = time.monotonic()
        assert get(port) == (200, "OK\n")
        assert robot.ping().wait(5)
        assert time.monotonic() - started < 1
        assert wire.unpack(robot.recv())["actions"].shape == (5, 4)


def test_an_error_is_one_text_and_closes_a_stock_connection_only(caplog):
    with serving(Slow()) as port:
        with stock(port) as robot:
            robot.recv()
            robot.send(wire.pack({"y": 1}))
            assert robot.recv() == "lacks ['x']: observation; send x"
            with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
                robot.recv()
            assert closed.value.rcvd.code == 1011
        with client.Client(f"127.0.0.1:{port}") as ours:
            with pytest.raises(client.ServerError, match="lacks"):
                ours.infer({"y": 1})
            assert ours.infer({"x": 1})["actions"].shape == (5, 4)
            with pytest.raises(client.ServerError, match="internal error") as told:
                ours.infer({"x": 1, "boom": 1})
            assert "secret" not in str(told.value) and "secret" in caplog.text
            assert re.search(r"[0-9a-f]{8}", str(told.value)).group() in caplog.text


def test_one_robots_failure_does_not_reach_the_others():
    model = Slow(0.05)
    with serving(model) as port, concurrent.futures.ThreadPoolExecutor(6) as pool:
        robots = [client.Client(f"127.0.0.1:{port}") for _ in range(6)]

        def act(number):
            try:
                return robots[number].infer({"x": number} | ({"boom": 1} if number == 3 else {}))
            except client.ServerError as error:
                return error

        for _ in range(3):
            answers = list(pool.map(act, range(6)))
            assert isinstance(answers.pop(3), client.ServerError)
            assert [int(one["actions"][0, 3]) for one in answers] == [0, 1, 2, 4, 5]
        for robot in robots:
            robot.close()
    assert max(model.sizes) > 1 and set(model.sizes) <= {1, 2, 4, 8}


def test_each_connection_has_a_noise_sequence_of_its_own():
    with serving(Slow()) as port:
        one, two = (client.Client(f"127.0.0.1:{port}") for _ in range(2))
        with one, two:
            calls = [int(who.infer({"x": 0})["actions"][0, 1]) for who in (one, two, one, two)]
            assert calls == [0, 0, 1, 1]
            one.reset(seed=9)
            np.testing.assert_array_equal(one.infer({"x": 0})["actions"][0], [9, 0, 0, 0])
            assert one.infer({"x": 0})["actions"][0, 1] == 1


def test_token_is_wanted_from_all_but_health_checks():
    with serving(Slow(), token="secret") as port:
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": "secret"}):
            with pytest.raises(websockets.exceptions.InvalidStatus, match="401"):
                stock(port, **headers)
            with pytest.raises(urllib.error.HTTPError, match="401"):
                get(port, "/metrics", **headers)
        assert get(port) == (200, "OK\n")
        with stock(port, Authorization="Api-Key secret") as robot:
            assert wire.unpack(robot.recv())["bundle"] == "b"
        with pytest.raises(errors.UserError, match="token"):
            client.Client(f"127.0.0.1:{port}", token="wrong")
        client.Client(f"127.0.0.1:{port}", token="secret").close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "robot.lan"])
def test_other_addresses_than_loopback_need_a_token(host):
    with pytest.raises(errors.UserError, match="token_file"):
        server.Options(host=host)
    server.Options(host=host, token="t")


def test_too_many_connections_and_too_long_messages_are_refused():
    with serving(Slow(), max_connections=2, max_message_bytes=1000) as port:
        with stock(port) as robot, stock(port) as other:
            robot.recv(), other.recv()
            with pytest.raises(websockets.exceptions.InvalidStatus, match="503"):
                stock(port)
            robot.send(wire.pack({"x": np.zeros(1000)}))
            with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
                robot.recv()
            assert closed.value.rcvd.code == 1009
            other.send(wire.pack({"x": 1}))
            assert wire.unpack(other.recv())["actions"].shape == (5, 4)
        with stock(port) as robot:
            robot.recv()


@pytest.mark.parametrize("message", ["text", b"", b"\xc1", wire.pack([1]), wire.pack({"x": {}})])
def test_malformed_messages_end_their_connection_only(message):
    with serving(Slow()) as port:
        with stock(port) as robot:
            robot.recv()
            robot.send(message)
            assert isinstance(robot.recv(), str)
        with client.Client(f"127.0.0.1:{port}") as ours:
            assert ours.infer({"x": 1})["actions"].shape == (5, 4)


@pytest.mark.parametrize("fragments", [1, 1000])
def test_many_messages_at_once_are_all_answered_but_few_of_them_parsed(fragments, monkeypatch):
    """Sent before any answer is read, in one piece; also each in fragments."""
    frames = []
    for number in range(2000 // fragments):
        content = wire.pack({"x": number, "text": "x" * (fragments - 1)})
        size = -(-len(content) // fragments)
        parts = [content[start : start + size] for start in range(0, len(content), size)]
        for index, part in enumerate(parts):
            opcode = (0 if index else 2) | (0x80 if part is parts[-1] else 0)
            frames.append(bytes([opcode, 0x80 | len(part)]) + bytes(4) + part)
    waiting = []
    parse = connections.websocket.ServerConnection.data_received

    def counted(self, data):
        parse(self, data)
        waiting.append(len(self.recv_messages.frames))

    monkeypatch.setattr(connections.websocket.ServerConnection, "data_received", counted)
    with serving(Slow()) as port, stock(port) as robot:
        robot.recv()
        robot.socket.sendall(b"".join(frames))
        for number in range(2000 // fragments):
            assert wire.unpack(robot.recv(5))["actions"][0, 3] == number
    assert 1 < max(waiting) < 600


def test_control_messages_of_newer_clients_are_tolerated():
    with serving(Slow()) as port, stock(port) as robot:
        robot.recv()
        for _ in range(2):
            robot.send(wire.pack({"x": 0}))
            assert wire.unpack(robot.recv())["actions"][0, 1] == 0
            robot.send(wire.pack({"__ctrl__": "reset"}))
            assert wire.unpack(robot.recv())["__ctrl__"] == "reset"


def test_a_stopping_server_finishes_the_call_and_says_good_bye():
    with serving(Slow()) as port:
        robot, idle = stock(port), stock(port)
        robot.recv(), idle.recv()
        robot.send(wire.pack({"x": 1, "sleep": 0.5}))
        time.sleep(0.1)
    assert wire.unpack(robot.recv())["actions"].shape == (5, 4)
    for connection in (robot, idle):
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            connection.recv()
        assert closed.value.rcvd.code == 1001


def test_what_is_no_robot_makes_room_for_robots():
    with serving(Slow()) as port:
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        with client.Client(f"127.0.0.1:{port}") as ours:
            assert ours.infer({"x": 1})["actions"].shape == (5, 4)
        silent[0].settimeout(5)
        assert silent[0].recv(1) == b""  # the oldest is ended
        silent[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent[-1].recv(1)
        for one in silent:
            one.close()


def test_idle_connections_are_ended():
    with serving(Slow(), idle_seconds=0.2) as port, stock(port) as robot:
        robot.recv()
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            robot.recv(timeout=5)


def test_metrics_count():
    with serving(Slow()) as port, client.Client(f"127.0.0.1:{port}") as ours:
        ours.infer({"x": 1})
        with pytest.raises(client.ServerError):
            ours.infer({})
        _, text = get(port, "/metrics")
        found = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
        counted = {name.removeprefix("defi_rollout_"): float(n) for name, n in found.items()}
        assert counted["requests_total"] == 2 and counted["refused_total"] == 1
        assert counted["calls_total"] == 1 and counted["connections"] == 1


@pytest.fixture(scope="module")
def served(pristine_bundle):
    """The real command over the real bundle; yields its port and process."""
    command = [sys.executable, "-m", "defi_rollout", "serve", str(pristine_bundle), "--port=0"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "rollout"), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [*command, "--max_batch=2"], env=env, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if found := re.search(r"listening at ws://127.0.0.1:(\d+)", line):
            break
    else:
        raise AssertionError(f"the server ended with {process.wait()}")
    yield int(found.group(1)), process
    process.kill()


def test_served_equals_in_process_drives_the_example_and_ends_on_sigterm(served, tiny, obs):
    port, process = served
    with client.Client(f"ws://127.0.0.1:{port}") as robot:
        assert robot.metadata == wire.unpack(wire.pack(tiny.metadata))
        assert robot.metadata["embodiment"] == tiny.spec.embodiment
        seeded = obs | {noise.SEED: 3}
        np.testing.assert_allclose(
            robot.infer(seeded)["actions"], tiny.infer(seeded)["actions"], atol=1e-5
        )
        robot.reset(seed=4)
        tiny.reset(seed=4)
        for _ in range(2):
            np.testing.assert_allclose(
                robot.infer(obs)["actions"], tiny.infer(obs)["actions"], atol=1e-5
            )
        with pytest.raises(client.ServerError, match="lacks"):
            robot.infer({"prompt": "go"})
    example = [sys.executable, ROOT / "rollout/examples/robot_loop.py", "--steps=3"]
    done = subprocess.run(
        [*example, f"--url=ws://127.0.0.1:{port}"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "rollout")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "done: 3 steps" in done.stdout and "held" not in done.stdout, done.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
