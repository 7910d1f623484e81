import subprocess
import sys
import textwrap

import defi_rollout
import numpy as np
import pytest
import safetensors.numpy
from defi_rollout import bundle, errors, noise, policy

BLOCKED = ("flax", "tensorflow", "torch", "optax", "orbax", "defi_jax", "data_pipelines")
GOLDEN_NOISE = [0.31738341, -1.26768994, 1.02136016]


def test_infer_gives_one_chunk_within_the_limits(tiny, obs):
    actions = tiny.infer(obs)["actions"]
    assert actions.shape == (5, 4) and actions.dtype == np.float32
    limits = tiny.spec.action_spec
    assert (actions >= np.float32(limits.low)).all() and (actions <= np.float32(limits.high)).all()


def test_same_seed_same_actions_whatever_came_before(tiny, obs):
    first = tiny.infer(obs | {noise.SEED: 3})["actions"]
    tiny.infer(obs)
    np.testing.assert_array_equal(tiny.infer(obs | {noise.SEED: 3})["actions"], first)
    assert not np.array_equal(tiny.infer(obs | {noise.SEED: 4})["actions"], first)


def test_reset_repeats_the_noise_sequence(tiny, obs):
    tiny.reset(seed=5)
    first = [tiny.infer(obs)["actions"] for _ in range(2)]
    assert not np.array_equal(*first)
    tiny.reset()
    np.testing.assert_array_equal(tiny.infer(obs)["actions"], first[0])
    again = tiny.infer(obs | {noise.RESET: True})["actions"]
    np.testing.assert_array_equal(again, first[0])


def test_batched_rows_equal_single_observations(tiny, obs):
    image = obs["observation/image"]
    batch = {"observation/image": np.stack([image, 255 - image]), "prompt": ["go left", "right"]}
    together = tiny.infer(batch | {noise.SEED: [1, 2]})["actions"]
    assert together.shape == (2, 5, 4)
    for row in range(2):
        alone = {"observation/image": batch["observation/image"][row]}
        single = tiny.infer(alone | {"prompt": batch["prompt"][row], noise.SEED: row + 1})
        np.testing.assert_allclose(single["actions"], together[row], atol=1e-5)


def test_instruction_and_image_matter(tiny, obs):
    base = tiny.infer(obs | {noise.SEED: 0})["actions"]
    for change in ({"prompt": "go right"}, {"observation/image": 255 - obs["observation/image"]}):
        assert not np.array_equal(tiny.infer(obs | change | {noise.SEED: 0})["actions"], base)


@pytest.mark.parametrize(
    "change",
    [
        {"observation/image": None},
        {"observation/image": np.zeros((16, 16, 3), np.float32)},
        {"observation/image": np.zeros((16, 16), np.uint8)},
        {"observation/wrist_image": np.zeros((16, 16, 3), np.uint8)},
        {"prompt": None},
        {"prompt": ["a", "b"]},
        {noise.SEED: -1},
        {noise.SEED: 0.5},
        {noise.SEED: [[1], [1, 2]]},
        {noise.RESET: None},
        {"observation/image": [[1], [1, 2]]},
    ],
)
def test_malformed_observation_is_a_usage_error(tiny, obs, change):
    with pytest.raises(errors.UserError):
        tiny.infer(obs | change)


def test_too_many_rows_are_refused_before_any_is_resized(tiny, obs):
    many = obs | {"observation/image": np.zeros((1 << 24, 1, 1, 3), np.uint8)}  # 13 GB resized
    with pytest.raises(errors.UserError, match=r"16777216 rows.*at most 8"):
        tiny.prepare(many, noise.NoiseSequence(), 8)


def test_missing_camera_names_the_expected_keys(tiny, obs):
    del obs["observation/image"]
    with pytest.raises(errors.UserError, match="observation/image"):
        tiny.infer(obs)


def test_actions_that_are_not_finite_are_refused(tiny_bundle, reseal, obs):
    params = safetensors.numpy.load_file(tiny_bundle / bundle.PARAMS)
    params["policy/goal_emb/fc1/kernel"][:] = np.nan
    safetensors.numpy.save_file(params, tiny_bundle / bundle.PARAMS)
    reseal(tiny_bundle)
    with pytest.raises(errors.CheckFailed, match="not finite"):
        policy.Policy.load(tiny_bundle)


def test_a_prompt_that_is_not_read_whole_is_said_once(tiny, obs, caplog):
    room = min(tokenizer.room for tokenizer in tiny._tokenizers.values())
    for _ in range(2):
        tiny.infer(obs | {"prompt": "o" * (room + 1)})
        tiny.infer(obs | {"prompt": "o" * room})
        tiny.infer(obs | {"prompt": " "})
    cut = sorted(role for role, own in tiny._tokenizers.items() if own.room == room)
    long = repr("o" * (room + 1))
    assert sorted(record.getMessage() for record in caplog.records) == [
        "empty prompt: the policy acts without an instruction",
        *(f"prompt {long:.60}: {role} reads its first {room} tokens only" for role in cut),
    ]


