"""Results are held against their bars, the page says what the records say, and turns are taken fairly."""

import json
import shlex
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts beside one another import each other flatly

import checkpoint as checkpoint_cost
import decode
import long_attention
import machine
import moe_layer
import paired
import record
import train_paired

from benchmarks import apart, page, run, stored
from benchmarks.bars import Bar, judge, read_bars
from benchmarks.parts import PARTS, Part, check_bars, chosen, find_torch
from jaxlm.errors import ConfigError

BAR = {"name": "ours / theirs", "at_least": 0.8, "aim": 1.0, "why": "what was measured, less a tenth"}


def result(value, name="ours / theirs", better="higher"):
    return record.compared(name, [value * 10, value * 11, value * 9], [10.0, 10.0, 10.0], "tokens/s", better)


def test_a_result_is_the_median_of_ratios_of_neighbours():
    found = record.compared("speed", [10.0, 30.0, 90.0], [10.0, 10.0, 100.0], "tokens/s", "higher")
    assert (found["ratio"], found["low"], found["high"], found["ours"], found["theirs"]) == (1.0, 0.9, 3.0, 30.0, 10.0)
    assert found["rounds"] == 3
    alone = record.measured("import", [0.3, 0.1, 0.2], "s", "lower")
    assert (alone["ours"], alone["ratio"], alone["low"], alone["high"]) == (0.2, None, 0.1, 0.3)


@pytest.mark.parametrize(
    ("value", "passed", "aim_met"), [(0.79, False, False), (0.8, True, False), (1.2, True, True), (None, False, False)]
)
def test_a_result_below_its_bar_is_missed_and_an_aim_is_only_told(value, passed, aim_met):
    found = result(value or 1.0)
    if value is None:  # what was not a number when it was written
        found["ratio"] = None
        found["ours"] = None
    missed = judge([found], {BAR["name"]: Bar(**BAR)})
    assert (found["passed"], found["aim_met"], bool(missed)) == (passed, aim_met, not passed)


def test_a_ceiling_holds_from_the_other_side():
    bar = Bar(name="seconds", at_most=1.0, why="a start")
    results = [record.measured("seconds", [1.2], "s", "lower")]
    assert judge(results, {"seconds": bar}) == ["seconds: 1.2 s, to be 1 at most"]
    results = [record.measured("seconds", [0.9], "s", "lower")]
    assert judge(results, {"seconds": bar}) == []
    with pytest.raises(ValueError, match="is better higher"):
        judge([record.measured("seconds", [0.9], "s", "higher")], {"seconds": bar})


def test_a_bar_without_a_result_is_missed_unless_what_it_needs_is_not_there():
    bars = {name: Bar(**BAR | {"name": name, "needs": needs}) for name, needs in (("a", ""), ("b", "torch"))}
    assert judge([], bars) == ["a: not measured", "b: not measured"]
    assert judge([], bars, ["torch"]) == ["a: not measured"]


@pytest.mark.parametrize(
    ("change", "match"),
    [({"at_most": 2.0}, "one positive number"), ({"at_least": float("nan")}, "one positive number"), ({"why": ""}, "where it"),
     ({"aim": 0.5}, "wrong side")],
)  # fmt: skip
def test_bars_that_mean_nothing_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        Bar(**BAR | change)


def test_a_bar_may_have_another_number_on_a_processor(tmp_path):
    file = tmp_path / "bars.json"
    file.write_text(json.dumps({"part": [BAR | {"on": {"Xeon": 0.6, "EPYC": 0.7}}]}))
    for name, limit in (("Intel(R) Xeon(R) Processor", 0.6), ("AMD EPYC 9R14", 0.7), ("arm", 0.8), ("", 0.8)):
        bar = read_bars(file, name)["part"][BAR["name"]]
        assert bar.limit == limit and bar.aim == 1.0
    file.write_text(json.dumps({"part": [BAR | {"on": {"Xeon": -1.0}}]}))
    with pytest.raises(ValueError, match="one positive number"):
        read_bars(file)  # also where the number is not this processor's


def test_every_part_has_bars_or_brings_its_own(tmp_path):
    check_bars()
    bars = json.loads((Path(run.__file__).parent / "bars.json").read_text())
    for file, match in (({**bars, "data": []}, "data has no bar"), ({**bars, "datum": bars["data"]}, "Did you mean 'data'")):
        planted = tmp_path / "bars.json"
        planted.write_text(json.dumps(file))
        with pytest.raises(ConfigError, match=match):
            check_bars(planted)


