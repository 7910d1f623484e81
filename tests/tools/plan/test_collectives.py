"""Collectives are counted with their bytes, in every pass of a loop."""

from tools.plan import collectives, hlo

_HLO = """HloModule jit_step, is_scheduled=true

%condition (loop: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%scatter.fused (p: bf16[80,4]) -> bf16[80,4] {
  %c = bf16[80,4]{1,0} reduce-scatter(%z), replica_groups=mesh['x'=4,'y'=2] {'x'}, to_apply=%add
}

%start.fused (p: f32[2]) -> (f32[2], f32[16]) {
  %g = f32[16]{0} all-gather(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%async_collective_fusion.1 (p: f32[2]) -> f32[16] {
  %h = f32[16]{0} all-gather(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%kept.fused (p: f32[64]) -> f32[8] {
  %i = f32[64]{0} all-reduce(%p), replica_groups={}, to_apply=%add
}

%body (loop: (s32[], f32[4])) -> (s32[], f32[4]) {
  %call = bf16[80,4]{1,0} fusion(%z), kind=kCustom, calls=%scatter.fused
}

ENTRY %main (a: bf16[320,80]) -> f32[3,3] {
  %a = bf16[320,320]{1,0:T(8,128)(2,1)} all-gather(%x), replica_groups={{0,1,2,3}}, dimensions={1}
  %b = (f32[5]{0}, f32[20]{0}) all-gather-start(%y), replica_groups=[1,4]<=[4], dimensions={0}
  %c = ((f32[2]{0}, f32[3]{0}), (f32[8]{0}, f32[12]{0})) all-gather-start(%y, %z), dimensions={0}
  %d = (f32[10]{0}, f32[6]{0}) all-reduce(%u, %v), replica_groups={{0,1,2,3}}, to_apply=%add
  %s = (f32[10]{0}, f32[6]{0}) all-reduce-start(%u, %v), replica_groups={}, to_apply=%add
  %w = (s32[], f32[4]) while(%tuple), condition=%condition, body=%body, metadata={op_name="while"}
  %r = f32[7]{0} reduce-scatter(%q), replica_groups={}, to_apply=%add
  %e = s32[4]{0} all-to-all(%w), replica_groups={{0,1}}
  %p = (f32[9]{0}, f32[9]{0}, u32[], u32[]) collective-permute-start(%q), pairs={{0,1}}
  %async-collective-start.2 = (f32[2]{0}, f32[16]{0}) fusion(%q), kind=kCustom, calls=%start.fused
  %fusion.9 = f32[16]{0} fusion(%q), kind=kCustom, calls=%async_collective_fusion.1
  %async-collective-done.2 = f32[16]{0} fusion(%fusion.9), kind=kCustom, calls=%start.fused
  %all-reduce-scatter.4 = f32[8]{0} fusion(%q), kind=kCustom, calls=%kept.fused
}
"""


def test_bytes_that_a_device_receives():
    counts, received = collectives.count(hlo.Program(_HLO), num_devices=8)
    assert counts == {
        "all_gather": 3 + 1,
        "reduce_scatter": 5 + 1 + 1,
        "all_reduce": 2,
        "all_to_all": 1,
        "permute": 1,
    }
    assert received == {
        "all_gather": 320 * 320 * 2 + 20 * 4 + (8 + 12) * 4 + 16 * 4,
        "reduce_scatter": 5 * (80 * 4 * 2) * 4 + 7 * 4 * 8 + 64 * 4,
        "all_reduce": 2 * 2 * (10 + 6) * 4,
        "all_to_all": 16,
        "permute": 36,
    }


def test_loops_of_unknown_length_count_once():
    unknown = _HLO.replace("constant(5)", "parameter(0)")
    assert collectives.count(hlo.Program(unknown), num_devices=8)[0]["reduce_scatter"] == 1 + 1 + 1
