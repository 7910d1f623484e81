"""A bundle that acts: observation in, action chunk out.

    policy = Policy.load("runs/demo/bundle")
    actions = policy.infer({"observation/image": image, "prompt": "open the drawer"})["actions"]

The policy is the jax.export artefact `policy.stablehlo`, called with the parameters of
`params.safetensors`; noise is an input, drawn here from (seed, call), so that the same seed gives
the same actions on every platform.

Legend: B batch, H W image size, S action-chunk length, A action dimension, L text tokens.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import numpy as np
import safetensors
import safetensors.numpy

from defi_rollout import bundle, errors, preprocess, spec, tokenizers
from defi_rollout import noise as noise_lib

PROMPT = "prompt"

_MAX_SAID = 1000  # sizes and prompts that are looked at; a robot's are few

# Reads a program as `_load_program` and the compiler will.
_TRY_PROGRAM = """
import sys, jax, jax.export
exported = jax.export.deserialize(bytearray(sys.stdin.buffer.read()))
(_, _), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
exported.mlir_module()
"""

_TRY_SECONDS = 300
_READABLE: set[str] = set()  # digests of bundles whose programs were read

Observation = Mapping[str, Any]
Inputs = dict[str, np.ndarray]


class Policy:
    """Runs the policy of one bundle; safe to call from several threads.

    Attributes:
        spec: the bundle's specification.
        digest: sha256 that identifies the bundle.
    """

    def __init__(self, source: bundle.Bundle, *, seed: int = 0):
        self.spec, self.digest = source.spec, source.digest
        params = _load_tensors(source, bundle.PARAMS)
        self._call = _load_program(source, params)
        self._params = jax.device_put(params)
        self._tokenizers = {
            role: tokenizers.from_bundle(text, source) for role, text in self.spec.text.items()
        }
        self._example = _load_tensors(source, bundle.EXAMPLE)
        self._noise = noise_lib.NoiseSequence(seed)
        self._said: set[tuple[str, tuple[int, ...]]] = set()
        self._prompts: set[str] = set()

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, seed: int = 0, warm_up: bool = True) -> "Policy":
        """Loads and verifies the bundle at `path`, and compiles its policy for one observation.

        Args:
            path: the bundle's directory, or its URL such as "gs://bucket/bundle".
            seed: seed of the noise of observations that bring none.
            warm_up: False leaves the compilation to the first `infer`.

        Raises:
            UserError: no bundle there, or it cannot be reached.
            BundleError: a file is missing, unknown or damaged, or jax refuses the program.
        """
        policy = cls(bundle.read_bundle(path), seed=seed)
        if warm_up:
            policy.run_example()
        return policy

    def reset(self, seed: int | None = None) -> None:
        """Starts a new episode: the noise sequence begins again, with `seed` where given.

        Raises:
            UserError: the seed is not an integer >= 0.
        """
        self._noise.reset(seed)

    def infer(self, obs: Observation) -> dict[str, Any]:
        """Predicts a chunk of actions.

        Args:
            obs: each camera's key to uint8 [H, W, 3] and "prompt" to a string; or, batched, to
                uint8 [B, H, W, 3] and a string or B strings. Optional: "_defi/seed", an integer
                (or B of them): the actions then depend on this observation alone;
                "_defi/reset": true restarts the noise sequence, an integer does so with it as seed.

        Returns:
            "actions": float32 [S, A] ([B, S, A] when batched) in the robot's units, within the
            action limits; "policy_timing": {"infer_ms": float}.

        Raises:
            UserError: a key is missing or unknown, or a value has the wrong type or shape.
            CheckFailed: the policy's output is not finite.
        """
        started = time.perf_counter()
        inputs, batched = self.prepare(obs, self._noise)
        actions = self.run(inputs)
        return {
            "actions": actions if batched else actions[0],
            "policy_timing": {"infer_ms": 1000 * (time.perf_counter() - started)},
        }

    def prepare(
        self, obs: Observation, noise: noise_lib.NoiseSequence, max_rows: int | None = None
    ) -> tuple[Inputs, bool]:
        """Makes the network's inputs of an observation.

        Args:
            obs: as for `infer`.
            noise: of the robot that sent it; advances unless the observation brings a seed.
            max_rows: more rows are refused before anything is made of them; None: no limit.

        Returns:
            Arrays whose first axis is B, 1 for a single observation; whether it was batched.

        Raises:
            UserError: as `infer`; the noise has not advanced then.
        """
        if not isinstance(obs, Mapping) or not all(isinstance(key, str) for key in obs):
            raise errors.UserError(
                f"a {type(obs).__name__}", "observation", "send a map of names to values"
            )
        known = {noise_lib.SEED, noise_lib.RESET}
        if unknown := {key for key in obs if key.startswith(noise_lib.PREFIX)} - known:
            fix = " and ".join(map(repr, sorted(known))) + " are known"
            raise errors.UserError(f"unknown {sorted(unknown)}", "observation", fix)
        images, batched = self._read_images(obs, max_rows)
        rows = images.shape[0]
        text = self._read_text(obs, rows)
        keys = noise.keys(obs, rows)
        drawn = {
            f"noise/{name}": np.stack([noise_lib.draw(key, name, shape) for key in keys])
            for name, shape in self.spec.noise.items()
        }
        return {"images": images, **text, **drawn}, batched

    def run(self, inputs: Inputs) -> np.ndarray:
        """Returns the actions of prepared inputs, float32 [B, S, A], in the robot's units.

        Raises:
            CheckFailed: the policy's output is not finite.
        """
        normalised = np.asarray(self._call(self._params, inputs)["actions"], np.float32)
        if not np.isfinite(normalised).all():
            raise errors.CheckFailed(
                "the policy's actions are not finite",
                f"bundle {self.digest[:12]}",
                "do not run this bundle; export another checkpoint",
            )
        return self.spec.unnormalise(normalised)

    def example_inputs(self, rows: int | None = None) -> Inputs:
        """Returns the bundle's own example, or its first row so many times, to compile for them."""
        example = self._example
        images, _ = self._read_images({c.key: example[c.key] for c in self.spec.cameras})
        noise = {f"noise/{name}": example[f"noise/{name}"] for name in self.spec.noise}
        text = self._read_text({PROMPT: self.spec.example_prompt}, len(images))
        inputs = {"images": images, **text, **noise}
        if rows is None:
            return inputs
        return {key: np.repeat(value[:1], rows, axis=0) for key, value in inputs.items()}

    def run_example(self) -> float:
        """Runs the bundle's own example; returns the relative L2 distance to its known answer."""
        actions = self.run(self.example_inputs())
        expected = self._example["expected/actions"]
        return float(np.linalg.norm(actions - expected) / max(np.linalg.norm(expected), 1e-12))

    @property
    def metadata(self) -> dict[str, Any]:
        """What a server tells its clients about this policy."""
        return self.spec.metadata(self.digest)

    def _read_images(
        self, obs: Observation, max_rows: int | None = None
    ) -> tuple[np.ndarray, bool]:
        """Images at the model's size, uint8 [B, cams, H, W, 3], and whether they were batched."""
        expected = {camera.key for camera in self.spec.cameras}
        given = {key for key in obs if key != PROMPT and not key.startswith(noise_lib.PREFIX)}
        if given != expected:
            missing, extra = sorted(expected - given), sorted(given - expected)
            what = [f"{word} {keys}" for word, keys in (("lacks", missing), ("has", extra)) if keys]
            raise errors.UserError(
                " and ".join(what), "observation", f"send {sorted(expected)} and 'prompt'"
            )
        images = [_check_image(camera, obs[camera.key]) for camera in self.spec.cameras]
        batched = images[0].ndim == 4
        if len({image.shape[:-3] for image in images}) > 1:
            raise errors.UserError(
                "cameras differ in their batch", "observation", "send one image per camera and row"
            )
        if batched and max_rows is not None and len(images[0]) > max_rows:
            fix = f"send at most {max_rows} (--max_batch)"
            raise errors.UserError(f"{len(images[0])} rows", "observation", fix)
        views, size = [], (self.spec.image.height, self.spec.image.width)
        for camera, image in zip(self.spec.cameras, images, strict=True):
            self._say_resized(camera, image.shape[-3:-1])
            rows = image if batched else image[None]
            views.append(np.stack([preprocess.resize(row, size) for row in rows]))
        return np.stack(views, axis=1), batched

    def _read_text(self, obs: Observation, size: int) -> Inputs:
        """Token ids and masks of every text role, int32 and bool [B, L]."""
        prompt = obs.get(PROMPT)
        if isinstance(prompt, np.ndarray):
            prompt = prompt.tolist()
        prompts = [prompt] * size if isinstance(prompt, str) else prompt
        if (
            not isinstance(prompts, Sequence)
            or len(prompts) != size
            or not all(isinstance(item, str) for item in prompts)
        ):
            raise errors.UserError(
                f"'prompt' is not a string or {size} strings", "observation", "send the instruction"
            )
        inputs: Inputs = {}
        for item in prompts:
            self._say_unread(item)
        for role, tokenize in self._tokenizers.items():
            inputs[f"text/{role}"], inputs[f"text_mask/{role}"] = tokenize(list(prompts))
        return inputs

    def _say_unread(self, prompt: str) -> None:
        """Logs once per prompt what of it the policy does not read."""
        if prompt in self._prompts or len(self._prompts) == _MAX_SAID:
            return
        self._prompts.add(prompt)
        if not prompt.strip():
            logging.warning("empty prompt: the policy acts without an instruction")
        for role, tokenizer in self._tokenizers.items():
            if tokenizer.cuts(prompt):
                logging.warning(
                    "prompt %.60r: %s reads its first %d tokens only", prompt, role, tokenizer.room
                )

    def _say_resized(self, camera: spec.CameraSpec, given: tuple[int, ...]) -> None:
        """Logs once per camera that its images have another size than the robot's in training."""
        wanted = (camera.height, camera.width)
        case = (camera.key, given)
        if given != wanted and case not in self._said and len(self._said) < _MAX_SAID:
            self._said.add(case)
            is_alike = given[0] * wanted[1] == given[1] * wanted[0]
            said = "%s is %dx%d, not %dx%d as in training; resized as in training%s"
            advice = ", another aspect ratio: crop it as the robot's in training"
            logging.warning(said, camera.key, *given, *wanted, "" if is_alike else advice)


