"""What chips can do, and how long a compiled step takes on them by calculation.

Figures per JAX device. Sources: Google Cloud's pages of each TPU version (FLOP/s, memory), the
chip tables of "How to Scale Your Model" (links), NVIDIA's data sheets (dense, not sparse).
"""

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device.

    Attributes:
        flops: bfloat16 FLOP/s, dense.
        hbm_bytes: memory.
        hbm_bandwidth: bytes/s.
        link_bandwidth: bytes/s that leave the device over all its links to other chips of a slice.
    """

    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float

    def step_seconds(self, *, operations: float, collective_bytes: float) -> float:
        """Predicted time of a step: the longer of computing and communicating, which overlap.

        A lower bound: kernels reach neither peak, the first and last exchange overlap with nothing,
        and the slow network between slices counts as links.

        Args:
            operations: XLA's estimate of the program without communication, each operation the
                longer of its FLOPs and its memory traffic, seconds.
            collective_bytes: bytes that each device sends.
        """
        return max(operations, collective_bytes / self.link_bandwidth)


CHIPS = {
    "v4": Chip(275e12, 32 * _GIB, 1200e9, 270e9),
    "v5e": Chip(197e12, 16 * _GIB, 819e9, 180e9),
    "v5p": Chip(459e12, 95 * _GIB, 2765e9, 540e9),
    "v6e": Chip(918e12, 32 * _GIB, 1638e9, 360e9),
    "tpu7x": Chip(1153e12, 96 * _GIB, 3690e9, 300e9),  # one of a chip's two devices
}

# Peak bfloat16 FLOP/s by `jax.Device.device_kind`.
_PEAK_FLOPS = {
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "TPU v6e": CHIPS["v6e"].flops,
    "TPU7x": CHIPS["tpu7x"].flops,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a device that is there, dense; None where the table does not have it."""
    return _PEAK_FLOPS.get(device_kind)
