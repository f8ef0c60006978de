"""Compiled programs' texts against what the programs, in `compile_programs.py`, were written to do."""

import json
import lzma
from pathlib import Path

import pytest

from jaxlm.plan import groups, hlo, kernels
from jaxlm.plan.collectives import summary
from jaxlm.plan.costs import ProgramCosts, difference, program_costs

SQUARE = {"data": 4, "model": 4}
KIB, MIB = 2**10, 2**20


def text_of(name):
    return lzma.decompress((Path(__file__).parent / "programs" / f"{name}.hlo.xz").read_bytes()).decode()


def moved(costs):
    return {(row.kind, row.axes): (row.bytes, row.wire_bytes, row.count) for row in summary(costs.collectives)}


@pytest.mark.parametrize("name", ["apart", "gpu_apart"])
def test_each_collective_has_its_bytes_axes_and_line(name):
    costs = program_costs(text_of(name), SQUARE)
    # One device holds [256, 512] float32; gathered over data, [1024, 512].
    assert moved(costs) == {
        ("all-gather", ("data",)): (2 * MIB, 2 * MIB * 3 // 4, 1),
        ("all-reduce", ("model",)): (2 * MIB, 2 * MIB * 2 * 3 // 4, 1),
        ("all-reduce", ("data", "model")): (2 * MIB, 2 * MIB * 2 * 15 // 16, 1),
        ("reduce-scatter", ("model",)): (2 * MIB, 2 * MIB * 3 // 4, 1),
        ("all-to-all", ("data",)): (512 * KIB, 512 * KIB * 3 // 4, 1),
        ("collective-permute", ("model",)): (512 * KIB, 512 * KIB, 1),
    }
    for one in costs.collectives:
        assert not one.asynchronous  # each result is used at once
        assert one.dtype == "f32" and one.group_size == 4 ** len(one.axes)
    # They stand on six lines, one below the other, after the collective that each of them is.
    places = [one.source.split(":") for one in costs.collectives]
    assert {file for file, _ in places} == {"tests/plan/compile_programs.py"}
    lines = [int(line) for _, line in places]
    assert lines == list(range(lines[0], lines[0] + 6))
    names = [one.op_name.rsplit("/", 1)[1] for one in costs.collectives]
    assert names == ["all_gather", "psum", "psum", "reduce_scatter", "all_to_all", "ppermute"]
    # Axes are named by the mesh that is given, in its order; where none fits, no name is made up.
    assert ("all-gather", ("model",)) in moved(program_costs(text_of(name), {"model": 4, "data": 4}))
    assert {axes for _, axes in moved(program_costs(text_of(name), {"data": 3}))} == {("devices",)}


def test_loops_multiply():
    costs = program_costs(text_of("loops"), SQUARE)
    one = 256 * 512 * 4
    assert moved(costs)["all-reduce", ("model",)] == (7 * one, 7 * one * 3 // 2, 7)
    assert moved(costs)["all-reduce", ("data",)] == (21 * one, 21 * one * 3 // 2, 21)
    assert costs.flops == 7 * 2 * 256 * 512 * 512
    assert not costs.unknown_loops
    sine = next(row for row in costs.cycles_by_source if row.op_name.endswith("/sin"))
    text = text_of("loops")
    single = [each.cycles for each in hlo.parse(text).instructions.values() if each.op_name.endswith("/sin") and each.cycles]
    assert len(single) == 1 and sine.cycles == 21 * single[0] > 0
    # Limits that are data leave a loop uncounted, and say so.
    assert len(program_costs(text.replace("direction=LT", "direction=EQ"), SQUARE).unknown_loops) == 2


LOOP = """HloModule loop, num_partitions=1

%below (p: (s32[], s32[], s32[])) -> pred[] {
  %p = (s32[], s32[], s32[]) parameter(0)
  %limit = s32[] get-tuple-element(%p), index=2
  %counter = s32[] get-tuple-element(%p), index=0
  ROOT %test = pred[] compare(%limit, %counter), direction=GE
}

%body (q: (s32[], s32[], s32[])) -> (s32[], s32[], s32[]) {
  %q = (s32[], s32[], s32[]) parameter(0)
  %step = s32[] constant(3)
  %i = s32[] get-tuple-element(%q), index=0
  %kept = s32[] get-tuple-element(%q), index=2
  %next = s32[] add(%i, %step)
  %work = s32[] multiply(%i, %i), backend_config={"window_config":{"estimated_cycles":"10"}}
  ROOT %result = (s32[], s32[], s32[]) tuple(%next, %work, %kept)
}

ENTRY %main () -> (s32[], s32[], s32[]) {
  %start = s32[] constant(2)
  %end = s32[] constant(11)
  %init = (s32[], s32[], s32[]) tuple(%start, %start, /*index=2*/%end)
  ROOT %loop = (s32[], s32[], s32[]) while(%init), condition=%below, body=%body
}
"""


@pytest.mark.parametrize("edits, trips", [
    ((), 4),  # 2, 5, 8 and 11
    ((("GE", "GT"),), 3),
    ((("constant(2)", "constant(-4)"),), 6),
    ((("constant(3)", "constant(-3)"), ("constant(11)", "constant(-4)"), ("GE", "LT")), 2),  # 2 and -1
    # Newer compilers name the elements of a tuple and write no instruction for them.
    ((("(%limit, %counter)", "(%p#2, %p#0)"), ("add(%i,", "add(%q#0,"), ("%work, %kept)", "%work, %q#2)")), 4),
    ((("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"9"}}'),), 9),
])  # fmt: skip
def test_trip_counts(edits, trips):
    text = LOOP
    for before, after in edits:
        assert before in text
        text = text.replace(before, after)
    costs = program_costs(text, {})
    assert costs.cycles == 10 * trips and not costs.unknown_loops


def test_an_element_of_a_tuple_has_its_own_type():
    held = "(f32[2,3]{1,0:T(8,128)}, (s32[], bf16[4]{0}), /*index=2*/u8[7])"
    text = f"HloModule m\n\nENTRY %main (p: {held}) -> u8[7] {{\n  %p = {held} parameter(0)\n  ROOT %c = u8[7] copy(%p#2)\n}}\n"
    whole = hlo.parse(text).instructions["p"]
    assert [list(map(str, whole.element(place).results)) for place in range(3)] == [
        ["f32[2,3]"],
        ["s32[]", "bf16[4]"],
        ["u8[7]"],
    ]
    assert hlo.parse(text).instructions["c"].reads == (hlo.Shape("u8", (7,)),)


@pytest.mark.parametrize("name", ["sharded", "gpu_sharded"])
def test_gathers_of_sharded_weights(name):
    costs = program_costs(text_of(name), SQUARE)
    weight = 2048 * 2048 * 2  # bfloat16
    # Seven layers, forward and again for the backward pass.
    assert moved(costs)["all-gather", ("data", "model")] == (14 * weight, 14 * weight * 15 // 16, 14)
    assert costs.flops == 7 * 4 * 2 * 512 * 2048 * 2048  # forward, again, and two products backward
    # The compilers differ: for a TPU gradients are summed in full and cut afterwards, which moves twice as much.
    gradients = {
        "sharded": ("all-reduce", (7 * weight, 2 * 7 * weight * 15 // 16, 7)),
        "gpu_sharded": ("reduce-scatter", (7 * weight, 7 * weight * 15 // 16, 7)),
    }
    kind, expected = gradients[name]
    assert moved(costs)[kind, ("data", "model")] == expected


def test_a_conditional_costs_its_dearest_branch():
    costs = program_costs(text_of("branches"), SQUARE)
    assert costs.flops == 2 * 1024**3
    assert moved(costs) == {("all-reduce", ("data",)): (4 * MIB, 6 * MIB, 1)}
    assert not any(row.op_name.endswith("/sin") for row in costs.cycles_by_source)


def test_between_slices():
    shape = {"replica": 2, "expert": 2, "data": 2, "model": 2}
    one = 2048 * 512 * 4  # bytes of a device's part; over all of slices and data, each sends its half
    assert moved(program_costs(text_of("slices"), shape)) == {
        ("send", ("replica",)): (one, one, 1),
        ("send", ("replica", "expert")): (one // 2, one // 2 * 2 * 3 // 4, 1),
        ("send", ("expert",)): (2 * one, one, 1),
        ("reduce-scatter", ("data",)): (one, one // 2, 1),
        ("all-gather", ("data",)): (one, one // 2, 1),
    }


def test_what_the_compiler_does_not_cost():
    costs = program_costs(text_of("moving"), {"data": 4})
    rows, indices = 4096 * 256 * 4, 4096 * 4
    work = {each.name: each for each in costs.uncosted}
    assert work["gather fusion"].bytes == pytest.approx(2 * rows + indices, rel=0.01)
    assert work["scatter fusion"].bytes == pytest.approx(3 * rows + indices, rel=0.01)  # in place
    assert work["sort"].bytes == 4 * rows  # keys and places, read and written
    assert not costs.collectives and not costs.kernels


def test_grouped_products_are_kernels_but_for_the_gradient_of_weights():
    costs = program_costs(text_of("experts"), {"data": 4})
    product = 2 * 8192 * 1024 * 4096
    grouped = [each for each in costs.kernels if each.name == "ragged-dot-none"]
    assert [each.flops for each in grouped] == [product, product]  # forward, and the gradient of the rows
    assert [each.times for each in grouped] == [1, 1]
    assert costs.flops == 8 * product  # every expert meets every row


def test_the_train_step():
    shape = {"replica": 1, "data": 4, "expert": 1, "context": 1, "model": 2}
    costs = program_costs(text_of("train"), shape)
    layers, width, ffn, heads, kv_heads, head, length = 4, 512, 1024, 4, 2, 128, 512
    # bfloat16 on half of the devices' axis `model`; queries, keys, values, outputs, then gate, up and down.
    sizes = [width * n * head for n in (heads, kv_heads, kv_heads, heads)] + [width * ffn] * 3
    matrices = sum(sizes)
    gathers = [one for one in costs.collectives if one.kind == "all-gather" and "/while/body/" in one.op_name]
    forward = [one for one in gathers if "transpose(jvp())" not in one.op_name]
    again = [one for one in gathers if "rematted_computation" in one.op_name]
    assert {one.axes for one in gathers} == {("data",)} and {one.times for one in gathers} == {layers}
    assert sorted(one.bytes for one in forward) == sorted(size * 2 // 2 for size in sizes)
    # Nothing needs the last product again.
    assert sum(one.bytes for one in again) == matrices - width * ffn
    assert any(one.asynchronous and one.cycles_beside > 0 for one in forward)
    # Each matrix multiplies forward, again (but the last), and twice backward; the head has no need of "again".
    head_flops = 3 * 2 * length * width * 4096
    assert costs.flops == layers * 2 * length * (4 * matrices - width * ffn) // 2 + head_flops // 2
    flops = 2 * length * length // 2 * head * heads // 2  # one causal product on this device
    assert {each.name.split("_")[2]: (each.flops, each.times) for each in costs.kernels} == {
        "fwd": (2 * flops, layers), "dkv": (4 * flops, layers), "dq": (3 * flops, layers),
    }  # fmt: skip
    assert all(each.source.startswith("jaxlm/ops/attention.py:") for each in costs.kernels)
    assert sum(row.cycles for row in costs.cycles_by_source) == costs.cycles > 1e6


def test_costs_survive_json_and_differ_by_operation():
    text = text_of("train")
    shape = {"data": 4, "model": 2}
    before = program_costs(text, shape)
    assert ProgramCosts.from_json(json.loads(json.dumps(before.to_json()))) == before
    assert difference(before, before) == ()
    # Six layers instead of four: nothing gets cheaper, and the loop's operations come first.
    after = program_costs(text.replace("s32[]{:T(128)} constant(4)", "s32[]{:T(128)} constant(6)"), shape)
    changes = difference(before, after)
    assert after.cycles > before.cycles and all(change.after > change.before for change in changes)
    assert {change.measure for change in changes} == {"cycles", "wire bytes", "kernel bytes", "uncosted bytes"}
    assert all("while/body" in change.what for change in changes[:5])
    assert "+50.0%" in str(changes[0]) and changes[0].source in str(changes[0])
    # Lines that only moved are the same operations.
    assert difference(before, program_costs(text.replace(" line=", " line=1"), shape)) == ()


def test_groups_in_every_notation():
    lists = groups.replica_group("{{0,2},{1,3,5},{4}}", 6)
    assert lists == (1, 3, 5)
    assert groups.replica_group("{}", 3) == (0, 1, 2)
    assert groups.replica_group("[2,4]<=[4,2]T(1,0)", 8) == (0, 2, 4, 6)
    assert groups.replica_group("[4,2]<=[8]", 8) == (0, 1)
    assert groups.replica_group("mesh['a'=2,'b'=4] {'b'}", 8) == (0, 1, 2, 3)
    assert groups.replica_group("mesh['a'=2,'b'=4] {'a'}", 8) == (0, 4)
    assert groups.replica_group("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", 8) == (0, 2, 4, 6)
    assert groups.replica_group("mesh['a'=2,'b'=4] {'b':(2)2}", 8) == (0, 1)
    assert groups.replica_group("mesh['a'=2,'b'=4] {'a','b':(1)2}", 8) == (0, 2, 4, 6)
    assert groups.permuted("{{0,1},{1,2},{2,0},{5,5}}") == (0, 1, 2)
    assert groups.permuted("{{3,4},{2,3}}") == (2, 3, 4)
    across, within = groups.split({"replica": 2, "data": 4}, 2)
    assert across == (("replica", 2), ("data", 2)) and within == (("replica", 1), ("data", 2))


def test_kernels_are_told_by_their_names():
    """Grouped products of Pallas name no FLOPs; gradients carry the names of what they were made from."""
    calls = {
        "jvp_jit_gmm__.1": ("%rows, %matrices", "bf16[64,32]"),
        "transpose_jvp_jit_tgmm___": ("%columns, %result", "bf16[4,16,32]"),
        "other_kernel.clone": ("%rows", "bf16[64,16]"),
    }
    lines = [
        f'  %{name} = {type} custom-call({operands}), custom_call_target="tpu_custom_call", metadata={{op_name="a/{name}"}}'
        for name, (operands, type) in calls.items()
    ]
    program = hlo.parse(
        "ENTRY %main () -> f32[] {\n"
        "  %rows = bf16[64,16] parameter(0)\n  %matrices = bf16[4,16,32] parameter(1)\n"
        "  %columns = bf16[16,64] parameter(2)\n  %result = bf16[64,32] parameter(3)\n" + "\n".join(lines) + "\n}\n"
    )
    found = [kernels.kernel(program.instructions[name], 3) for name in calls]
    assert [(each.name, each.flops, each.times) for each in found] == [
        ("gmm", 2 * 64 * 16 * 32, 3), ("tgmm", 2 * 64 * 16 * 32, 3), ("other_kernel", None, 3),
    ]  # fmt: skip
    assert found[2].bytes == 2 * 64 * 16 * 2
    assert kernels.kernel(program.instructions["rows"], 1) is None


def test_attention_of_a_stretch_counts_what_its_mirror_leaves():
    """Of stretches of queries that can be halved, each device sees half of all pairs; of others the last sees nearly all."""
    for queries, pairs in ((512, 512 * 2048 / 2), (384, 384 * 1536), (1536, 1536 * 1536 / 2)):
        keys = 2048 if queries == 512 else 1536
        program = hlo.parse(
            f"ENTRY %main () -> f32[] {{\n  %q = bf16[4,{queries},128] parameter(0)\n  %k = bf16[{keys},128] parameter(1)\n"
            f'  %splash_mqa_fwd.1 = bf16[4,{queries},128] custom-call(%q, %k, %k), custom_call_target="tpu_custom_call"\n}}\n'
        )
        assert kernels.kernel(program.instructions["splash_mqa_fwd.1"], 1).flops == 2 * 2 * 4 * pairs * 128


def test_products_with_holes():
    """A batched product written as a convolution: only one place of the window meets an element, not eight."""
    line = "%x = f32[8,1024,4096] convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0fb_0io->0bf"
    program = hlo.parse(
        "ENTRY %main () -> f32[] {\n"
        "  %a = f32[8,8192,1024] parameter(0)\n  %b = f32[8,8192,4096] parameter(1)\n  ROOT " + line + "\n}\n"
    )
    product = program.root("main")
    assert kernels.product_flops(product) == 8 * 2 * 8192 * 1024 * 4096
    assert [each.name for each in product.operands] == ["a", "b"]
    assert hlo.shapes("(bf16[2,3]{1,0:T(8,128)(2,1)}, /*index=1*/s4[8], pred[], f8e4m3fn[4], c64[2])")[1:] == (
        hlo.Shape("s4", (8,)), hlo.Shape("pred", ()), hlo.Shape("f8e4m3fn", (4,)), hlo.Shape("c64", (2,)),
    )  # fmt: skip
    assert [shape.bytes for shape in hlo.shapes("bf16[2,3] s4[3] pred[] f8e4m3fn[4] c64[2] f32[0]")] == [12, 2, 1, 4, 16, 0]