def test_every_script_of_a_part_is_there_and_takes_its_options():
    for name, part in PARTS.items():
        command = part.command(Path("out.json"), quick=False, torch="/other/python")
        place = command[2].replace(".", "/") + ".py" if command[1] == "-m" else command[1]
        assert (run.ROOT / place).exists(), name
        assert command[-2:] == ["--json", "out.json"]
        assert ("/other/python" in " ".join(command)) == bool(part.torch), name
        assert not part.needs_torch or part.lacks(None), name


def test_names_that_are_none_suggest_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'decode'"):
        chosen(["data", "deocde"])
    assert list(chosen(["decode", "train"])) == ["train", "decode"]
    with pytest.raises(ConfigError, match="no such program"):
        find_torch("/nowhere/python")


PLANTED = """
import json, sys
value, out = float(sys.argv[1]), sys.argv[-1]
if value < 0:
    sys.exit("it broke in /some/where")
result = {"name": "ours / theirs", "ours": value, "theirs": 1.0, "ratio": value, "low": value, "high": value, "rounds": 2,
          "unit": "tokens/s", "bar": None, "better": "higher"}
record = {"results": [result], "judged": value != 7, "lacks": [], "failure": None, "machine": {"processor": "P", "cores": 2,
          "system": "S"}, "versions": {"jax": "1"}, "threads": 2, "commit": "abc", "when": "2026-01-01T00:00:00+00:00"}
json.dump(record, open(out, "w"))
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Replace the parts by ones that say what they are told to, each with the same bar."""

    def plant(**values):
        script = tmp_path / "planted.py"
        script.write_text(PLANTED)
        for name in list(PARTS):
            monkeypatch.delitem(PARTS, name)
        for name, value in values.items():
            monkeypatch.setitem(PARTS, name, Part(f"Part {name}", str(script), 0.1, str(value), str(value)))
        bars = tmp_path / "bars.json"
        bars.write_text(json.dumps({name: [BAR] for name in values}))
        monkeypatch.setattr(run, "read_bars", lambda processor: read_bars(bars, processor))
        monkeypatch.setattr(run, "check_bars", lambda: check_bars(bars))
        return tmp_path / "docs"

    return plant


def test_a_planted_regression_fails_and_the_page_says_so(planted, capsys):
    out = planted(good=0.9, slow=0.7, broken=-1, other=7)
    assert run.main(run.Arguments(out=out)) == 1
    stored = json.loads((out / "benchmarks" / "results.json").read_text())["parts"]
    status = {name: part["status"] for name, part in stored.items()}
    assert status == {"good": "passed", "slow": "bar missed", "broken": "failed", "other": "bar missed"}
    assert "at the shapes" in stored["other"]["reason"]
    text = (out / "benchmarks.md").read_text()
    assert "| ours / theirs | 0.9 tokens/s | 1 tokens/s | 0.9 (0.9 to 0.9) | 1 | ≥ 0.8 | bar kept, **aim not met** |" in text
    assert "**below its bar**" in text and "it broke" in text and str(out.parent) not in text
    assert (out / "benchmarks" / "bars.png").stat().st_size > 5000
    assert "slow: bar missed" in capsys.readouterr().out
    # A part alone leaves the others on the page as they were.
    planted(good=1.1, slow=0.95)
    assert run.main(run.Arguments(names=("slow",), out=out)) == 0
    text = (out / "benchmarks.md").read_text()
    assert "| 0.9 (0.9 to 0.9) |" in text and "| 0.95 (0.95 to 0.95) |" in text and "below its bar" not in text
    # The page follows from what is stored alone.
    (out / "benchmarks.md").unlink()
    run.write_page(out)
    assert (out / "benchmarks.md").read_text() == text


def test_quick_writes_no_page_unless_asked(planted, monkeypatch, tmp_path):
    out = planted(good=0.9)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert run.main(run.Arguments(quick=True)) == 0
    assert not (tmp_path / "docs").exists()
    assert run.main(run.Arguments(quick=True, out=out)) == 0
    assert "fewer rounds than a full run" in (out / "benchmarks.md").read_text()


