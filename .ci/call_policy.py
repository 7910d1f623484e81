"""Calls a bundle's policy with a batch of 1 and a batch of 3: python call_policy.py BUNDLE."""

import sys

import defi_rollout
import numpy as np

policy = defi_rollout.Policy.load(sys.argv[1])
spec = policy.spec
for batch in (1, 3):
    pictures = {c.key: np.zeros((batch, c.height, c.width, 3), np.uint8) for c in spec.cameras}
    actions = policy.infer({**pictures, "prompt": "open the drawer"})["actions"]
    assert actions.shape == (batch, spec.action_horizon, spec.action_spec.dim), actions.shape
    print(f"batch {batch}: actions {actions.shape}, {actions.min():.2f} to {actions.max():.2f}")
