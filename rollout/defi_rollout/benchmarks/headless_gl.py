"""Headless OpenGL: which of EGL and OSMesa works here for MuJoCo, and who draws."""

import functools
import os
import subprocess
import sys
from typing import Any

from defi_rollout import errors

# Renderers on the CPU; pixels, and so success rates, may differ from those of a GPU.
_SOFTWARE = ("llvmpipe", "softpipe", "swrast", "osmesa", "software", "tinyrenderer")
# EGL first: on a machine without a GPU it measures as fast as OSMesa, with one it is faster.
_BACKENDS = ("egl", "osmesa")
_PACKAGES = {"egl": "libegl1", "osmesa": "libosmesa6"}
# Holds the backend that drew its probe picture, so that child processes need not try again.
_PROBED_VARIABLE = "DEFI_ROLLOUT_GL_PROBED"
_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size=".1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 8, 8) as renderer:
    renderer.update_scene(data)
    renderer.render()
"""


@functools.cache
def choose() -> str:
    """Picks the headless OpenGL of this process and of its children, and sets MUJOCO_GL to it.

    A MUJOCO_GL that the user set is obeyed. Otherwise each backend draws one picture in a child
    process (a missing library can end the process that tries it); the first that works is taken.

    Returns:
        "egl" or "osmesa".

    Raises:
        errors.UserError: no backend works, or MUJOCO_GL names one that needs a screen.
    """
    # Drawing tiny pictures in software gains nothing from threads; workers would fight over cores.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted and wanted not in _BACKENDS:
        raise errors.UserError(
            "this OpenGL does not draw without a screen",
            f"MUJOCO_GL={wanted}",
            "set MUJOCO_GL=egl or osmesa",
        )
    if wanted and os.environ.get(_PROBED_VARIABLE) == wanted:
        return wanted
    failures = []
    for backend in [wanted] if wanted else _BACKENDS:
        reason = _probe(backend)
        if reason is None:
            os.environ["MUJOCO_GL"] = os.environ[_PROBED_VARIABLE] = backend
            return backend
        failures.append(f"{backend}: {reason}")
    packages = " or ".join(_PACKAGES[b] for b in ([wanted] if wanted else _BACKENDS))
    raise errors.UserError(
        "no headless OpenGL library works",
        " | ".join(failures),
        f"install the Debian package {packages}, or choose with MUJOCO_GL=egl or MUJOCO_GL=osmesa",
    )


def _probe(backend: str) -> str | None:
    """Draws one picture in a child process; returns None, or the last line of what went wrong."""
    environment = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"}
    environment["MUJOCO_GL"] = backend
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return "no picture within 120 s"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(" ")]
    return lines[-1][:200] if lines else f"the child process ended with code {done.returncode}"


def describe(vendor: str, name: str) -> dict[str, Any]:
    """{"vendor", "name", "comparable"} of a renderer; comparable are pictures drawn by a GPU."""
    text = f"{vendor} {name}".lower()
    comparable = not any(word in text for word in _SOFTWARE)
    return {"vendor": vendor, "name": name, "comparable": comparable}


def describe_current() -> dict[str, Any]:
    """`describe` of this thread's OpenGL context, which has drawn before."""
    from OpenGL import GL

    vendor, name = (GL.glGetString(number) for number in (GL.GL_VENDOR, GL.GL_RENDERER))
    return describe(vendor.decode(), name.decode())  # pyright: ignore[reportAttributeAccessIssue]
