import copy

import numpy as np
import pytest
from defi_rollout import bundle, errors, spec


@pytest.fixture
def document(tiny_bundle):
    return bundle.read_bundle(tiny_bundle).spec.to_json()


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("action_horizon",), "5", "action_horizon"),
        (("action_horizon",), True, "action_horizon"),
        (("execute_horizon",), 6, "execute_horizon"),
        (("control_hz",), float("nan"), "control_hz"),
        (("action_spec", "low"), [0.0], "action_spec.low"),
        (("action_spec", "low"), [1.0] * 4, "action_spec"),
        (("action_statistics", "scale"), [1.0] * 3, "action_statistics.scale"),
        (("cameras",), [], "camera"),
        (("cameras",), {}, "cameras"),
        (("image", "resize"), "nearest", "image.resize"),
        (("text", "goal", "name"), "words", "text"),
        (("text", "goal", "file"), "a.json", "text"),
        (("noise", "actions"), [-1], "noise.actions"),
        (("schema_version",), 2, "schema version"),
    ],
)
def test_wrong_value_is_named(document, path, value, named):
    broken = copy.deepcopy(document)
    node = broken
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(errors.BundleError, match=named):
        spec.BundleSpec.from_json(broken)


def test_missing_and_unknown_fields_are_named(document):
    with pytest.raises(errors.BundleError, match="missing control_hz"):
        spec.BundleSpec.from_json({k: v for k, v in document.items() if k != "control_hz"})
    with pytest.raises(errors.BundleError, match="unknown colour"):
        spec.BundleSpec.from_json(document | {"colour": 1})


def test_unnormalise_scales_shifts_and_clips(document):
    document["action_spec"] |= {"low": [-1.0] * 4, "high": [1.0, 1.0, 1.0, 0.5]}
    document["action_statistics"] |= {"scale": [2.0, 1, 1, 1], "offset": [0.5, 0, 0, 0]}
    actions = np.array([[0.1, 0.2, -3.0, 0.9]])
    real = spec.BundleSpec.from_json(document).unnormalise(actions)
    np.testing.assert_allclose(real, [[0.7, 0.2, -1.0, 0.5]], rtol=1e-6)
    assert real.dtype == np.float32


def test_another_version_is_told_before_its_fields(document):
    del document["noise"]
    with pytest.raises(errors.BundleError, match="schema version 9, this package reads 1"):
        spec.BundleSpec.from_json(document | {"schema_version": 9, "modality": "touch"})
