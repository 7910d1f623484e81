"""A tiny objective with every trait the loop must carry, and a command line to run it alone."""

import contextlib
import json
import logging
import os
import pathlib
import signal
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from defi_jax import processes
from defi_jax.objectives import base
from defi_jax.training import loop

# The same few programs are compiled by many tests.
PROGRAMS = str(pathlib.Path(tempfile.gettempdir()) / "defi_jax_test_programs")
WIDTH, HIDDEN = 64, 1024  # the kernel is large enough to be split over devices


def config(**changes):
    numbers = ml_collections.ConfigDict(
        {
            "seed": 3,
            "steps": 4,
            "global_batch": 16,
            "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
            "eval_every": 0,
            "eval_batches": 0,
            "save_every": 2,
            "log_every": 1,
            "keep_checkpoints": 3,
            "max_failed_saves": 3,
            "storage_timeout": 600.0,
            "step_timeout": 30.0,
            "max_consecutive_bad_steps": 3,
            "profile_start": 0,
            "profile_steps": 5,
            "compilation_cache_dir": PROGRAMS,
            "logging": {"tensorboard": False, "wandb": False},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-2,
                "schedule": "warmup_cosine",
                "warmup_steps": 2,
                "schedule_steps": 0,
                "final_scale": 0.1,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "weight_decay": 0.01,
                "grad_clip_norm": 1.0,
                "accumulation_steps": 1,
                "ema_decay": 0.9,
                "spike_factor": 0.0,
                "spike_window": 20,
                "spike_skips": 2,
                "spike_cuts": 1,
            },
        }
    )
    numbers.update_from_flattened_dict(changes)
    return numbers.lock()


class ToyObjective(base.Objective):
    """Regression by a two-layer net behind a frozen scale, with a usage counter and a restart."""

    name = "toy"

    def __init__(self, noise=0.1, starts=(), hidden=HIDDEN):
        self.noise, self.starts, self.hidden = noise, starts, hidden
        self.evaluations = []

    def batch_spec(self, batch_size):
        return {
            "x": jax.ShapeDtypeStruct((batch_size, WIDTH), jnp.float32),
            "y": jax.ShapeDtypeStruct((batch_size, 4), jnp.float32),
        }

    def init_params(self, rng):
        first, second = jax.random.split(rng)
        return {
            "net": {
                "fc1": {"kernel": jax.random.normal(first, (WIDTH, self.hidden)) / 8},
                "fc2": {
                    "kernel": jax.random.normal(second, (self.hidden, 4)) / 32,
                    "bias": jnp.zeros(4),
                },
            },
            "codebook": jnp.ones((5, 4)),
            "encoder": {"scale": jnp.full(WIDTH, 0.5)},
        }

    def init_extra(self):
        return {"usage": jnp.zeros(5, jnp.int32)}

    def is_trainable(self, path):
        return not path.startswith("encoder/")

    def loss_fn(self, params, extra, batch, rng):
        x = batch["x"] * params["encoder"]["scale"]
        x += self.noise * jax.random.normal(rng, x.shape)
        net = params["net"]
        hidden = jnp.tanh(x @ net["fc1"]["kernel"])
        y = hidden @ net["fc2"]["kernel"] + net["fc2"]["bias"] + params["codebook"].mean(0)
        loss = jnp.mean(jnp.square(y - batch["y"]))
        extra = {"usage": extra["usage"].at[0].add(batch["x"].shape[0])}
        return loss, base.LossOutput(metrics={"output": jnp.mean(y)}, extra=extra)

    def after_step(self, params, extra, step, rng):
        due = step % 3 == 0
        fresh = jax.random.normal(rng, params["codebook"].shape)
        return {**params, "codebook": jnp.where(due, fresh, params["codebook"])}, extra

    def evaluate(self, params, batches, rng):
        seen = [np.asarray(batch["x"]).mean() for batch in batches]
        self.evaluations.append(len(seen))
        picture = np.zeros((7, 9, 3), np.uint8)
        return base.EvalOutput(
            scalars={"score": float(np.mean(seen))},
            images={"still": picture},
            videos={"moving": np.stack([picture, picture + 255])},
        )

    def warm_starts(self):
        return self.starts

    def describe(self):
        return {"objective": "toy", "width": WIDTH}


class _Normalizer:
    def to_json(self):
        return {"kind": "none"}


class ToyLoader:
    """Batch k is a function of k alone; `nan_at` names batches that hold a NaN.

    `harm` is [batch, what]: a signal that the process sends itself there, "raise" or "sleep".
    """

    normalizer = _Normalizer()
    fingerprint = "toy"

    def __init__(self, spec, nan_at=(), seconds=0.0, num_batches=None, on_batch=None, harm=None):
        self.spec, self.nan_at, self.seconds, self.num_batches = spec, nan_at, seconds, num_batches
        self.position, self.bad_samples, self.still_pairs = 0, {}, {}
        self.on_batch, self.harm = on_batch, harm

    def batch(self, number):
        rng = np.random.default_rng(number)
        draw = {k: rng.standard_normal(v.shape).astype(v.dtype) for k, v in self.spec.items()}
        if number in self.nan_at:
            draw["x"][1, 2] = np.nan
        return draw

    def __iter__(self):
        return self

    def __next__(self):
        if self.num_batches is not None and self.position >= self.num_batches:
            raise StopIteration
        time.sleep(self.seconds)
        self.position += 1
        if self.on_batch:
            self.on_batch(self.position)
        if self.harm and self.position == self.harm[0]:
            self.do_harm(self.harm[1])
        return self.batch(self.position - 1)

    def do_harm(self, what):
        if what == "raise":
            raise ValueError("harmed")
        if what == "sleep":
            time.sleep(600)
        os.kill(os.getpid(), getattr(signal, what))

    def first(self, num_batches):
        return (self.batch(1000 + k) for k in range(num_batches))

    def state(self):
        return {"next": self.position}

    def restore(self, state):
        self.position = state["next"]

    def describe(self):
        return [{"name": "toy"}]

    def close(self):
        pass


def make_loader(**options):
    def make(spec, *, split, seed, global_batch, process_index, process_count):
        del seed, global_batch, process_index
        local = {
            k: jax.ShapeDtypeStruct((v.shape[0] // process_count, *v.shape[1:]), v.dtype)
            for k, v in spec.items()
        }
        return ToyLoader(local, **(options if split == "train" else {}))

    return make


@contextlib.contextmanager
def compilations():
    """Collects the names of the programs that are compiled."""
    names = []
    handler = logging.Handler()
    handler.emit = lambda record: names.append(record.getMessage())
    logger = logging.getLogger("jax._src.interpreters.pxla")
    logger.addHandler(handler)
    with jax.log_compiles():
        yield names
    logger.removeHandler(handler)


def leaves(state):
    """Path to numpy array, keys as their words."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found[jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def main(workdir, options):
    """Trains with `options`: config changes, and "loader" and "objective" arguments."""
    options = dict(options)
    loader = make_loader(**options.pop("loader", {}))
    objective = ToyObjective(**options.pop("objective", {}))
    result = options.pop("result", None)
    with processes.joined():
        state = loop.train(config(**options), objective, loader, workdir)
    if result:
        np.savez(pathlib.Path(workdir) / result, **leaves(state))


if __name__ == "__main__":
    from defi_jax import cli

    workdir, options = sys.argv[1:]
    sys.argv = sys.argv[:1]
    cli.run(lambda argv: main(workdir, json.loads(options)))