def _check_image(camera: spec.CameraSpec, value: Any) -> np.ndarray:
    with errors.UserError.instead_of(ValueError, f"{camera.key!r} is ragged", "observation"):
        image = np.asarray(value)
    is_image = image.ndim in (3, 4) and image.shape[-1] == 3 and image.size > 0
    if image.dtype != np.uint8 or not is_image:
        fix = f"send uint8 [{camera.height}, {camera.width}, 3], or a batch of them"
        what = f"{camera.key!r} is {image.dtype} {image.shape}"
        raise errors.UserError(what, "observation", fix)
    return image


def _load_tensors(source: bundle.Bundle, name: str) -> dict[str, np.ndarray]:
    path, kinds = source.path(name), (safetensors.SafetensorError, KeyError, ValueError)
    fix = "export the bundle again"
    with errors.BundleError.instead_of(kinds, "not a safetensors file", path, fix):
        return safetensors.numpy.load_file(path)


def _load_program(source: bundle.Bundle, params: Mapping[str, np.ndarray]) -> Callable:
    """Compiled-on-demand `policy(params, inputs) -> outputs`; its sha256 is checked before."""
    where = source.path(bundle.STABLEHLO)
    rebuild = f"rebuild it: {bundle.REBUILD.format(old=source.directory)}"
    program = source.read(bundle.STABLEHLO)
    refusal = _try_program(source.digest, program)
    if refusal:
        what = f"jax {jax.__version__} refuses it ({refusal})"
        raise errors.BundleError(what, where, rebuild)
    exported = jax.export.deserialize(bytearray(program))
    (wanted, _), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in exported.platforms:
        raise errors.BundleError(f"not exported for {platform}", where, rebuild)
    _check_params(wanted, params, source)
    jitted, compiled = jax.jit(exported.call), {}

    def call(params: Mapping[str, Any], inputs: Inputs) -> Mapping[str, Any]:
        rows = len(inputs["images"])
        if rows not in compiled:
            kinds, what = (RuntimeError, ValueError), f"jax {jax.__version__} cannot compile it"
            with errors.BundleError.instead_of(kinds, what, where, rebuild):
                compiled[rows] = jitted.lower(params, inputs).compile()
        return compiled[rows](params, inputs)

    return call


