import ctypes
import json
import shutil
import subprocess

import pytest
from defi_rollout import errors
from defi_rollout.benchmarks import software_vulkan


@pytest.fixture
def compiler():
    probe = "#include <vulkan/vk_layer.h>\n"
    cc = shutil.which("cc")
    command = [cc or "cc", "-fsyntax-only", "-include", "vulkan/vulkan.h", "-xc", "-"]
    if cc is None or subprocess.run(command, input=probe.encode(), capture_output=True).returncode:
        pytest.skip("no C compiler or Vulkan headers: apt-get install gcc libvulkan-dev")


def test_the_layer_is_built_once_and_speaks_the_loaders_protocol(tmp_path, compiler, monkeypatch):
    place = software_vulkan.build_layer(tmp_path)
    layer = json.loads((place / "manifest.json").read_text())["layer"]
    library = ctypes.CDLL(str(place / layer["library_path"]))

    class Interface(ctypes.Structure):
        _fields_ = [("type", ctypes.c_int), ("next", ctypes.c_void_p), ("version", ctypes.c_uint32)]
        _fields_ += [(name, ctypes.c_void_p) for name in ("instance", "device", "physical")]

    interface = Interface(type=1, version=2)
    assert library.vkNegotiateLoaderLayerInterfaceVersion(ctypes.byref(interface)) == 0
    assert interface.instance and interface.device and not interface.physical
    monkeypatch.setenv("CC", "no-such-compiler")
    assert software_vulkan.build_layer(tmp_path) == place
    (place / "vulkan_layer.c").write_text("of an older version")
    with pytest.raises(errors.UserError, match="no C compiler"):
        software_vulkan.build_layer(tmp_path)


def test_a_compilers_complaint_is_shown(tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'vulkan.h: no such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(errors.UserError, match=r"vulkan\.h: no such file.*libvulkan-dev"):
        software_vulkan.build_layer(tmp_path)
    assert not (tmp_path / "vulkan_layer").exists()


def test_an_unpacked_mesa_goes_before_the_systems(tmp_path, monkeypatch):
    drivers = tmp_path / "mesa/usr/share/vulkan/icd.d"
    for folder in (drivers, tmp_path / "usr/share/vulkan/icd.d"):
        folder.mkdir(parents=True)
        (folder / "lvp_icd.json").write_text("{}")
    monkeypatch.setattr(software_vulkan, "_SYSTEM", tmp_path / "usr")
    (tmp_path / "mesa/usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    monkeypatch.setattr(software_vulkan, "build_layer", lambda folder: folder / "layer")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    found = software_vulkan.environment(tmp_path)
    assert found["VK_ICD_FILENAMES"] == str(drivers / "lvp_icd.json")
    assert found["LD_LIBRARY_PATH"] == f"{tmp_path}/mesa/usr/lib/x86_64-linux-gnu:/before"


def test_a_machine_without_a_driver_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(software_vulkan, "_SYSTEM", tmp_path / "usr")
    with pytest.raises(errors.UserError, match="mesa-vulkan-drivers"):
        software_vulkan.environment(tmp_path)
