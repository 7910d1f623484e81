import json
import math

import pytest
from defi_rollout import errors, main
from defi_rollout.benchmarks import comparison

PROTOCOL = {"name": "metaworld", "version": "1", "sha256": "a" * 64}


@pytest.fixture
def write(tmp_path):
    """Writes an evaluation: successes by task; one character an episode, "1" for a success."""

    def write(name, successes, protocol=PROTOCOL, start="s", **facts):
        rows = [
            {
                "id": f"{task}-{number:04d}",
                "task": task,
                "seed": number,
                "start_digest": f"{start}{number}",
                "success": mark == "1",
            }
            for task, marks in successes.items()
            for number, mark in enumerate(marks)
        ]
        (tmp_path / name).mkdir()
        document = {"protocol": protocol, "episodes": rows, **facts}
        (tmp_path / name / "results.json").write_text(json.dumps(document))
        return tmp_path / name

    return write


def test_pairs_by_hand(write):
    one = write("a", {"open": "1100", "close": "1111"})
    two = write("b", {"open": "0111", "close": "1111"})
    result = comparison.compare(one, two / "results.json")
    assert result["tasks"]["open"] == {
        "pairs": 4,
        "first": 0.5,
        "second": 0.75,
        "only_first": 1,
        "only_second": 2,
        "p_value": 1.0,
    }
    assert result["tasks"]["close"]["only_first"] == 0
    assert result["all"]["pairs"] == 8 and result["unpaired"] == 0 and result["differs"] == []


def test_p_values():
    assert comparison.p_value(0, 0) == 1
    assert comparison.p_value(0, 8) == comparison.p_value(8, 0) == 2 / 2**8
    assert math.isclose(comparison.p_value(3, 5), 2 * (1 + 8 + 28 + 56) / 2**8)
    assert comparison.p_value(4, 4) == 1


def test_other_starts_and_simulators_are_said(write, capsys):
    one = write("a", {"open": "110"}, renderer={"name": "x"}, execute_horizon=5)
    two = write("b", {"open": "11"}, renderer={"name": "y"}, execute_horizon=5)
    assert main.main(["compare", str(one), str(two)]) == 0
    said = capsys.readouterr().out
    assert "renderer differs" in said and "as only one evaluation has them: 1 episodes" in said
    assert main.main(["compare", str(one), str(two), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["pairs"] == 2
    elsewhere = write("c", {"open": "11"}, start="t")
    with pytest.raises(errors.UserError, match="no episode in common"):
        comparison.compare(one, elsewhere)


def test_other_protocols_and_files_are_refused(write, tmp_path):
    one = write("a", {"open": "1"})
    other = write("b", {"open": "1"}, protocol=PROTOCOL | {"version": "2"})
    with pytest.raises(errors.UserError, match=r"metaworld 1 .* and metaworld 2 .*compared"):
        comparison.compare(one, other)
    for content in ("", "[]", "{}", '{"protocol": {}, "episodes": [{}]}'):
        (tmp_path / "damaged.json").write_text(content)
        with pytest.raises(errors.UserError, match=r"no results.*damaged\.json"):
            comparison.compare(one, tmp_path / "damaged.json")
    with pytest.raises(errors.UserError, match=r"no results.*nowhere"):
        comparison.compare(tmp_path / "nowhere", one)