STUCK = """
import subprocess, sys, time
from pathlib import Path
command = [sys.executable, "-c", "import time; time.sleep(60)"]
child = subprocess.Popen(command, start_new_session=True)
Path({pids!r}).write_text(str(child.pid))
Path(sys.argv[-1]).write_text("{{}}")
time.sleep(60)
"""


def test_a_part_that_hangs_is_stopped_with_all_that_it_started(planted, tmp_path):
    out = planted(stuck=1, good=0.9)
    script, pids = tmp_path / "stuck.py", tmp_path / "pids"
    script.write_text(STUCK.format(pids=str(pids)))
    PARTS["stuck"] = Part("Part stuck", str(script), 0.1)
    log = tmp_path / "log"
    status = apart.run_apart(PARTS["stuck"].command(tmp_path / "record", quick=False, torch=None), tmp_path, log, 2.0, list)
    child = Path("/proc", pids.read_text())
    assert status is None and not apart.marked(str(tmp_path))
    assert not child.exists() or "(zombie)" in (child / "status").read_text()
    # A part that was stopped has failed, whatever it wrote before, and the next one is run.
    PARTS["stuck"] = Part("Part stuck", str(script), -1.98)
    assert run.main(run.Arguments(out=out, patience=1.0)) == 1
    stored = json.loads((out / "benchmarks" / "results.json").read_text())["parts"]
    assert stored["stuck"]["status"] == "failed" and "was stopped" in stored["stuck"]["reason"]
    assert stored["good"]["status"] == "passed"


def test_a_record_that_cannot_be_judged_fails_its_part_alone(planted):
    out = planted(other_way=0.9, good=0.9)
    script = Path(PARTS["good"].script)
    (script.parent / "other.py").write_text(script.read_text().replace('"better": "higher"', '"better": "lower"'))
    PARTS["other_way"] = Part("Part", str(script.parent / "other.py"), 0.1, "0.9", "0.9")
    assert run.main(run.Arguments(out=out)) == 1
    stored = json.loads((out / "benchmarks" / "results.json").read_text())["parts"]
    assert stored["other_way"]["status"] == "failed" and "is better lower" in stored["other_way"]["reason"]
    assert stored["good"]["status"] == "passed"


def test_details_of_a_record_do_not_hide_what_a_part_took(planted, monkeypatch):
    out = planted(good=0.9)
    script = PARTS["good"].script
    told = Path(script).read_text().replace('"judged"', '"seconds": {"import": [1.0]}, "judged"')
    Path(script).write_text(told)
    assert run.main(run.Arguments(out=out)) == 0
    stored = json.loads((out / "benchmarks" / "results.json").read_text())["parts"]["good"]
    assert 0 < stored["took"] < 60 and stored["seconds"] == {"import": [1.0]}


def test_what_cannot_be_measured_here_is_listed_as_not_run(planted):
    out = planted(good=0.9)
    PARTS["good"] = Part("Part good", "nowhere.py", 0.1, needs_torch=True)
    assert run.main(run.Arguments(out=out)) == run.NOT_MEASURED == 3
    assert "| [good](#good) | not run |" in (out / "benchmarks.md").read_text()
    assert run.main(run.Arguments(out=out, quick=True)) == 0


def test_what_was_measured_before_outlives_a_run_that_cannot_measure_it(planted):
    out = planted(good=0.9)
    assert run.main(run.Arguments(out=out)) == 0
    PARTS["good"] = Part("Part good", "nowhere.py", 0.1, needs_torch=True)
    assert run.main(run.Arguments(out=out)) == 3
    text = (out / "benchmarks.md").read_text()
    assert "**Not run on " in text and "What follows was measured on 2026-01-01" in text and "| 0.9 (0.9 to 0.9) |" in text
    # A failure takes its place: it is what the code is worth now.
    planted(good=-1)
    assert run.main(run.Arguments(out=out)) == 1
    assert "| 0.9 (0.9 to 0.9) |" not in (out / "benchmarks.md").read_text()


def test_single_results_that_are_not_run_now_keep_their_earlier_value():
    before = {"status": "passed", "when": "2026-01-01", "commit": "abc", "results": [result(0.9), result(0.8, "other")]}
    now = {"status": "passed", "when": "2026-02-02", "results": [result(0.7, "other")], "not_run": ["ours / theirs"]}
    first = stored.kept(before, now)
    assert [(each["name"], each["measured"]["when"]) for each in first["earlier"]] == [("ours / theirs", "2026-01-01")]
    assert stored.kept(first, now)["earlier"] == first["earlier"] and stored.kept(first, now | {"not_run": []})["earlier"] == []


