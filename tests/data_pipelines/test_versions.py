import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.open_x import registry
from tests.fixtures import make_versions


def test_what_makes_something_else_has_another_version():
    recorded, now = json.loads(make_versions.PATH.read_text()), make_versions.made_now()
    found = make_versions.changed(recorded, now)
    assert not found, "these make other episodes than before: raise their `version`"
    assert recorded == now, "record it: python -m tests.fixtures.make_versions"


@pytest.mark.parametrize("raised", [False, True])
def test_another_result_wants_another_number(monkeypatch, raised):
    recorded = json.loads(make_versions.PATH.read_text())
    known = registry.standards("")
    toto = known["toto"]

    def finish(trajectory):
        return dataclasses.replace(trajectory, actions=np.flip(trajectory.actions, axis=0))

    other = dataclasses.replace(toto, finish=finish, version=toto.version + raised)
    monkeypatch.setattr(registry, "standards", lambda own_file="": {**known, "toto": other})
    found = make_versions.changed(recorded, make_versions.made_now())
    assert found == ([] if raised else ["standards toto"])
