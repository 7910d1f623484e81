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
