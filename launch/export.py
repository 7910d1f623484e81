"""Exports a policy as a bundle that needs neither our code nor flax to run.

    python launch/export.py --workdir=runs/joint --output=runs/joint/bundle
    python launch/export.py --from_bundle=OLD --output=NEW

Each may be in a bucket: --output=gs://bucket/bundle.

The first form takes the latest verified checkpoint of a joint run (or --step); the second makes
an older bundle's program anew, for a jax that refuses the old one. Both end with a parity check.
"""

import json

from absl import flags

from defi_jax import cli, errors

_WORKDIR = flags.DEFINE_string("workdir", None, "Joint run to export.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the latest that verifies.")
_FROM_BUNDLE = flags.DEFINE_string("from_bundle", None, "Bundle to make anew.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the new bundle.", required=True)
_WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["float32", "bfloat16"], "Type to keep the weights in; default: float32."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a bundle that is there.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(argv: list[str]) -> None:
    """Checks the flags and calls the writer."""
    del argv
    cli.require_one({"--workdir": _WORKDIR.value, "--from_bundle": _FROM_BUNDLE.value})
    if _FROM_BUNDLE.value and _STEP.value is not None:
        raise errors.UserError("a bundle has one step", "--step", "leave it out")
    if _FROM_BUNDLE.value and _WEIGHTS.value:
        raise errors.UserError("a bundle keeps its weights", "--weights", "leave it out")

    from data_pipelines import normalization
    from defi_jax.export import writer

    if _FROM_BUNDLE.value:
        report = writer.rebuild_bundle(
            _FROM_BUNDLE.value, _OUTPUT.value, overwrite=_OVERWRITE.value
        )
    else:
        assert _WORKDIR.value is not None
        report = writer.export_bundle(
            _WORKDIR.value,
            _OUTPUT.value,
            step=_STEP.value,
            overwrite=_OVERWRITE.value,
            weights_dtype=_WEIGHTS.value or "float32",
            make_inverse=lambda stored: normalization.Normalizer.from_json(stored).invert,
        )
    if _JSON.value:
        print(json.dumps(vars(report), indent=1))
        return
    print(f"step {report.step} -> {report.output} ({report.digest[:12]})")
    print(f"parity with the source: relative L2 {report.rel_l2:.1e} of {report.tolerance:.0e}")


if __name__ == "__main__":
    cli.run(main)
