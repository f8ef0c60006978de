"""The script that measures GPUs, on a processor with tiny shapes; what needs a GPU is refused before anything is begun."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks import gpu, gpu_step
from benchmarks.gpu_shapes import SHAPES
from jaxlm.model.flops import active_parameters, train_flops_per_token
from jaxlm.model.presets import PRESETS


def test_without_a_gpu_nothing_is_begun(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "gpus", lambda: [])
    monkeypatch.setattr(gpu, "ours", lambda *_: pytest.fail("measured without a GPU"))
    assert gpu.main(gpu.Arguments()) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_tiny_model_is_measured_packed_and_profiled(tmp_path):
    found = gpu_step.run(SHAPES["tiny"], 64, 0.01, packed=True, profile=tmp_path)
    assert found["rows"] == 4 and found["packed"] and 3 < found["loss"] < 9
    assert found["tokens_per_second"] == pytest.approx(4 * 64 / (found["step_ms"] / 1e3))
    assert found["mfu"] is None  # nobody publishes the peak of this processor
    assert found["kernels"] and sum(each["share"] for each in found["kernels"]) <= 1.0 + 1e-9
    json.dumps(found)


@pytest.mark.parametrize("name", ["125m", "350m", "1b"])
def test_dense_shapes_are_those_of_the_presets(name):
    model = gpu_step.experiment_of(SHAPES[name], 2048, 8).model
    assert active_parameters(model) == active_parameters(PRESETS[name]())


def test_a_switch_token_costs_what_a_dense_one_does():
    switch, dense = (gpu_step.experiment_of(SHAPES[name], 2048, 8).model for name in ("switch", "350m"))
    assert train_flops_per_token(switch, 2048) == pytest.approx(train_flops_per_token(dense, 2048), rel=1e-3)


def test_rows_are_one_document_or_packed_ones():
    with jax.set_mesh(jax.sharding.get_mesh()):
        bench = SimpleNamespace(rows=2, length=64, packed=True, model=SimpleNamespace(vocab_size=512))
        packed = gpu_step.Bench._draw(bench, 0)
        alone = gpu_step.Bench._draw(SimpleNamespace(**vars(bench) | {"packed": False}), 0)
    assert alone.segments is None and alone.positions[0].tolist() == list(range(64))
    assert set(packed.segments[0]) == {1, 2} and packed.positions[0].tolist() == 2 * list(range(32))


def turn(speed, mfu, torch=None):
    found = {"tokens_per_second": speed, "mfu": mfu}
    return {"jaxlm": found} | ({"torch": {"tokens_per_second": torch}} if torch else {})


def test_targets_are_held_and_missed():
    big, dense, switch = gpu.Case("1b", 2048), gpu.Case("350m", 2048), gpu.Case("switch", 2048)
    good = {big: [turn(110, 0.56, 100)] * 2, dense: [turn(100, 0.5)] * 2, switch: [turn(80, 0.4)] * 2}
    assert gpu.missed(gpu.results_of(good), list(good)) == []
    bad = {big: [turn(104, 0.54, 100)] * 2, dense: [turn(100, 0.5)] * 2, switch: [turn(74, 0.4)] * 2}
    assert len(gpu.missed(gpu.results_of(bad), list(bad))) == 3
    nan = {big: [turn(math.nan, math.nan, 100)] * 2, dense: [turn(100, 0.5)] * 2, switch: [turn(math.nan, 0.4)] * 2}
    assert len(gpu.missed(gpu.results_of(nan), list(nan))) == 3


def test_a_target_without_a_result_is_missed():
    big, dense, switch = gpu.Case("1b", 2048), gpu.Case("350m", 2048), gpu.Case("switch", 2048)
    assert len(gpu.missed([], [big, dense, switch])) == 3
    alone = {big: [turn(110, None)] * 2}  # a device whose peak nobody knows
    assert [each.split(":")[1] for each in gpu.missed(gpu.results_of(alone), [big], ["torch"])] == [" MFU"]
    assert gpu.missed([], [dense]) == []


def test_what_is_compared_takes_turns(monkeypatch):
    arguments = gpu.Arguments(lengths=(2048,), rounds=2)
    groups = gpu.groups(arguments)
    assert [[case.name for case in group] for group in groups] == [
        ["125m, 2,048 tokens"], ["1b, 2,048 tokens", "1b, 2,048 tokens, packed"], ["350m, 2,048 tokens", "switch, 2,048 tokens"]
    ]  # fmt: skip
    assert gpu.groups(gpu.Arguments(lengths=(2048,), shapes=("switch",))) == groups[-1:]
    order = []
    monkeypatch.setattr(gpu, "ours", lambda case, *_: order.append(case.shape) or turn(1.0, 0.5)["jaxlm"])
    assert {len(rounds) for rounds in gpu.measure(groups[-1], arguments).values()} == {2}
    assert order == ["350m", "switch"] * 2


def test_programs_that_compute_unlike_amounts_are_not_compared():
    ours = {"parameters": 10, "flops_per_token": 60.0, "rows": 2, "length": 8, "dtype": "bfloat16"}
    gpu.check_equal(ours, dict(ours))
    with pytest.raises(RuntimeError, match="residual stream"):
        gpu.check_equal(ours, ours | {"dtype": "float32"})
    for name in set(ours) - {"dtype"}:
        with pytest.raises(RuntimeError, match=name):
            gpu.check_equal(ours, ours | {name: ours[name] + 1})


def test_kernels_are_summed_over_the_streams_of_a_gpu():
    def line(name, *events):
        return SimpleNamespace(name=name, events=[SimpleNamespace(name=n, duration_ns=1e6 * ms) for n, ms in events])

    device = SimpleNamespace(name="/device:GPU:0", lines=[
        line("Stream #1", ("gemm", 6.0), ("norm", 1.0), ("gemm", 2.0)), line("XLA Ops", ("gemm", 8.0)),
    ])  # fmt: skip
    host = SimpleNamespace(name="/host:CPU", lines=[line("XLA thread", ("wait", 99.0))])
    found = gpu_step.kernels(SimpleNamespace(planes=[host, device]), 2)
    assert [each["kernel"] for each in found] == ["gemm", "norm"]
    assert found[0] == {"kernel": "gemm", "ms": pytest.approx(4.0), "calls": 1.0, "share": pytest.approx(8 / 9)}
