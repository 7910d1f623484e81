"""Predicts the future from a picture and an instruction: film, animation and contact sheet.

    python launch/imagine.py --image=scene.png --text="open the drawer" --workdir=runs/gfdm \
        --output=runs/future

The video model comes from the latest verified checkpoint of a GFDM or joint run (or --step), or
from a --bundle. Each seed is another possible future.
"""

import json
import logging
import time

import numpy as np
from absl import flags

from defi_jax import cli, errors

_IMAGE = flags.DEFINE_string("image", None, "First frame; JPEG or PNG of any size.", required=True)
_TEXT = flags.DEFINE_string("text", None, "Instruction.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "GFDM or joint run.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the latest that verifies.")
_BUNDLE = flags.DEFINE_string("bundle", None, "Exported policy, instead of a run.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the pictures.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 4, "Futures, side by side.", 1, 64)
_FIRST = flags.DEFINE_integer("first_seed", 0, "Seed of the first one.", 0, 2**31)
_STEPS = flags.DEFINE_integer("steps", 30, "Denoising steps; officially 30.", 1, 1000)
_GUIDANCE = flags.DEFINE_float(
    "guidance", 3.0, "Guidance of the last frame, from 1 at the first; officially 3.", 0.0, 100.0
)
_FPS = flags.DEFINE_float("fps", 4.0, "Frames per second of the film.", 0.1, 60.0)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an earlier prediction.")
_JSON = flags.DEFINE_bool("json", False, "Print exactly one JSON object on stdout.")


def main(argv: list[str]) -> None:
    """Checks the flags, predicts and draws."""
    del argv
    cli.require_one({"--workdir": _WORKDIR.value, "--bundle": _BUNDLE.value})
    if _BUNDLE.value and _STEP.value is not None:
        raise errors.UserError("a bundle has one step", "--step", "leave it out")

    from tools.imagine import model as model_lib
    from tools.imagine import pictures

    pictures.check_output(_OUTPUT.value or "", overwrite=_OVERWRITE.value)
    picture = pictures.read_image(_IMAGE.value or "")
    if _WORKDIR.value:
        model, step = model_lib.from_workdir(_WORKDIR.value, _STEP.value)
    else:
        model, step = model_lib.from_bundle(_BUNDLE.value or "")
    given, note = pictures.prepare_image(picture, model.image_size)
    if note:
        logging.info("%s: %s", _IMAGE.value, note)
    seeds = range(_FIRST.value, _FIRST.value + _SEEDS.value)
    numbers = {"num_steps": _STEPS.value, "max_guidance": _GUIDANCE.value}
    start = time.monotonic()
    drawn = model.predict(given, _TEXT.value or "", seeds, **numbers)
    seconds = time.monotonic() - start
    caption = f"{_TEXT.value}   [step {step}, {_STEPS.value} steps, guidance {_GUIDANCE.value:g}]"
    files = pictures.write(_OUTPUT.value or "", given, drawn, seeds, caption, fps=_FPS.value)
    change = np.abs(drawn.astype(float) - given).mean(axis=(2, 3, 4))
    result = {
        **files,
        "seconds": seconds,
        "step": step,
        "seeds": list(seeds),
        **numbers,
        "frames": model.num_frames,
        "image_size": model.image_size,
        "image": note,
        "change_by_seed_and_frame": change.round(3).tolist(),
    }
    text = "\n".join(files.values()) + f"\n{len(seeds)} futures in {seconds:.1f} s"
    print(json.dumps(result) if _JSON.value else text)


if __name__ == "__main__":
    cli.run(main)