def test_another_aspect_ratio_is_said(tiny, obs, caplog):
    for shape in ((20, 20, 3), (12, 20, 3)):
        tiny.infer(obs | {"observation/image": np.zeros(shape, np.uint8)})
    alike, other = (record.getMessage() for record in caplog.records)
    assert "20x20" in alike and "aspect" not in alike
    assert "12x20" in other and "aspect ratio" in other


def test_refused_program_names_the_command_that_rebuilds_it(tiny_bundle, reseal):
    (tiny_bundle / bundle.STABLEHLO).write_bytes(b"from another age")
    reseal(tiny_bundle)
    command = f"launch/export.py --from_bundle={tiny_bundle} --output="
    with pytest.raises(errors.BundleError, match=command):
        policy.Policy.load(tiny_bundle)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_damaged_program_is_refused_in_one_line(tiny_bundle, reseal, share):
    program = bytearray((tiny_bundle / bundle.STABLEHLO).read_bytes())
    start = int(share * len(program))
    program[start : start + 64] = b"\xff" * 64
    (tiny_bundle / bundle.STABLEHLO).write_bytes(program)
    reseal(tiny_bundle)
    with pytest.raises(errors.BundleError, match=r"jax \S+ refuses it \(.+\).*--from_bundle"):
        policy.Policy.load(tiny_bundle)


def test_a_program_that_only_the_compiler_refuses_names_the_command(tiny_bundle, reseal):
    program = (tiny_bundle / bundle.STABLEHLO).read_bytes()
    assert b"shape_assertion" in program  # a call that jax knows
    (tiny_bundle / bundle.STABLEHLO).write_bytes(program.replace(b"shape_assert", b"shape_unsert"))
    reseal(tiny_bundle)
    loaded = policy.Policy.load(tiny_bundle, warm_up=False)
    with pytest.raises(errors.BundleError, match=r"cannot compile it \(.+\).*--from_bundle"):
        loaded.run_example()


def test_a_program_that_kills_its_reader_is_refused(tiny_bundle, monkeypatch):
    # A stand-in for the reader: no program is known that ends the reader of this jax by a signal.
    monkeypatch.setattr(policy, "_TRY_PROGRAM", "import os, signal; os.kill(os.getpid(), 11)")
    monkeypatch.setattr(policy, "_READABLE", set())
    with pytest.raises(errors.BundleError, match=r"ended by signal 11.*--from_bundle"):
        policy.Policy.load(tiny_bundle)


def test_a_program_whose_reader_hangs_is_refused(tiny_bundle, monkeypatch):
    # A stand-in, as above.
    monkeypatch.setattr(policy, "_TRY_PROGRAM", "import time; time.sleep(60)")
    monkeypatch.setattr(policy, "_TRY_SECONDS", 1)
    monkeypatch.setattr(policy, "_READABLE", set())
    with pytest.raises(errors.BundleError, match=r"not done in 1 s.*--from_bundle"):
        policy.Policy.load(tiny_bundle)


def test_params_of_another_model_are_named(tiny_bundle, reseal):
    params = safetensors.numpy.load_file(tiny_bundle / bundle.PARAMS)
    params["policy/goal_emb/fc1/kernel"] = np.zeros((3, 5), np.float32)
    safetensors.numpy.save_file(params, tiny_bundle / bundle.PARAMS)
    reseal(tiny_bundle)
    with pytest.raises(errors.BundleError, match="policy/goal_emb/fc1/kernel"):
        policy.Policy.load(tiny_bundle)


def test_noise_is_a_fixed_function_of_its_key():
    drawn = noise.draw((0, 1), "actions", (3,))
    # Golden: change only together with SCHEMA_VERSION, since recorded runs would differ.
    np.testing.assert_allclose(drawn, GOLDEN_NOISE, rtol=1e-6)


@pytest.mark.slow
def test_runs_where_the_training_stack_is_absent(tiny_bundle):
    script = f"""
        import sys

        class Block:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {BLOCKED!r}:
                    raise ImportError("blocked " + name)

        sys.meta_path.insert(0, Block())
        import numpy as np
        import defi_rollout
        from defi_rollout import main

        policy = defi_rollout.Policy.load({str(tiny_bundle)!r})
        image = np.zeros((16, 16, 3), np.uint8)
        print(policy.infer({{"observation/image": image, "prompt": "go"}})["actions"].shape)
        assert main.main(["inspect", {str(tiny_bundle)!r}]) == 0
        assert not [m for m in sys.modules if m.split(".")[0] in {BLOCKED!r}]
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "(5, 4)" in done.stdout


def test_policy_is_public():
    assert defi_rollout.Policy is policy.Policy