def test_laws_are_held_by_the_bars_they_bring():
    law = {
        "name": "length", "x": [1, 2, 4], "exponent_seconds": 2.4, "exponent_seconds_error": 0.1, "exponent_bytes": None,
        "exponent_bytes_error": None, "bar": {"seconds": 2.1, "bytes": None}, "passed": False, "missed": ["2.4"], "why": "w",
        "points_seconds": 3, "points_bytes": 0, "shown": True, "faults": {"seconds": ["2.4"], "bytes": []},
    }  # fmt: skip
    results, missed = run.laws_results([law], held=True)
    assert [(each["ours"], each["passed"]) for each in results] == [(2.4, False)] and missed == ["length: 2.4"]
    assert run.laws_results([law], held=False)[1] == []
    good = law | {"exponent_seconds": 2.0, "passed": True, "missed": [], "faults": {"seconds": [], "bytes": []}}
    results, missed = run.laws_results([good], held=True)
    assert missed == [] and results[0]["passed"] and results[0]["name"] == "length: exponent of seconds"
    stored = good | {"measured": {"when": "2026-01-01T00:00", "commit": "abc"}, "shown": False}
    (found,), _ = run.laws_results([stored], held=True)
    assert found["name"].endswith(", 2026-01-01 at abc") and not found["passed"] and "not shown" in page.verdict(found)


def test_numbers_keep_three_digits():
    assert [page.number(value) for value in (1865.7, 0.8712, 12.345, None)] == ["1,866", "0.871", "12.3", ""]


SERVED = """
import json, sys, time
print("chatter", flush=True)
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    if {dies} and number == 1:
        sys.exit("no more")
    print(json.dumps({{"tokens_per_second": {speed} * (number + 1)}}), flush=True)
"""


def served(speed, dies=False):
    return shlex.join([sys.executable, "-c", SERVED.format(speed=speed, dies=dies)])


def test_turns_are_taken_and_rounds_that_others_disturb_repeated(monkeypatch):
    busy = iter([0.0, 0.0] * 2 + [0.0, 1e9] * 2 + [0.0, 0.0] * 8)
    monkeypatch.setattr(paired, "busy_seconds", lambda cpus: next(busy))
    monkeypatch.setattr(paired.Child, "cpu_seconds", lambda child: 0.0)
    found = paired.compare([("a", served(10)), ("b", served(20))], rounds=2, seconds=0.01)
    assert [turn.disturbed(0.2) for turn in found.rounds] == [False, True, False] and found.enough and not found.failure
    assert found.values("a") == [10, 30] and found.values("b") == [20, 60]


def test_rounds_are_not_repeated_for_ever_where_others_are_always_busy(monkeypatch):
    monkeypatch.setattr(paired.Child, "cpu_seconds", lambda child: 0.0)
    busy = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr(paired, "busy_seconds", lambda cpus: next(busy))
    found = paired.compare([("a", served(10)), ("b", served(20))], rounds=2, seconds=0.01)
    assert len(found.rounds) == 2 and not found.enough and found.values("a") == [10, 20]


def test_a_side_that_dies_is_named_with_its_last_words():
    found = paired.compare([("a", served(10)), ("b", served(20, dies=True))], rounds=2, seconds=0.01)
    assert found.failure.startswith("b: ended with exit status 1") and "no more" in found.failure
    assert len(found.rounds) == 1


def test_the_cost_of_a_save_is_waiting_and_slower_steps():
    """Steps of 1 s, saves every 4 that make the loop wait 3 s and the two steps behind them take a half longer."""
    rows = [{"split": "goodput", "step": 1, "seconds": {"saving": 0.0}}]
    for step in range(16):
        slow = step >= 4 and step % 4 < 2
        rows.append({"split": "train", "step": step, "step_seconds": 1.5 if slow else 1.0})
        if (step + 1) % 4 == 0:
            rows.append({"split": "goodput", "step": step + 1, "seconds": {"saving": 3.0 * (step + 1) / 4}})
    found = checkpoint_cost.costs(rows, 4)
    assert found == {"waiting": [3.0, 3.0], "disturbance": [1.0, 1.0], "stall": [4.0, 4.0], "step": [1.0, 1.0]}


