import json

import pytest
import safetensors.numpy
from defi_rollout import bundle, main


def test_inspect_prints_one_json_object(tiny_bundle, capsys):
    assert main.main(["inspect", str(tiny_bundle), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["action_horizon"] == 5 and document["num_training_starts"] == 3


def test_damaged_bundle_is_one_line_and_exit_65(tiny_bundle, capsys):
    (tiny_bundle / bundle.PARAMS).write_bytes(b"oops")
    assert main.main(["inspect", str(tiny_bundle)]) == 65
    captured = capsys.readouterr()
    assert captured.err.startswith("error: damaged") and captured.err.count("\n") == 1
    assert bundle.PARAMS in captured.err and not captured.out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["inspect"],
        ["inspect", "nowhere"],
        ["evaluate", "BUNDLE", "--output=out"],
        ["evaluate", "BUNDLE", "--benchmark=chess", "--output=out"],
        ["evaluate", "BUNDLE", "--benchmark=metaworld", "--output=out", "--episodes=0"],
        ["evaluate", "BUNDLE", "--benchmark=metaworld", "--output=out", "--episodes=many"],
        ["evaluate", "BUNDLE", "--benchmark=metaworld", "--output=out", "--tasks=chess-v3"],
        ["evaluate", "BUNDLE", "--benchmark=metaworld", "--output=out", "--adapter=nowhere"],
        ["evaluate", "BUNDLE", "--benchmark=no_module:Benchmark", "--output=out"],
        ["setup", "chess"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(tiny_bundle, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    arguments = [str(tiny_bundle) if word == "BUNDLE" else word for word in arguments]
    assert main.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_doctor_fails_on_an_example_that_differs(tiny_bundle, reseal, capsys):
    example = safetensors.numpy.load_file(tiny_bundle / bundle.EXAMPLE)
    example["expected/actions"] += 0.1
    safetensors.numpy.save_file(example, tiny_bundle / bundle.EXAMPLE)
    reseal(tiny_bundle)
    assert main.main(["doctor", str(tiny_bundle), "--json"]) == 1
    checks = {c["name"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["bundle files"]["ok"] and not checks["bundle policy"]["ok"]


def test_doctor_without_a_bundle_checks_the_machine(capsys):
    assert main.main(["doctor"]) == 0
    assert "devices" in capsys.readouterr().out
