import pytest
from defi_rollout import errors
from defi_rollout.benchmarks import headless_gl


@pytest.fixture(autouse=True)
def _no_choice_yet(monkeypatch):
    for name in ("MUJOCO_GL", headless_gl._PROBED_VARIABLE):
        monkeypatch.setenv(name, "")  # so that what `choose` sets is undone
    headless_gl.choose.cache_clear()
    yield
    headless_gl.choose.cache_clear()


def test_choose_takes_the_first_backend_that_works(monkeypatch):
    monkeypatch.setattr(headless_gl, "_probe", {"egl": "no device", "osmesa": None}.get)
    assert headless_gl.choose() == "osmesa"
    assert headless_gl.os.environ["MUJOCO_GL"] == "osmesa"


def test_a_child_process_does_not_probe_again(monkeypatch):
    monkeypatch.setattr(headless_gl, "_probe", lambda backend: None)
    assert headless_gl.choose() == "egl"
    headless_gl.choose.cache_clear()  # as in a child, which has the environment only
    monkeypatch.setattr(headless_gl, "_probe", lambda backend: "probed")
    assert headless_gl.choose() == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    headless_gl.choose.cache_clear()
    with pytest.raises(errors.UserError, match="osmesa: probed"):
        headless_gl.choose()


def test_choose_obeys_the_user(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(headless_gl, "_probe", lambda backend: None)
    assert headless_gl.choose() == "osmesa"


def test_choose_names_packages_when_nothing_works(monkeypatch):
    monkeypatch.setattr(headless_gl, "_probe", lambda backend: f"no lib{backend}")
    with pytest.raises(errors.UserError, match="libegl1 or libosmesa6") as caught:
        headless_gl.choose()
    assert "no libegl" in str(caught.value) and "MUJOCO_GL" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_choose_names_the_package_of_the_backend_that_the_user_set(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(headless_gl, "_probe", lambda backend: "no library")
    with pytest.raises(errors.UserError, match="libosmesa6") as caught:
        headless_gl.choose()
    assert "libegl1" not in str(caught.value)


def test_choose_refuses_a_backend_that_needs_a_screen(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(errors.UserError, match="MUJOCO_GL=glfw"):
        headless_gl.choose()


def test_probe_reports_the_last_line_of_the_child(monkeypatch):
    monkeypatch.setattr(headless_gl, "_PROBE", "raise ImportError('libFoo.so.1 is missing')")
    assert headless_gl._probe("egl") == "ImportError: libFoo.so.1 is missing"
