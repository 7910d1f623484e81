import pytest

from defi_jax.training import ledger


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ledger.time, "monotonic", lambda: now[0])
    return now


def test_every_second_counts_once(clock):
    spent = ledger.Ledger()
    clock[0] += 3
    with spent.during("compile"):
        clock[0] += 10
    spent.enter("device")
    clock[0] += 5
    with pytest.raises(KeyError), spent.during("evaluation"):
        clock[0] += 2
        raise KeyError
    spent.move(1.5, "device", "data_wait")
    clock[0] += 0.5
    seconds = spent.seconds()
    assert sum(seconds.values()) == clock[0] - 100
    assert {kind: n for kind, n in seconds.items() if n} == {
        "startup": 3,
        "compile": 10,
        "device": 4,
        "data_wait": 1.5,
        "evaluation": 2,
    }
    clock[0] += 1
    assert ledger.since(spent.seconds(), seconds)["device"] == 1


def test_a_restart_tells_lost_steps_from_time_away():
    def line(time, **seconds):
        return {"time": time, **ledger.line({}, seconds)}

    assert ledger.carried({}, {}, 50.0) == {}
    kept = line(60.0, startup=10, device=40, data_wait=2, checkpoint=3)
    last = line(100.0, startup=10, device=70, data_wait=6, checkpoint=9)
    before = ledger.carried(last, kept, began=130.0)
    assert {kind: n for kind, n in before.items() if n} == {
        "startup": 10,
        "device": 40,
        "data_wait": 2,
        "checkpoint": 9,
        "lost": 34,
        "away": 30,
    }
    after = ledger.line(before, {"startup": 5, "dispatch": 1, "device": 19})
    assert after["seconds/startup"] == 15 and after["goodput"] == (40 + 20) / 150
    # Killed again before the next checkpoint: what was lost once stays so.
    again = ledger.carried({"time": 200.0, **after}, {"time": 60.0, **kept}, began=201.0)
    assert (again["lost"], again["device"], again["away"]) == (54, 40, 31)
