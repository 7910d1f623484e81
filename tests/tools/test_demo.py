import json

import pytest

from defi_jax import errors
from tools import demo

SMALL = demo.Size(episodes=2, rollouts=1, steps=3)


def _flag(command: list[str], name: str) -> str:
    return next(word.partition("=")[2] for word in command if word.startswith(f"--{name}="))


def test_action_free_video_is_simulated_unless_folders_are_named(tmp_path):
    phases = demo.phases("out", {}, SMALL)
    assert "--strip_actions" in phases["collect"][0]
    assert _flag(phases["gfdm"][0], "config.data.mixture") == (
        "metaworld:0.700,metaworld_video:0.300"
    )
    videos = {"clips": "/some where/clips", "rlds": str(tmp_path)}
    (tmp_path / "x.tfrecord-00000-of-00001").write_bytes(b"")
    phases = demo.phases("my out", videos, SMALL)
    assert _flag(phases["collect"][0], "output") == "my out/data/clips"
    for stage in ("gfdm", "gidm"):
        mixture = _flag(phases[stage][0], "config.data.mixture")
        assert mixture == "metaworld:0.700,clips:0.150,rlds:0.150"
    assert _flag(phases["joint"][0], "config.data.mixture") == "metaworld"
    kinds = [_flag(command, "source") for command in phases["collect"][:3]]
    assert kinds == ["human_video", "rlds", "metaworld"]
    assert _flag(phases["collect"][0], "input") == "/some where/clips"
    assert all("--strip_actions" in command for command in phases["collect"][:2])


def test_size_reaches_every_phase():
    phases = demo.phases("out", {}, SMALL)
    assert _flag(phases["collect"][1], "episodes") == "2"
    assert _flag(phases["evaluate"][0], "episodes") == "1"
    assert {_flag(phases[stage][0], "config.steps") for stage in ("gfdm", "gidm", "joint")} == {"3"}
    full = demo.phases("out", {}, demo.Size())
    assert not any("config.steps" in word for word in full["joint"][0])


def test_absent_or_ambiguous_folders_are_refused(tmp_path):
    with pytest.raises(errors.UserError, match=r"no such folder of videos: /no/such; .*DEMO_VIDEO"):
        demo.video_stores(["/no/such"])
    for name in ("a/clips", "b/clips", "metaworld", "my clips:1"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(errors.UserError, match="a store named clips is there already"):
        demo.video_stores([str(tmp_path / "a/clips"), str(tmp_path / "b/clips")])
    with pytest.raises(errors.UserError, match="a store named metaworld"):
        demo.video_stores([str(tmp_path / "metaworld")])
    assert list(demo.video_stores([str(tmp_path / "my clips:1")])) == ["my_clips_1"]


def test_a_demo_of_another_size_is_refused_once_a_phase_is_done(tmp_path):
    demo.claim(tmp_path, {}, SMALL)
    demo.claim(tmp_path, {"other": "x"}, SMALL)  # nothing was made from the first
    (tmp_path / "phases.json").write_text("{}")
    demo.claim(tmp_path, {"other": "x"}, SMALL)
    with pytest.raises(errors.UserError, match=r"begun with .*choose another --output"):
        demo.claim(tmp_path, {}, SMALL)


def test_finished_phases_are_kept_and_the_last_is_always_run(tmp_path):
    log = tmp_path / "log"
    script = "import sys; open(sys.argv[1], 'a').write(sys.argv[2]); sys.exit(int(sys.argv[3]))"

    def commands(code: str) -> dict[str, list[list[str]]]:
        return {
            "collect": [["-c", script, str(log), "c", "0"]],
            "gfdm": [["-c", script, str(log), "g", code]],
            "report": [["-c", script, str(log), "r", "0"]],
        }

    setup = tmp_path / "setup.json"
    setup.write_text('{"setup_seconds": 7.5}')
    with pytest.raises(SystemExit) as failed:
        demo.run(tmp_path, commands("65"), setup)
    assert failed.value.code == 65 and log.read_text() == "cg"
    for _ in range(2):
        demo.run(tmp_path, commands("0"), setup)
    assert log.read_text() == "cg" + "gr" + "r"
    noted = json.loads((tmp_path / "phases.json").read_text())
    assert list(noted) == ["setup", "collect", "gfdm", "report"] and noted["setup"] == 7.5
