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
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import numpy as np
import safetensors
import safetensors.numpy

from defi_rollout import bundle, errors, preprocess, spec, tokenizers

PROMPT = "prompt"
SEED = "_defi/seed"
RESET = "_defi/reset"
RESERVED_PREFIX = "_defi/"

_MAX_PROMPTS = 1000  # that are looked at; a robot's instructions are few

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
        self._noise = NoiseSequence(seed)
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

    def prepare(self, obs: Observation, noise: "NoiseSequence") -> tuple[Inputs, bool]:
        """Makes the network's inputs of an observation.

        Args:
            obs: as for `infer`.
            noise: of the robot that sent it; advances unless the observation brings a seed.

        Returns:
            Arrays whose first axis is B, 1 for a single observation; whether it was batched.

        Raises:
            UserError: as `infer`; the noise has not advanced then.
        """
        if not isinstance(obs, Mapping) or not all(isinstance(key, str) for key in obs):
            raise errors.UserError(
                f"a {type(obs).__name__}", "observation", "send a map of names to values"
            )
        if unknown := {k for k in obs if k.startswith(RESERVED_PREFIX)} - {SEED, RESET}:
            raise errors.UserError(
                f"unknown {sorted(unknown)}", "observation", f"{SEED!r} and {RESET!r} are known"
            )
        images, batched = self._read_images(obs)
        rows = images.shape[0]
        text = self._read_text(obs, rows)
        keys = noise.keys(obs, rows)
        drawn = {
            f"noise/{name}": np.stack([draw_noise(key, name, shape) for key in keys])
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

    def _read_images(self, obs: Observation) -> tuple[np.ndarray, bool]:
        """Images at the model's size, uint8 [B, cams, H, W, 3], and whether they were batched."""
        expected = {camera.key for camera in self.spec.cameras}
        given = {key for key in obs if key != PROMPT and not key.startswith(RESERVED_PREFIX)}
        if given != expected:
            missing, extra = sorted(expected - given), sorted(given - expected)
            what = [f"{word} {keys}" for word, keys in (("lacks", missing), ("has", extra)) if keys]
            raise errors.UserError(
                " and ".join(what), "observation", f"send {sorted(expected)} and 'prompt'"
            )
        images = [_check_image(camera, np.asarray(obs[camera.key])) for camera in self.spec.cameras]
        batched = images[0].ndim == 4
        if len({image.shape[:-3] for image in images}) > 1:
            raise errors.UserError(
                "cameras differ in their batch", "observation", "send one image per camera and row"
            )
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
        if prompt in self._prompts or len(self._prompts) == _MAX_PROMPTS:
            return
        self._prompts.add(prompt)
        if not prompt.strip():
            logging.warning("empty prompt: the policy acts without an instruction")
        for role, tokenizer in self._tokenizers.items():
            if tokenizer.cuts(prompt):
                logging.warning(
                    "prompt %.60r: %s reads its first %d tokens only",
                    prompt,
                    role,
                    tokenizer.room,
                )

    def _say_resized(self, camera: spec.CameraSpec, given: tuple[int, ...]) -> None:
        """Logs once per camera that its images have another size than the robot's in training."""
        wanted = (camera.height, camera.width)
        if given != wanted and (camera.key, given) not in self._said:
            self._said.add((camera.key, given))
            is_alike = given[0] * wanted[1] == given[1] * wanted[0]
            logging.warning(
                "%s is %dx%d, not %dx%d as in training; resized as in training%s",
                camera.key,
                *given,
                *wanted,
                "" if is_alike else ", another aspect ratio: crop it as the robot's in training",
            )


class NoiseSequence:
    """What one robot's noise is drawn from: a seed, and how many observations it has sent."""

    def __init__(self, seed: int = 0):
        self._seed, self._calls = seed, 0
        self._lock = threading.Lock()

    def reset(self, seed: int | None = None) -> None:
        """Starts over, with `seed` where given."""
        with self._lock:
            self._seed = self._seed if seed is None else _check_seed(seed, RESET)
            self._calls = 0

    def keys(self, obs: Observation, rows: int) -> list[tuple[int, ...]]:
        """Returns the integers that each row's noise is a function of, and goes on by one call.

        Raises:
            UserError: the observation's "_defi/seed" or "_defi/reset" is malformed.
        """
        reset = obs.get(RESET, False)
        if SEED in obs:
            seeds = np.asarray(obs[SEED])
            if seeds.shape not in ((), (rows,)):
                raise errors.UserError(
                    f"{SEED!r} has the shape {seeds.shape}", "observation", f"send 1 or {rows}"
                )
            found = [(_check_seed(seed),) for seed in np.broadcast_to(seeds, (rows,)).tolist()]
        if reset is not False:
            self.reset(None if reset is True else reset)
        if SEED in obs:
            return found
        with self._lock:
            self._calls += 1
            return [(self._seed, self._calls - 1, row) for row in range(rows)]


def draw_noise(key: Sequence[int], name: str, shape: Sequence[int]) -> np.ndarray:
    """Standard normal float32 of `shape`: a function of the integers `key` and the name alone."""
    entropy = [*key, zlib.crc32(name.encode())]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    return generator.standard_normal(shape, dtype=np.float32)


def _check_image(camera: spec.CameraSpec, image: np.ndarray) -> np.ndarray:
    is_image = image.ndim in (3, 4) and image.shape[-1] == 3 and image.size > 0
    if image.dtype != np.uint8 or not is_image:
        raise errors.UserError(
            f"{camera.key!r} is {image.dtype} {image.shape}",
            "observation",
            f"send uint8 [{camera.height}, {camera.width}, 3], or a batch of them",
        )
    return image


def _check_seed(seed: Any, key: str = SEED) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise errors.UserError(f"{key!r} is {seed!r}", "observation", "send an integer >= 0")
    return seed


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
    return jax.jit(exported.call)


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
            command,
            input=program,
            capture_output=True,
            env=environment,
            check=False,
            timeout=_TRY_SECONDS,
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
        raise errors.BundleError(
            f"does not fit {bundle.STABLEHLO} at {', '.join(names[:5])}",
            source.path(bundle.PARAMS),
            f"rebuild it: {bundle.REBUILD.format(old=source.directory)}",
        )
