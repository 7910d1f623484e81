"""Predicts the future of each filmed episode of an evaluation, to be seen beside what happened.

    python launch/imagine_evaluation.py --evaluation=runs/evaluation --bundle=runs/bundle

The video model is that of a --bundle, or of the latest verified checkpoint of a GFDM or joint run.
Films land beside the evaluation's own, and its index.html shows both. Futures that are there are
left alone.
"""

import json

from absl import flags

from defi_jax import cli

_EVALUATION = flags.DEFINE_string("evaluation", None, "Its directory.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "GFDM or joint run.")
_BUNDLE = flags.DEFINE_string("bundle", None, "Exported policy, instead of a run.")
_SEED = flags.DEFINE_integer("seed", 0, "Another seed is another possible future.", 0, 2**31)
_STEPS = flags.DEFINE_integer("steps", 30, "Denoising steps; officially 30.", 1, 1000)
_GUIDANCE = flags.DEFINE_float(
    "guidance", 3.0, "Guidance of the last frame, from 1 at the first; officially 3.", 0.0, 100.0
)
_FPS = flags.DEFINE_float("fps", 4.0, "Frames per second of the films.", 0.1, 60.0)
_JSON = flags.DEFINE_bool("json", False, "Print exactly one JSON object on stdout.")


def main(argv: list[str]) -> None:
    """Checks the flags, predicts and draws."""
    del argv
    cli.require_one({"--workdir": _WORKDIR.value, "--bundle": _BUNDLE.value})

    from tools.imagine import evaluation
    from tools.imagine import model as model_lib

    workdir, directory = _WORKDIR.value, _EVALUATION.value or ""
    load = model_lib.from_workdir if workdir else model_lib.from_bundle
    model, step = load(workdir or _BUNDLE.value or "")
    count = evaluation.imagine(
        model,
        directory,
        seed=_SEED.value,
        num_steps=_STEPS.value,
        max_guidance=_GUIDANCE.value,
        fps=_FPS.value,
    )
    page = f"{directory}/index.html"
    result = {"page": page, "futures": count, "step": step}
    print(json.dumps(result) if _JSON.value else f"{page}: {count} futures of step {step}")


if __name__ == "__main__":
    cli.run(main)
