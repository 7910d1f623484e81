"""Writes bundles: from a verified checkpoint, or anew from an older bundle.

A bundle appears whole or not at all: it is built in a hidden directory beside its destination,
proved against the checkpoint by loading it the way a client does, and moved into place.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors.numpy
from defi_rollout import bundle as rollout_bundle
from defi_rollout import files as rollout_files
from defi_rollout import noise as rollout_noise
from defi_rollout import policy as rollout_policy
from defi_rollout import preprocess
from defi_rollout import spec as rollout_spec
from defi_rollout import tokenizers as rollout_tokenizers
from etils import epath

from defi_jax import errors, objectives
from defi_jax.checkpoints import manager
from defi_jax.export import description
from defi_jax.export import program as program_lib
from defi_jax.models import params as params_lib
from defi_jax.objectives import joint

# Largest relative L2 distance of the bundle's actions from the checkpoint's: the same program,
# compiled with a symbolic batch, may fuse its sums in another order.
PARITY_TOLERANCE = 1e-4
_BF16_PARITY_TOLERANCE = 2e-2
# The same for weights that were rounded to 8 bits of mantissa.
_BF16_WEIGHTS_TOLERANCE = 5e-2

_EXAMPLE_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was written.

    Attributes:
        output: the bundle's directory.
        digest: sha256 that identifies the bundle.
        step: training step of the parameters.
        rel_l2: distance of the bundle's actions from its source's, relative L2.
        tolerance: largest that was allowed.
    """

    output: str
    digest: str
    step: int
    rel_l2: float
    tolerance: float


def export_bundle(
    workdir: str | epath.Path,
    output: str | epath.Path,
    *,
    step: int | None = None,
    overwrite: bool = False,
    weights_dtype: str = "float32",
    make_inverse: description.MakeInverse,
) -> Report:
    """Exports a joint checkpoint, its moving average where it has one.

    Args:
        workdir: of the run.
        output: the bundle's directory, local or in a bucket.
        step: which checkpoint; None takes the latest that verifies.
        overwrite: whether an older bundle at `output` is replaced.
        weights_dtype: "float32" keeps the parameters as they are, "bfloat16" rounds those of
            float32; the program computes as before.
        make_inverse: turns the stored normaliser of the actions into its inverse.

    Raises:
        UserError: no such checkpoint, not a joint one, or `output` is taken.
        DataError: the checkpoint is damaged.
        CheckFailed: the bundle's actions differ from the checkpoint's; nothing is left.
    """
    _check_free(epath.Path(output), overwrite)
    params, metadata = manager.load_params(workdir, step)
    if metadata["objective"] != "joint":
        raise errors.UserError(
            f"checkpoint of objective {metadata['objective']!r}",
            str(workdir),
            "give the --workdir of a joint run: only it has a policy",
        )
    objective = _rebuild_objective(metadata["config"])
    spec = description.describe(objective, metadata, make_inverse, weights_dtype)
    with _building(output, overwrite) as directory:
        # Not ascontiguousarray, which turns scalars into vectors.
        flat = {k: np.asarray(v, order="C") for k, v in params_lib.flatten(params).items()}
        kept = _rounded(flat) if weights_dtype == "bfloat16" else flat
        files = description.tokenizer_files(objective)
        source = _write_parts(directory, objective, kept, spec, tokenizer_files=files)
        rounding = _write_example(directory, source, objective, flat, kept)
        rel_l2, tolerance, digest = _seal(directory, spec, objective)
    if kept is not flat:
        rel_l2, tolerance = rounding, _BF16_WEIGHTS_TOLERANCE
    return Report(
        output=str(output),
        digest=digest,
        step=metadata["step"],
        rel_l2=rel_l2,
        tolerance=tolerance,
    )


