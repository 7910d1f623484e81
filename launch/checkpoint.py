"""Shows, checks and copies checkpoints: python launch/checkpoint.py COMMAND PATH [DEST]

inspect PATH        steps, sizes, what the run is and started from, leaves by part
verify PATH         compares every byte with its digest; exit 65 with the list of damage
copy PATH DEST      verified on both sides, the commit marker last; goes on where it was stopped

PATH is a run's workdir, its checkpoint directory or one step's directory; --step=N takes one step.
DEST becomes a workdir, from which the run can go on. Both may be in a bucket (gs://). Neither the
mesh nor the devices that a checkpoint was made on are needed.
"""

import json

from absl import flags

from defi_jax import cli, errors

_STEP = flags.DEFINE_integer("step", None, "Of one step only.", 0)
_JSON = flags.DEFINE_bool("json", False, "Print exactly one JSON object on stdout.")
_WORDS = {"inspect": 1, "verify": 1, "copy": 2}  # command -> paths


def main(argv: list[str]) -> None:
    """Runs the command that the first argument names."""
    name, *paths = argv[1:] or [""]
    if len(paths) != _WORDS.get(name):
        known = "; ".join(line.split("   ")[0] for line in (__doc__ or "").splitlines()[2:5])
        raise errors.UserError(f"cannot use {argv[1:]}", "launch/checkpoint.py", f"known: {known}")

    from tools import checkpoint

    result, text = getattr(checkpoint, name)(paths[0], _STEP.value, *paths[1:])
    print(json.dumps(result) if _JSON.value else text)
    if result.get("damage"):
        steps = ", ".join(result["damage"])
        raise errors.DataError(
            f"damaged checkpoints: {steps}", result["path"], "use another step or a copy"
        )


if __name__ == "__main__":
    cli.run(main)
