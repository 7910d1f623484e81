"""Shows a run in the terminal, live: python launch/watch.py WORKDIR

Step, loss, speed and time left; where the time goes; the last evaluation and checkpoint; who is in
the workdir; what was changed on the way. Reads only. Local or gs://.

    python launch/watch.py runs/gfdm --once            # prints and ends
    python launch/watch.py gs://bucket/run --json      # one JSON object
"""

import json

from absl import flags

from defi_jax import cli, errors

_ONCE = flags.DEFINE_bool("once", False, "Print and end.")
_JSON = flags.DEFINE_bool("json", False, "Print exactly one JSON object on stdout and end.")
_EVERY = flags.DEFINE_float("every", 5.0, "Seconds between two looks.", 0.1)


def main(argv: list[str]) -> None:
    """Looks once, or until it is interrupted."""
    if len(argv) != 2:
        raise errors.UserError(
            f"cannot use {argv[1:]}", "launch/watch.py", "give one workdir: launch/watch.py WORKDIR"
        )

    from tools import watch

    if _JSON.value:
        print(json.dumps(watch.look(argv[1])))
    elif _ONCE.value:
        print(watch.text(watch.look(argv[1])))
    else:
        watch.live(argv[1], _EVERY.value)


if __name__ == "__main__":
    cli.run(main)
