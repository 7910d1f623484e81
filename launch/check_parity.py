"""Compares our modules with recorded reference outputs, number by number.

python launch/check_parity.py FIXTURE.safetensors... defi_golden.npz

Prints `kind output max_abs rel_l2 PASS|FAIL` per output. Exit 1 on any FAIL, 2 on an unknown kind,
config field or vector, 65 on a damaged file; the other files are checked all the same. --json
prints one object with the same rows (null where a number is not finite) and the errors instead.
"""

import json
import sys

from absl import flags

from defi_jax import cli, errors
from defi_jax.weights.parity import check

_JSON = flags.DEFINE_bool("json", False, "Print exactly one JSON object on stdout.")


def main(argv: list[str]) -> None:
    """Checks every fixture on the command line."""
    paths = argv[1:]
    if not paths:
        raise errors.UserError(
            "no fixture given", "check_parity", "type launch/check_parity.py FILE..."
        )
    show = (lambda row: None) if _JSON.value else (lambda row: print(row, flush=True))
    results, failures = check.check_files(paths, show)
    if _JSON.value:
        rows = [result.to_json() for result in results]
        print(json.dumps({"outputs": rows, "errors": [str(error) for error in failures]}))
    for error in failures[:-1]:
        print(f"error: {error}", file=sys.stderr)
    if failures:
        raise failures[-1]
    failed = sum(not result.passed for result in results)
    if failed:
        raise errors.CheckFailed(
            f"{failed} of {len(results)} outputs differ by more than {check.TOLERANCE:g}",
            "check_parity",
            "see the lines with FAIL",
        )


if __name__ == "__main__":
    cli.run(main)
