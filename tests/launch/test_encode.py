"""launch/data.py encode as a user types it: one process, two processes, bad input."""

import json
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.store import writer as store_writer

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stores") / "a"
    rng = np.random.default_rng(0)
    with store_writer.EpisodeWriter(directory, source="a") as writer:
        for number in range(3):
            frames = [
                image.encode_jpeg(rng.integers(0, 255, (40, 60, 3), np.uint8)) for _ in range(5)
            ]
            writer.write(
                episodes.Episode(
                    episode_id=f"a-{number}",
                    source="a",
                    embodiment="human",
                    instructions=(f"do {number}", "do"),
                    frames={"static": frames},
                    actions=None,
                    states=None,
                    fps=5.0,
                )
            )
    return directory


def _start(store, output, *more, **environ):
    command = [
        sys.executable,
        "launch/data.py",
        "encode",
        "--config=configs/gfdm.py:tiny",
        f"--store={store}",
        f"--output={output}",
        "--frames_per_device=4",
        *more,
    ]
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'rollout'}", "PATH": "", "JAX_PLATFORMS": "cpu"} | environ
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _finish(processes):
    output = [process.communicate(timeout=200) for process in processes]
    return [process.returncode for process in processes], output


def _bytes(directory):
    return {path.name: path.read_bytes() for path in (directory / "a").glob("[!.]*")}


def test_two_processes_write_what_one_does(store, tmp_path, free_port):
    codes, output = _finish([_start(store, tmp_path / "one", "--json")])
    assert codes == [0], output
    assert json.loads(output[0][0])["caches"]["a"]["frames"] == 15
    address = f"127.0.0.1:{free_port}"
    codes, output = _finish(
        [
            _start(
                store,
                tmp_path / "two",
                JAX_COORDINATOR_ADDRESS=address,
                JAX_COORDINATOR_BIND_ADDRESS=address,
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(number),
                DEFI_HEARTBEAT_SECONDS="300",  # other tests take the cores
            )
            for number in range(2)
        ]
    )
    assert codes == [0, 0], output
    assert _bytes(tmp_path / "two") == _bytes(tmp_path / "one")


def test_several_devices_encode_the_same_latents(store, tmp_path):
    flags = "--xla_force_host_platform_device_count=2"
    codes, output = _finish(
        [_start(store, tmp_path / "one"), _start(store, tmp_path / "many", XLA_FLAGS=flags)]
    )
    assert codes == [0, 0], output
    assert _bytes(tmp_path / "many") == _bytes(tmp_path / "one")


def test_bad_input_is_one_line_and_leaves_nothing(store, tmp_path):
    for more, text in (
        (["--config.data.cameras=('wrist',)"], "no episode has the cameras wrist"),
        (["--dtype=int8"], "flag --dtype=int8: value should be one of"),
    ):
        ((code,), ((stdout, stderr),)) = _finish([_start(store, tmp_path / "c", *more)])
        assert code in (2, 65) and stdout == "" and f"error: {text}" in stderr, stderr
        assert "Traceback" not in stderr
    assert not (tmp_path / "c").exists()


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
