"""Brings official weights in, and ours out under official names, without PyTorch.

python launch/import_weights.py --source=svd --input=FOLDER --output=DIR
python launch/import_weights.py --reverse --input=DIR|WORKDIR --output=NEW

Sources: svd and defi_gfdm (diffusers folders), clip, t5, dinov2 (Hugging Face folders or files; the
hub's .pth), clip_openai (ViT-B-32.pt), defi_gidm (Lightning .ckpt), defi_policy (.pt). Train with
--config.weights.<encoder>=DIR or --config.init.<stage>=DIR, or the part's subfolder of DIR.
--reverse writes an import, or a run's latest verified checkpoint, as safetensors under the official
names and in the official folders, and prints the official names that a run has nothing for.
"""

import json
import pathlib

from absl import flags

from defi_jax import cli, errors
from defi_jax.weights import importers, run_export, sources

_SOURCE = flags.DEFINE_enum("source", None, sorted(sources.SOURCES), "Which release this is.")
_INPUT = flags.DEFINE_string(
    "input", "", "File or folder of a release; an import or run to reverse."
)
_OUTPUT = flags.DEFINE_string("output", "", "Directory to create.")
_REVERSE = flags.DEFINE_bool("reverse", False, "Write official names.")
_JSON = flags.DEFINE_bool("json", False, "Print exactly one JSON object on stdout.")


def main(argv: list[str]) -> None:
    """Imports or reverses."""
    del argv
    for flag in (_INPUT, _OUTPUT):
        if not flag.value:
            raise errors.UserError(f"--{flag.name} is missing", "import_weights", "give a path")
    input_path, output = pathlib.Path(_INPUT.value), pathlib.Path(_OUTPUT.value)
    if _REVERSE.value:
        if _SOURCE.value is not None:
            raise errors.UserError(
                "--reverse finds the source by itself", "--source", "leave it out"
            )
        _print_written(run_export.reverse(input_path, output))
        return
    if _SOURCE.value is None:
        raise errors.UserError("--source is missing", "import_weights", "see --help for the list")
    summary = importers.import_release(_SOURCE.value, input_path, output)
    if _JSON.value:
        print(json.dumps({"parameters": summary.parameters, "dropped": summary.dropped}))
        return
    for part, count in summary.parameters.items():
        print(f"{part}: {count:,} parameters")
    print(f"dropped: {len(summary.dropped)} names, kept in {importers.PASSTHROUGH}")


def _print_written(written: run_export.Written) -> None:
    files = [str(path) for path in written.files]
    if _JSON.value:
        print(json.dumps({"written": files, "absent": written.absent}))
        return
    print("\n".join(files))
    if written.absent:
        print("absent, where the official file has them (load with strict=False):")
    for pattern, reason in written.absent.items():
        print(f"  {pattern}: {reason}")


if __name__ == "__main__":
    cli.run(main)
