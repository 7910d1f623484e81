"""Vulkan on the CPU for simulators that were written for an NVIDIA GPU: Mesa's lavapipe.

SAPIEN 2.2.2 also wants an extension that lavapipe lacks; a small layer (vulkan_layer.c) takes it
out of the request. It is built here, with the machine's C compiler, the first time it is needed.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

from defi_rollout import errors

_LAYER = "VK_LAYER_DEFI_without_semaphore_fd"
_SYSTEM = pathlib.Path("/usr")
_SOURCE = pathlib.Path(__file__).with_name("vulkan_layer.c")


def has_nvidia_gpu() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded."""
    return pathlib.Path("/dev/nvidiactl").exists()


def environment(folder: pathlib.Path) -> dict[str, str]:
    """Variables with which a child process draws on the CPU.

    Args:
        folder: holds the built layer, and may hold Mesa as unpacked from its packages (`mesa/usr`),
            which then goes before the system's.

    Raises:
        UserError: Mesa's driver, a C compiler or Vulkan's headers are missing.
    """
    own = folder / "mesa" / "usr"
    for root in (own, _SYSTEM):
        drivers = sorted(root.glob("share/vulkan/icd.d/lvp_icd*.json"))
        if drivers:
            break
    else:
        raise errors.UserError(
            "no GPU, and no Vulkan driver for the CPU",
            own,
            "install Mesa 25 or newer (Debian: mesa-vulkan-drivers, libvulkan1), or unpack its "
            "packages there: dpkg -x PACKAGE.deb mesa",
        )
    libraries = [str(path) for path in own.glob("lib/*-linux-gnu")]
    libraries += filter(None, [os.environ.get("LD_LIBRARY_PATH")])
    return {
        "VK_ICD_FILENAMES": str(drivers[0]),
        "VK_LAYER_PATH": str(build_layer(folder)),
        "VK_INSTANCE_LAYERS": _LAYER,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "DISPLAY": "",
    }


def build_layer(folder: pathlib.Path) -> pathlib.Path:
    """Compiles the layer below `folder` unless it is there already; returns its directory.

    Raises:
        UserError: no C compiler or no Vulkan headers; it shows the compiler's words.
    """
    target = folder / "vulkan_layer"
    if target.exists() and (target / _SOURCE.name).read_bytes() == _SOURCE.read_bytes():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    fix = "install a C compiler and Vulkan's headers (Debian: gcc libvulkan-dev)"
    with tempfile.TemporaryDirectory(dir=folder) as made:
        built = pathlib.Path(made) / "vulkan_layer"
        built.mkdir()
        library = built / "libvulkan_layer.so"
        command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O2", "-o", str(library)]
        command += [f"-I{folder / 'mesa/usr/include'}", str(_SOURCE)]
        with errors.UserError.instead_of(OSError, "no C compiler", command[0], fix):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            words = result.stderr.strip().split("\n")[0]
            raise errors.UserError(f"the Vulkan layer does not compile ({words})", _SOURCE, fix)
        (built / "manifest.json").write_text(json.dumps(_manifest(library.name), indent=2))
        shutil.copy(_SOURCE, built)  # tells a layer of another version of this package
        _put(built, target)
    return target


def _put(built: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a built layer into place, whoever else is building one at the same time."""
    old = built.with_name("old")
    try:
        if target.exists():
            target.rename(old)
        built.rename(target)
    except OSError:
        if not target.exists():
            raise


def _manifest(library: str) -> dict:
    extension = {
        "name": "VK_KHR_external_semaphore_fd",
        "spec_version": "1",
        "entrypoints": ["vkGetSemaphoreFdKHR", "vkImportSemaphoreFdKHR"],
    }
    layer = {
        "name": _LAYER,
        "type": "GLOBAL",
        "library_path": f"./{library}",
        "api_version": "1.3.0",
        "implementation_version": "1",
        "description": "leaves a device extension out that the driver lacks",
        "device_extensions": [extension],
    }
    return {"file_format_version": "1.2.0", "layer": layer}