def rebuild_bundle(
    old: str | pathlib.Path, output: str | epath.Path, *, overwrite: bool = False
) -> Report:
    """Exports the program of a bundle anew for this jax; everything else is kept.

    The old example, with the actions it had when it was exported, is the parity check.

    Raises:
        UserError: no bundle there, or `output` is taken.
        DataError: the old bundle is damaged.
        CheckFailed: the new program answers otherwise; nothing is left.
    """
    _check_free(epath.Path(output), overwrite)
    source = rollout_bundle.read_bundle(old)
    objective = _rebuild_objective(source.spec.model["config"])
    flat = safetensors.numpy.load_file(source.path(rollout_bundle.PARAMS))
    kept = {
        name: source.read(name)
        for name in source.spec.files
        if name not in (rollout_bundle.PARAMS, rollout_bundle.STABLEHLO)
    }
    example = kept.pop(rollout_bundle.EXAMPLE)
    provenance = dict(source.spec.provenance) | {
        "exported_with": {"jax": jax.__version__},
        "rebuilt_from": source.digest,
    }
    spec = dataclasses.replace(source.spec, provenance=provenance)
    with _building(output, overwrite) as directory:
        _write_parts(directory, objective, flat, spec, tokenizer_files=kept)
        (directory / rollout_bundle.EXAMPLE).write_bytes(example)
        rel_l2, tolerance, digest = _seal(directory, spec, objective)
    return Report(
        output=str(output),
        digest=digest,
        step=source.spec.provenance["step"],
        rel_l2=rel_l2,
        tolerance=tolerance,
    )


def _rebuild_objective(config: Mapping[str, Any]) -> joint.JointObjective:
    objective = objectives.rebuild(ml_collections.ConfigDict(config))
    assert isinstance(objective, joint.JointObjective)
    return objective


def _write_parts(
    directory: pathlib.Path,
    objective: joint.JointObjective,
    flat: Mapping[str, np.ndarray],
    spec: rollout_spec.BundleSpec,
    *,
    tokenizer_files: Mapping[str, bytes],
) -> rollout_bundle.Bundle:
    """Writes parameters, program and tokenizers; returns them as a bundle without an example."""
    safetensors.numpy.save_file(dict(flat), directory / rollout_bundle.PARAMS)
    artefact = program_lib.export_program(
        _program(objective, spec), flat, program_lib.input_spec(objective)
    )
    (directory / rollout_bundle.STABLEHLO).write_bytes(artefact)
    for name, content in tokenizer_files.items():
        (directory / name).write_bytes(content)
    with_files = dataclasses.replace(spec, files=_hash_files(directory))
    return rollout_bundle.Bundle(directory=directory, spec=with_files, digest="")


def _program(objective: joint.JointObjective, spec: rollout_spec.BundleSpec) -> program_lib.Program:
    """The policy for parameters as the bundle keeps them."""
    program = program_lib.policy_program(objective)
    is_rounded = spec.provenance.get("weights_dtype") == "bfloat16"  # older ones do not say
    return program_lib.widened(program) if is_rounded else program