def _try_program(digest: str, program: bytes) -> str:
    """Returns why jax cannot read a bundle's program, "" where it can.

    A child process reads it, whose crash ends nothing else; once for each bundle in a process.
    """
    if digest in _READABLE:
        return ""
    command = [sys.executable, "-c", _TRY_PROGRAM]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            command, input=program, capture_output=True, env=environment, timeout=_TRY_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"its reader was not done in {_TRY_SECONDS} s"
    if not done.returncode:
        _READABLE.add(digest)
        return ""
    if done.returncode < 0:
        return f"its reader ended by signal {-done.returncode}"
    lines = done.stderr.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no reason")[:200]


def _check_params(wanted: Any, params: Mapping[str, np.ndarray], source: bundle.Bundle) -> None:
    expected = {path: (aval.shape, str(aval.dtype)) for path, aval in wanted.items()}
    given = {path: (array.shape, str(array.dtype)) for path, array in params.items()}
    if expected != given:
        names = sorted({path for path, _ in expected.items() ^ given.items()})
        what = f"does not fit {bundle.STABLEHLO} at {', '.join(names[:5])}"
        fix = f"rebuild it: {bundle.REBUILD.format(old=source.directory)}"
        raise errors.BundleError(what, source.path(bundle.PARAMS), fix)
