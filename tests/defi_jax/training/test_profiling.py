import os
import signal

import jax.numpy as jnp
import toy_run
from etils import epath

from defi_jax.training import loop, profiling, watchdog


def test_a_window_starts_when_asked_or_due_and_ends_after_its_steps(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(profiling.jax.profiler, "start_trace", lambda where: calls.append("start"))
    monkeypatch.setattr(profiling.jax.profiler, "stop_trace", lambda: calls.append("stop"))
    window = profiling.Window(epath.Path(tmp_path), 3, 2)
    for now in range(12):
        calls.append(now)
        if window.is_due(now, now in (4, 8, 11)):  # 4: one is open already
            window.turn(now, jnp.ones(()))
    window.close()
    window.close()
    said = " ".join(map(str, calls))
    assert said == "0 1 2 3 start 4 5 stop 6 7 8 start 9 10 stop 11 start stop"


def test_a_signal_traces_steps_into_the_workdir(tmp_path):
    def on_batch(position):
        if position == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    config = toy_run.config(steps=4, profile_steps=1, save_every=0)
    loader = toy_run.make_loader(on_batch=on_batch)
    loop.train(config, toy_run.ToyObjective(hidden=8), loader, tmp_path / "run")
    assert list((tmp_path / "run/logs/profile").rglob("*.xplane.pb"))


def test_the_signals_old_handler_comes_back(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    with watchdog.Supervisor(str(tmp_path)) as watch:
        assert not watch.profile_asked()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert watch.profile_asked() and not watch.profile_asked()
        assert not watch.should_stop(0)
    assert signal.getsignal(signal.SIGUSR1) is before
