"""Two processes as hosts of their own, in network namespaces, and the link between them."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from defi_jax.training import metrics

REPO = pathlib.Path(__file__).parents[3]
SCRIPT = pathlib.Path(__file__).parent / "toy_run.py"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
CUT_SECONDS, PATIENCE_SECONDS = 5, 20  # the heartbeat: other tests take the cores for seconds
pytestmark = pytest.mark.slow


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def hosts(tmp_path):
    """Names of two namespaces with a link, `eth`, between them."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    names = [f"defi{os.getpid()}{letter}" for letter in "ab"]
    made = ip("netns", "add", names[0])
    if made.returncode:
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
    ip("netns", "add", names[1])
    ip("link", "add", "eth", "netns", names[0], "type", "veth", "peer", "eth", "netns", names[1])
    files = [pathlib.Path("/etc/netns") / name for name in names]
    for name, address, folder in zip(names, ADDRESSES, files, strict=True):
        folder.mkdir(parents=True)  # `ip netns exec` puts it over /etc: what a host calls itself
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {os.uname().nodename}\n")
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth")
        for device in ("lo", "eth"):
            ip("-n", name, "link", "set", device, "up")
    yield names
    for name, folder in zip(names, files, strict=True):
        ip("netns", "del", name)
        shutil.rmtree(folder)


def start(hosts, workdir):
    """The toy, endless for a test, on each host."""
    options = {"steps": 100_000, "save_every": 100_000, "log_every": 1, "step_timeout": 120.0}
    options["loader"] = {"seconds": 0.1}
    for number, host in enumerate(hosts):
        command = [sys.executable, str(SCRIPT), str(workdir), json.dumps(options)]
        yield subprocess.Popen(
            ["ip", "netns", "exec", host, *command],
            env=os.environ
            | {
                "PYTHONPATH": f"{REPO}:{REPO / 'rollout'}",
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "",
                "JAX_COORDINATOR_ADDRESS": f"{ADDRESSES[0]}:4711",
                "JAX_COORDINATOR_BIND_ADDRESS": f"{ADDRESSES[0]}:4711",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(number),
                "DEFI_HEARTBEAT_SECONDS": str(PATIENCE_SECONDS),
            },
            stderr=subprocess.PIPE,
            text=True,
        )


def wait_for_steps(processes, workdir, count):
    """Waits until the run, not ended, has gone so many steps further; returns the last one."""
    first, until = None, time.monotonic() + 240
    while time.monotonic() < until and all(one.poll() is None for one in processes):
        step = metrics.last(metrics.read(workdir / metrics.FILE), "train").get("step", 0)
        first = step if first is None else first
        if step >= first + count:
            return step
        time.sleep(0.2)
    raise AssertionError([one.communicate()[1] for one in processes if one.poll() is not None])


def test_a_run_outlives_a_link_that_comes_back_and_ends_with_one_that_does_not(hosts, tmp_path):
    processes = list(start(hosts, tmp_path / "run"))
    try:
        wait_for_steps(processes, tmp_path / "run", 3)
        ip("-n", hosts[0], "link", "set", "eth", "down")
        time.sleep(CUT_SECONDS)
        ip("-n", hosts[0], "link", "set", "eth", "up")
        wait_for_steps(processes, tmp_path / "run", 20)
        ip("-n", hosts[0], "link", "set", "eth", "down")
        for process in processes:
            _, log = process.communicate(timeout=240)
            lines = [line for line in log.splitlines() if line.startswith("error: ")]
            assert process.returncode == 77 and len(lines) == 1, log
            assert "no sign of life" in lines[0] or "was lost" in lines[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
