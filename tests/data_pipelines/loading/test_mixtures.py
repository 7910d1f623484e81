import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.loading import config, meaning, mixtures, named_mixtures
from data_pipelines.store import writer as store_writer
from defi_jax import errors

_PNG = image.encode_png(np.zeros((4, 4, 3), np.uint8))


def _store(directory, *, source="unit", steps=1, embodiment="human", action_dim=None):
    actions = None if action_dim is None else np.zeros((steps, action_dim), np.float32)
    episode = episodes.Episode(
        episode_id="x",
        source=source,
        embodiment=embodiment,
        instructions=("go",),
        frames={"static": [_PNG] * steps},
        actions=actions,
        states=None,
        fps=10.0,
    )
    with store_writer.EpisodeWriter(directory, source="unit") as writer:
        writer.write(episode)


def _open(mixture, root):
    return mixtures.open_components(
        config.DataConfig(mixture=mixture, root=str(root), image_size=8)
    )


def _sources(mixture, root):
    return {one.name: one.source for one in _open(mixture, root)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("synthetic", {"synthetic": 1.0}),
        ("a,b", {"a": 1.0, "b": 1.0}),
        ("a:0.7, b:3", {"a": 0.7, "b": 3.0}),
    ],
)
def test_parse_table(text, expected):
    mixture = mixtures.parse(text)
    assert mixture.weights == expected and not mixture.by_size


@pytest.mark.parametrize("text", ["", "a:", "a:zero", "a:0", "a:-1", "a:inf", "a,,b", ":2", "a,a"])
def test_unreadable_mixtures_are_refused(text):
    with pytest.raises(errors.UserError, match=r"data\.mixture="):
        mixtures.parse(text)


def test_load_opens_stores_and_synthetic(tmp_path):
    _store(tmp_path / "a")
    loaded = _open("synthetic:3,a", tmp_path)
    assert [(c.name, c.weight, len(c.source)) for c in loaded] == [
        ("synthetic", 3.0, 2048),
        ("a", 1.0, 1),
    ]


def test_all_absent_stores_are_in_one_error(tmp_path):
    _store(tmp_path / "there")
    (tmp_path / "empty").mkdir()
    message = r"no episode store or RLDS directory named gone, empty: .*available: there, synthetic"
    with pytest.raises(errors.UserError, match=message):
        _open("there,gone,empty", tmp_path)


def test_names_like_an_absent_one_are_offered(tmp_path):
    _store(tmp_path / "metaworld")
    with pytest.raises(errors.UserError, match=r"did you mean metaworld\? available: metaworld"):
        _open("metaword", tmp_path)
    with pytest.raises(errors.UserError, match="did you mean omni_magic_soup_plus_plus_wo_navi"):
        _open("omni_magic_soup_plus_plus_wo_nav", tmp_path)


def test_rlds_directories_are_no_absent_stores(write_rlds, rlds_tools, tmp_path):
    write_rlds([[rlds_tools["episode"](0)]])
    with pytest.raises(errors.UserError) as caught:
        _open("bridge_dataset,foo,bar", tmp_path)
    assert "directory named foo, bar: " in str(caught.value)
    assert "available: synthetic; as RLDS files: bridge_dataset; " in str(caught.value)
    _store(tmp_path / "there")
    with pytest.raises(errors.UserError, match=r"bridge_dataset: RLDS files.*convert --source"):
        _open("there,bridge_dataset", tmp_path)


def test_missing_root_is_named():
    with pytest.raises(errors.UserError, match=r"data\.root is empty"):
        _open("a,b", "")
    with pytest.raises(errors.UserError, match=r"named a: data\.root=/nowhere"):
        _open("a", "/nowhere")


def test_shares_of_a_named_mixture_are_weights_times_steps(tmp_path, monkeypatch):
    mixture = named_mixtures.Mixture(weights={"a": 2.0, "b": 0.5})
    monkeypatch.setitem(named_mixtures.NAMED, "soup", mixture)
    _store(tmp_path / "a", steps=3)
    _store(tmp_path / "b", steps=4)
    loaded = _open("soup", tmp_path)
    assert [(c.name, c.weight) for c in loaded] == [("a", 6.0), ("b", 2.0)]
    absolute = _open("a:2,b:0.5", tmp_path)
    assert [c.weight for c in absolute] == [2.0, 0.5]


def test_a_store_goes_before_a_mixture_of_its_name(tmp_path):
    _store(tmp_path / "bridge")
    (component,) = _open("bridge", tmp_path)
    assert component.name == "bridge"
    with pytest.raises(errors.UserError, match="named bridge_oxe"):
        _open("bridge", str(tmp_path / "elsewhere"))


def test_actions_of_one_convention_mix(tmp_path):
    _store(tmp_path / "a", source="bridge_dataset", action_dim=7)
    _store(tmp_path / "b", source="bridge_oxe", action_dim=7)
    _store(tmp_path / "video", source="bc_z")  # without actions, so without a say
    meaning.check_mix(_sources("a,b,video", tmp_path), "here")


def test_actions_nobody_knows_are_learned_only_alone(tmp_path):
    for name, robot in (("one", "mine"), ("two", "mine"), ("other", "yours")):
        _store(tmp_path / name, source="unit", embodiment=robot, action_dim=7)
    _store(tmp_path / "known", source="bridge_dataset", action_dim=7)

    def check(text):
        meaning.check_mix(_sources(text, tmp_path), "data.mixture")

    check("one,two")
    check("other")
    with pytest.raises(errors.UserError, match="actions of one, other mean: data"):
        check("one,other")
    with pytest.raises(errors.UserError, match="of one mean, and those of known are known"):
        check("known,one")


def test_all_datasets_and_robots_of_a_store_are_checked(tmp_path):
    frames = {"static": [_PNG]}
    with store_writer.EpisodeWriter(tmp_path / "both", source="unit") as writer:
        for dataset in ("bridge_dataset", "bc_z"):
            writer.write(
                episodes.Episode(
                    episode_id=dataset,
                    source=dataset,
                    embodiment="x",
                    instructions=("go",),
                    frames=frames,
                    actions=np.zeros((1, 7), np.float32),
                    states=None,
                    fps=1.0,
                )
            )
    loaded = _sources("both", tmp_path)
    with pytest.raises(errors.UserError, match=r"axis-angle in both \(bc_z, x\)"):
        meaning.check_mix(loaded, "data.mixture")


def test_actions_are_those_of_the_robot(tmp_path):
    _store(tmp_path / "a", source="bridge_dataset", action_dim=7)
    loaded = _sources("synthetic,a", tmp_path)
    for robot in ("widowx250", "google_robot", "nobody knows"):  # the second's units are unknown
        meaning.check_robot(loaded, robot)
    with pytest.raises(errors.UserError, match=r"actions of a are not those of metaworld_sawyer: "):
        meaning.check_robot(loaded, "metaworld_sawyer")


def test_actions_of_other_meaning_are_refused_with_all_differences(tmp_path):
    _store(tmp_path / "a", source="bridge_dataset", action_dim=7)
    _store(tmp_path / "b", source="bc_z", action_dim=7)
    _store(tmp_path / "c", embodiment="franka_panda", action_dim=7)  # CALVIN's
    loaded = _sources("a,b,c", tmp_path)
    with pytest.raises(errors.UserError) as caught:
        meaning.check_mix(loaded, "data.mixture")
    message = str(caught.value)
    assert "rotation is euler xyz in a, c; axis-angle in b" in message
    assert "gripper is 1 opens, 0 closes in a, b; +1 opens, -1 closes in c" in message
    assert "motion" not in message.split("data.mixture")[0]  # the same in all