def _rounded(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters with bfloat16 in place of float32."""
    return {
        path: value.astype(jnp.bfloat16) if value.dtype == np.float32 else value
        for path, value in flat.items()
    }


def _write_example(
    directory: pathlib.Path,
    source: rollout_bundle.Bundle,
    objective: joint.JointObjective,
    flat: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray],
) -> float:
    """Writes an observation, its noise and the actions for them of the parameters that are kept.

    Returns:
        How far these are from the checkpoint's actions, relative L2; 0 where all is kept.

    Raises:
        CheckFailed: too far.
    """
    spec, rng = source.spec, np.random.default_rng(_EXAMPLE_SEED)
    example = {
        camera.key: _make_image(rng, camera.height, camera.width)[None] for camera in spec.cameras
    }
    size = (spec.image.height, spec.image.width)
    views = [preprocess.resize(example[camera.key][0], size) for camera in spec.cameras]
    inputs = {"images": np.stack(views)[None]}
    for role, text in spec.text.items():
        ids, mask = rollout_tokenizers.from_bundle(text, source)([spec.example_prompt])
        inputs |= {f"text/{role}": ids, f"text_mask/{role}": mask}
    for name, shape in spec.noise.items():
        noise = rollout_noise.draw((_EXAMPLE_SEED,), name, shape)[None]
        inputs[f"noise/{name}"] = example[f"noise/{name}"] = noise

    def act(program: program_lib.Program, params: Mapping[str, np.ndarray]) -> np.ndarray:
        nested = params_lib.unflatten(params)
        return spec.unnormalise(np.asarray(jax.jit(program)(nested, inputs)["actions"]))

    example["expected/actions"] = expected = act(_program(objective, spec), kept)
    safetensors.numpy.save_file(example, directory / rollout_bundle.EXAMPLE)
    if kept is flat:
        return 0.0
    known = act(program_lib.policy_program(objective), flat)
    rel_l2 = float(np.linalg.norm(expected - known) / max(np.linalg.norm(known), 1e-12))
    _require_close(rel_l2, _BF16_WEIGHTS_TOLERANCE, "export float32 weights")
    return rel_l2


def _require_close(rel_l2: float, tolerance: float, fix: str) -> None:
    if not rel_l2 <= tolerance:
        raise errors.CheckFailed(
            f"the bundle's actions differ from the checkpoint's by {rel_l2:.1e} (relative L2)",
            f"tolerance {tolerance:.0e}",
            f"nothing was written; {fix}",
        )


def _make_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A picture with coarse and fine structure, uint8 [H, W, 3]."""
    coarse = rng.integers(0, 224, (4, 4, 3))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    fine = rng.integers(0, 32, (height, width, 3))
    return (coarse[rows][:, columns] + fine).astype(np.uint8)


def _seal(
    directory: pathlib.Path, spec: rollout_spec.BundleSpec, objective: joint.JointObjective
) -> tuple[float, float, str]:
    """Writes bundle.json, last; returns what `_check_parity` does."""
    complete = dataclasses.replace(spec, files=_hash_files(directory))
    content = rollout_bundle.render_manifest(complete.to_json())
    (directory / rollout_bundle.MANIFEST).write_bytes(content)
    return _check_parity(directory, objective)


def _check_parity(
    directory: pathlib.Path, objective: joint.JointObjective
) -> tuple[float, float, str]:
    """Loads the bundle as a client does and compares its example's actions.

    Returns:
        Relative L2 distance, the largest allowed, and the bundle's digest.
    """
    is_bf16 = objective.config.compute_dtype == "bfloat16"
    tolerance = _BF16_PARITY_TOLERANCE if is_bf16 else PARITY_TOLERANCE
    policy = rollout_policy.Policy.load(directory, warm_up=False)
    rel_l2 = policy.run_example()
    _require_close(rel_l2, tolerance, "report this with the config of the run")
    return rel_l2, tolerance, policy.digest


def _hash_files(directory: pathlib.Path) -> dict[str, rollout_spec.FileEntry]:
    return {p.name: rollout_bundle.hash_file(p) for p in sorted(directory.iterdir())}


def _check_free(output: epath.Path, overwrite: bool) -> None:
    fix = "pip install 'defi-jax[gcs]'"
    with errors.UserError.instead_of(ImportError, "bucket cannot be written", output, fix):
        is_free = not output.exists()
    if is_free:
        return
    if not overwrite:
        raise errors.UserError(
            "output exists", str(output), "choose another --output, or add --overwrite"
        )
    if not (output / rollout_bundle.MANIFEST).exists():
        raise errors.UserError(
            "output exists and is not a bundle", str(output), "choose another --output"
        )


@contextlib.contextmanager
def _building(output: str | epath.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """Gives a local directory that becomes `output` when the body succeeds, else vanishes."""
    target = epath.Path(output)
    if "://" not in str(output):
        with rollout_files.new_directory(pathlib.Path(target), replace=overwrite) as directory:
            yield directory
            for path in directory.iterdir():
                path.chmod(0o644)  # safetensors makes private ones
        return
    with tempfile.TemporaryDirectory(prefix="bundle-") as directory:
        yield pathlib.Path(directory)
        if overwrite and target.exists():
            target.rmtree()
        target.mkdir(parents=True, exist_ok=True)
        # Into a bucket file by file, the manifest last.
        for path in sorted(epath.Path(directory).iterdir(), key=_is_manifest):
            path.copy(target / path.name)


def _is_manifest(path: epath.Path) -> bool:
    return path.name == rollout_bundle.MANIFEST
