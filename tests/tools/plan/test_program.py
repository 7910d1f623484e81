"""Costs of compiled programs: products, traffic, and what computing hides of the exchanges."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from defi_jax.training import hardware
from tools.plan import hlo, program

CHIP = hardware.Chip(
    flops=1e12,
    hbm_bytes=2**30,
    hbm_bandwidth=1e9,
    link_bandwidth=1e6,
    tile=128,
    slice_bandwidth=1e6,
)


def test_a_product_takes_whole_tiles():
    assert CHIP.product_seconds(16, 128, 256) == 2 * 16 * 128 * 256 / 1e12
    assert CHIP.product_seconds(9, 64, 129) == CHIP.product_seconds(16, 128, 256)


def _costs(text, num_devices=4):
    return program.costs(hlo.Program(text), CHIP, num_devices)


@pytest.mark.parametrize(
    ("attributes", "shapes", "flops"),
    [
        # A plain product, [512, 768] x [768, 64].
        ("dim_labels=bf_io->bf", ("512,768", "768,64", "512,64"), 2 * 512 * 768 * 64),
        # Heads as windows that meet each position once: 12 products [100, 64] x [64, 50].
        (
            "window={size=12 pad=11_11 rhs_reversal=1}, dim_labels=0bf_0oi->0bf",
            ("1,100,64", "12,50,64", "12,100,50"),
            2 * 12 * 100 * 64 * 50,
        ),
        (
            "window={size=12 stride=11 lhs_dilate=12}, dim_labels=0bf_0io->0bf",
            ("12,100,64", "12,64,50", "12,100,50"),
            2 * 12 * 100 * 64 * 50,
        ),
        # A convolution of 3 taps over 10 positions: 2 of its 30 taps fall on padding.
        (
            "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            ("2,10,8", "3,8,16", "2,10,16"),
            2 * 2 * 28 * 8 * 16,
        ),
    ],
)
def test_products_written_as_convolutions(attributes, shapes, flops):
    left, right, out = shapes
    found = _costs(f"""HloModule m

ENTRY %main (a: f32[1]) -> f32[1] {{
  %a = bf16[{left}]{{1,0}} parameter(0)
  %b = bf16[{right}]{{1,0}} parameter(1)
  ROOT %c = bf16[{out}]{{1,0}} convolution(%a, %b), {attributes}
}}
""")
    assert found.flops == pytest.approx(flops, rel=0.02)


def test_flops_agree_with_xla_on_a_real_program():
    def loss(w, x):
        y = lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(jnp.einsum("bhwc,bxyc->bhwxy", y, y) ** 2)

    arguments = [jax.ShapeDtypeStruct(s, "float32") for s in ((3, 3, 16, 32), (2, 8, 8, 16))]
    lowered = jax.jit(jax.grad(loss)).lower(*arguments)
    costs = lowered.compile({"xla_cpu_use_fusion_emitters": False}).cost_analysis()
    assert costs is not None
    text = lowered.compile().as_text()
    assert text is not None
    assert _costs(text).flops == pytest.approx(costs["flops"], rel=0.05)


_SLICED = """HloModule m

%part (p: f32[12,1000], i: s32[]) -> f32[1,1000] {
  %p = f32[12,1000]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %slice = f32[1,1000]{1,0} dynamic-slice(%p, %i), dynamic_slice_sizes={1,1000}
}

%inner (p: f32[12,1000], i: s32[]) -> f32[1,1000] {
  %p = f32[12,1000]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = f32[1,1000]{1,0} fusion(%p, %i), kind=kLoop, calls=%part
}

%updated (p: f32[12,1000], u: f32[1,1000], i: s32[]) -> f32[12,1000] {
  %p = f32[12,1000]{1,0} parameter(0)
  %u = f32[1,1000]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %update = f32[12,1000]{1,0} dynamic-update-slice(%p, %u, %i)
}

ENTRY %main (a: f32[12,1000], i: s32[]) -> f32[12,1000] {
  %a = f32[12,1000]{1,0} parameter(0)
  %i = s32[]{:S(2)} parameter(1)
  %one = f32[1,1000]{1,0} fusion(%a, %i), kind=kLoop, calls=%inner
  %near = f32[1,1000]{1,0:S(1)} copy(%one)
  ROOT %all = f32[12,1000]{1,0} fusion(%a, %near, %i), kind=kLoop, calls=%updated
}
"""


def test_slices_count_and_not_what_they_are_cut_from_and_near_arrays_not_at_all():
    assert _costs(_SLICED).traffic_bytes == 4000 * (2 + 1 + 1)


_EXCHANGES = """HloModule m, is_scheduled=true

ENTRY %main (a: f32[1000]) -> f32[1000] {
  %a = f32[1000]{0} parameter(0)
  %b = f32[1000000]{0} parameter(1)
  %start = f32[8]{0} add(%b, %b)
  %all-gather-start.1 = (f32[1000]{0}, f32[4000]{0}) all-gather-start(%a), dimensions={0}
  %work = f32[1000000]{0} add(%b, %b)
  %all-gather-done.1 = f32[4000]{0} all-gather-done(%all-gather-start.1)
  ROOT %last = f32[2000]{0} all-gather(%a), dimensions={0}
}
"""


def test_exchanges_are_hidden_by_what_runs_between_their_ends():
    found = _costs(_EXCHANGES)
    # 16,000 bytes take 16 ms, beside 8 or 12 MB of traffic, which take 8 or 12 ms.
    assert found.exchange_seconds == pytest.approx(0.016 + 0.008)
    assert found.exposed_seconds == pytest.approx(0.016 - 0.012 + 0.008)
    assert found.exposed_bytes == pytest.approx(16_000 * 4 / 16 + 8_000)
    assert hardware.step_seconds(operations=1.0, exposed=0.5) == 1.5
