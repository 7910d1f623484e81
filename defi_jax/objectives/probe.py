"""Linear probe: how much of the true actions a ridge regression reads from latent actions."""

import numpy as np

MIN_EXAMPLES = 64
_RIDGE = 1e-2  # of the mean squared feature


def linear_probe(latents: np.ndarray, actions: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Fits on one half of the examples and scores on the other.

    Args:
        latents: float[N, D].
        actions: float[N, A]; constant dimensions are left out.
        seed: decides the split and the shuffle.

    Returns:
        `probe_r2`, and `probe_r2_shuffled` with the latents of other examples, which no honest
        probe can read (about 0 or below).
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(latents))
    latents, actions = latents[order], actions[order]
    shuffled = latents[rng.permutation(len(latents))]
    return {
        "probe_r2": _held_out_r2(latents, actions),
        "probe_r2_shuffled": _held_out_r2(shuffled, actions),
    }


def _held_out_r2(x: np.ndarray, y: np.ndarray) -> float:
    half = len(x) // 2
    y = y[:, y[:half].std(axis=0) > 1e-6].astype(np.float64)
    if not y.shape[1]:
        return 0.0
    center, target = x[:half].mean(axis=0), y[:half].mean(axis=0)
    a, b = (x[:half] - center).astype(np.float64), y[:half] - target
    gram = a.T @ a
    gram += np.eye(len(gram)) * max(_RIDGE * np.trace(gram) / len(gram), 1e-9)
    predicted = (x[half:] - center) @ np.linalg.solve(gram, a.T @ b) + target
    residual = np.square(y[half:] - predicted).sum(axis=0)
    total = np.square(y[half:] - y[half:].mean(axis=0)).sum(axis=0)
    return float(np.mean(1 - residual / np.maximum(total, 1e-9)))