def comparison(**answers):
    return paired.Comparison([paired.Round(answers, dict.fromkeys(answers, 0.0))], 1, 0.2)


def test_comparisons_measure_what_bars_are_named_for():
    """A bar whose name no script makes would be missed on every machine; one that is not there would hold nothing."""
    speed = {"tokens_per_second": 1.0, "milliseconds": 1.0}
    torch = train_paired.Arguments(torch=Path("python"))
    found = {"train": [], "moe": [], "decode": [], "long-context": []}
    for shape in train_paired.SHAPES:
        names = [name for name, _ in train_paired.commands_of(shape, torch)]
        found["train"] += train_paired.results_of(shape, comparison(**dict.fromkeys(names, speed)))
    columns = moe_layer.columns(True)
    for size in moe_layer.BARRED_SIZES:
        answers = dict.fromkeys([*columns, *columns.values()], speed)
        found["moe"] += moe_layer.results_of(size, comparison(**answers), columns)
    lengths = dict.fromkeys(long_attention.BARRED_LENGTHS, comparison(**{"two-pass": speed, "plain": speed}))
    found["long-context"] = long_attention.results_of(lengths, 1.0)
    found["decode"] = [{"name": decode.label_of(*shape)} for shape in decode.COMPARISONS]
    for part, results in found.items():
        assert set(read_bars()[part]) <= {each["name"] for each in results}, part


def test_sides_that_do_different_things_are_not_compared():
    same = {"parameters": 10, "step_flops": 100, "first_loss": 9.0, "threads": 2}
    assert train_paired.unlike("llama", comparison(**{"1 device": same, "eager": same})) is None
    changes = ({"parameters": 11}, {"step_flops": 110}, {"first_loss": 9.01}, {"threads": 1})
    for change in (*changes, {"step_flops": None}, {"first_loss": None}, {"threads": None}):
        said = train_paired.unlike("llama", comparison(**{"1 device": same, "eager": same | change}))
        assert said and next(iter(change)).replace("_", " ") in said
    untold = {"parameters": 10, "threads": 2}
    assert train_paired.unlike("nanoGPT 4 x 128", comparison(**{"1 device": same, "eager": untold})) is None
    sides = [{"first_tokens": [1, 2], "threads": 2}, {"first_tokens": [1, 3], "threads": 2}]
    assert decode.unlike(comparison(a=sides[0], b=sides[0])) is None
    assert "same tokens" in decode.unlike(comparison(a=sides[0], b=sides[1]))
    assert "as many threads" in decode.unlike(comparison(a=sides[0], b=sides[0] | {"threads": 4}))


def test_sides_of_torch_are_given_the_threads_that_xla_takes(monkeypatch):
    monkeypatch.setenv("NPROC", "7")
    torch = train_paired.Arguments(torch=Path("python"))
    for shape in train_paired.SHAPES:
        asked = {name: command for name, command in train_paired.commands_of(shape, torch) if name in train_paired.THEIRS}
        assert len(asked) == 2 and all(" --threads 7 " in command for command in asked.values())
    assert " --threads 7 " in moe_layer.command_of("torch switch", 8, Path("python"))
    assert "--threads" not in moe_layer.command_of("jaxlm top1", 8, None)


def test_sources_are_told_as_they_were_at_the_start(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "package_digest", lambda: "later")
    assert machine.since({"commit": "a", "package": "early"}) == {"commit": "a", "package": "early", "changed_meanwhile": True}
    record.finish("none", [], tmp_path / "record.json")
    told = json.loads((tmp_path / "record.json").read_text())
    assert told["commit"] == record.SOURCES["commit"] and len(told["package"]) == 16 and told["changed_meanwhile"]


def test_parts_do_not_inherit_what_was_compiled_before(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/warm")
    script = "import os; print([name for name in os.environ if name.startswith('JAX_') and 'CACHE_DIR' in name])"
    log = tmp_path / "log"
    assert apart.run_apart([sys.executable, "-c", script], tmp_path, log, 60.0, list) == 0
    assert log.read_text().strip() == "[]"
    assert "JAX_COMPILATION_CACHE_DIR" not in machine.uncached()
    assert machine.uncached()["JAX_ENABLE_COMPILATION_CACHE"] == "false"
