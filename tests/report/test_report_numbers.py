"""The numbers of a report are those of the record: under their own names, layers, steps and runs, whatever else is there."""

import json
import math
import shutil

import numpy as np
import pytest
from report_sweep import write_run, write_sweep

from jaxlm.errors import JaxlmError
from jaxlm.report.build import write_report
from jaxlm.report.costs import costs, knots_of
from jaxlm.report.curves import metrics_of
from jaxlm.report.facts import differences, doubts, trouble
from jaxlm.report.gather import gather
from jaxlm.report.grids import Grid, aligned
from jaxlm.report.lines import joined
from jaxlm.report.naming import arm_names, keys, shortened
from jaxlm.report.page import content
from jaxlm.report.probes import probe_sections
from jaxlm.report.verdict import table_of, verdicts


def edit(folder, change):
    """Rewrite the rows of a run."""
    path = folder / "metrics.jsonl"
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row))


def configure(folder, **fields):
    """Change fields of a run's configuration; two underscores stand for a dot."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in fields.items():
        *parents, last = name.split("__")
        within = config
        for parent in parents:
            within = within[parent]
        within[last] = value
    path.write_text(json.dumps(config))


def measured(folder, step, values, axes=(), labels=None, probe="weights", name="rank"):
    """Write a probe's result."""
    (folder / "analysis" / probe).mkdir(parents=True, exist_ok=True)
    measure = {"values": values, "axes": list(axes), "labels": labels or {}, "unit": "", "about": ""}
    result = {
        "probe": probe,
        "title": probe,
        "step": step,
        "settings": {},
        "code": "",
        "version": "",
        "measures": {name: measure},
    }
    (folder / "analysis" / probe / f"{step}.json").write_text(json.dumps(result))


@pytest.fixture
def two(tmp_path):
    """Two short runs of one seed: mixtures with 4 and with 8 experts."""
    for name, experts in (("one", 4), ("other", 8)):
        write_run(tmp_path / "runs" / name, experts, 0, steps=20, probes=False)
    return tmp_path / "runs"


def test_labels_are_each_runs_and_checkpoints_own(two):
    dense, mixture = ["attention.q", "mlp.down", "mlp.up"], ["attention.q", "experts.down", "experts.up", "router"]
    measured(two / "one", 10, [1, 2, 3], ["matrix"], {"matrix": dense})
    measured(two / "other", 10, [5, 8], ["matrix"], {"matrix": ["attention.q", "router"]})
    measured(two / "other", 20, [5, 6, 7, 8], ["matrix"], {"matrix": mixture})
    (section,) = probe_sections(gather([two]), 60)
    one, other = section["maps"][0]["runs"]
    assert one["labels"]["matrix"] == dense and one["values"] == [[1, 2, 3]]
    assert other["labels"]["matrix"] == mixture and other["values"] == [[5, None, None, 8], [5, 6, 7, 8]]
    measured(two / "one", 20, [[1, 2], [3, 4]], ["layer", "matrix"], {"matrix": "no list"})
    measured(two / "one", 5, [1, 2, 3, 4], ["matrix"])
    (section,) = probe_sections(gather([two]), 60)
    left = "\n".join(section["faults"])
    assert "num_experts 4, seed 0, step 20 is left out" in left and "step 5 is left out" in left
    assert section["maps"][0]["runs"][0]["steps"] == [10]


def test_grids_are_laid_over_one_another_by_name():
    def grid(*names):
        return Grid(np.arange(float(len(names))), (names,))

    assert aligned({1: grid("a", "a"), 2: grid("b", "a")}).left_out == [1]
    made = aligned({1: grid("b", "c"), 2: grid("a", "b")})
    assert made.names == (("a", "b", "c"),) and not made.left_out
    np.testing.assert_array_equal(made.steps[1], [np.nan, 0.0, 1.0])
    counted = aligned({1: Grid(np.zeros(3), (None,)), 2: Grid(np.zeros(2), (None,))})
    assert counted.left_out == [1] and list(counted.steps) == [2]


def test_texts_keep_their_prompts(two):
    measured(two / "one", 10, ["x"], ["prompt"], {"prompt": ["second"]}, "samples", "texts")
    measured(two / "one", 20, ["y", "z"], ["prompt"], {"prompt": ["first", "second"]}, "samples", "texts")
    (section,) = probe_sections(gather([two]), 60)
    assert [(row["name"], row["texts"]) for row in section["texts"][0]["runs"][0]["rows"]] == [
        ("first", ["", "y"]), ("second", ["x", "z"]),
    ]  # fmt: skip


def test_named_places_are_not_averaged(two):
    measured(two / "one", 10, list(range(300)), ["token"], {"token": [f"t{i}" for i in range(300)]})
    measured(two / "one", 10, list(range(300)), ["place"], {}, "positions", "loss")
    places, weights = probe_sections(gather([two]), 60)
    (run,) = weights["maps"][0]["runs"]
    assert run["values"][0][:3] == [0, 1, 2] and run["labels"]["token"][-1] == "t127" and len(run["values"][0]) == 128
    assert weights["maps"][0]["notes"] == ["along token, the first 128 of 300 are shown"]
    (run,) = places["maps"][0]["runs"]
    assert run["values"][0][:2] == [1, 4] and run["labels"]["place"][-1] == "297–299" and len(run["labels"]["place"]) == 100


def test_router_curves_stand_under_their_layers(two):
    configure(two / "other", model__moe__every=1)

    def widen(row):
        return row | {
            name: value * 2 for name, value in row.items() if name.startswith("router_") and row["split"] != "goodput"
        }

    edit(two / "other", widen)
    material = gather([two])
    found = metrics_of(material, 60)
    arms = {layer: [arm["arm"] for arm in found[f"train/router_load_cv/{layer}"]["arms"]] for layer in range(4)}
    assert arms == {0: [1], 1: [0, 1], 2: [1], 3: [0, 1]}
    third = {row["step"] + 1: row["router_load_cv"][1] for row in material.runs[0].by_split["train"]}
    curve = found["train/router_load_cv/3"]["arms"][0]
    assert curve["seeds"][0]["y"] == pytest.approx([third[step] for step in curve["steps"]], rel=1e-5)


def test_differences_are_of_the_whole_records(two):
    material = gather([two])
    metric = metrics_of(material, 10)["train/gradient_norm"]
    control, arm = metric["arms"]
    losses = [{row["step"] + 1: row["gradient_norm"] for row in run.by_split["train"]} for run in material.runs]
    assert len(arm["less"]["steps"]) <= 10 < len(losses[0])
    exact = [losses[1][step] - losses[0][step] for step in arm["less"]["steps"]]
    assert arm["less"]["seeds"][0]["y"] == pytest.approx(exact, rel=1e-4, abs=1e-6)
    assert set(control["less"]["seeds"][0]["y"]) == {0}
    peak = max(losses[0], key=lambda step: abs(losses[1][step] - losses[0][step]))
    assert peak in arm["less"]["steps"]


@pytest.mark.parametrize("every", [1, 10])
def test_knots_stand_for_all_steps(two, every):
    configure(two / "one", log__every=every)
    edit(two / "one", lambda row: row if row["split"] != "train" or row["step"] % every == 0 else None)
    run = gather([two]).runs[0]
    knots = knots_of(run, 500)
    assert knots["step"][0] == 0 and knots["step"][-1] == 20 == max(row["step"] for row in run.by_split["validation"])
    assert knots["tokens"] == [1024 * step for step in knots["step"]]
    assert knots["flops"][-1] == pytest.approx(20 * run.flops_per_step, rel=1e-5)
    assert knots["hours"][1] == pytest.approx(knots["step"][1] * run.rows[0]["step_seconds"] / 3600, rel=1e-5)
    assert costs(gather([two]))["rows"][0]["tokens"] == 20 * 1024


def test_a_diverged_seed_ends_the_mean(tmp_path):
    sweep = write_sweep(tmp_path, {"one": 4, "two": 8}, seeds=2, steps=20, unfinished=False, probes=False)
    edit(tmp_path / "trials" / f"{3:016x}", lambda row: row | ({"loss": None} if row["step"] >= 12 and "loss" in row else {}))
    material = gather([sweep])
    metric = metrics_of(material, 60)["train/loss"]
    assert "two not finite" in metric["summary"] and "one not" not in metric["summary"]
    assert metric["arms"][1]["seeds"][1]["gaps"] == [[13, 20]] and "gaps" not in metric["arms"][1]["seeds"][0]
    assert "two, seed 1 finished, and its last loss is not finite." in doubts(material)
    part = joined([0], [{1: 1.0, 2: None, 3: math.nan, 4: 2.0}], 10)["seeds"][0]
    assert part["gaps"] == [[2, 3]] and part["end"] == 2.0


def test_a_run_that_was_ended_for_diverging_counts(tmp_path):
    sweep = write_sweep(tmp_path, {"one": 4, "two": 8}, seeds=2, steps=20, unfinished=False, probes=False)
    run = tmp_path / "trials" / f"{3:016x}"
    edit(run, lambda row: row if row["step"] < 12 else None)
    shutil.rmtree(run / "checkpoints" / "20")
    failure = {"time": "2026-03-02T11:00:00+00:00", "kind": "DivergedError", "message": "10 steps in a row", "step": 12}
    (run / "failure.json").write_text(json.dumps(failure | {"traceback": []}))
    material = gather([sweep])
    row = table_of(verdicts(material, 0, ("loss",))[0])[1]
    assert (row["value"], row["interval"]) == ("not finite", "not finite")
    assert trouble(material)[0]["why"].endswith("(it diverged, and counts as not finite)")
    metric = metrics_of(material, 60)["train/loss"]
    assert "two not finite" in metric["summary"] and metric["arms"][1]["seeds"][1]["gaps"] == [[13, 20]]


def test_other_tasks_are_said_loudly(two):
    (two / "other" / "tokenizer.model").write_bytes(b"another")
    configure(two / "other", steps=40)
    (two / "other" / "checkpoints" / "40").mkdir()
    material = gather([two], arms_by=("model.moe.num_experts",))
    assert material.groups[0].arms == ("num_experts 4", "num_experts 8")
    (said,) = [text for text in doubts(material) if text.startswith("Not like for like")]
    assert "num_experts 8. They differ in tokenizer, steps, tokens." in said and "bits_per_byte" in said
    loss, bits = verdicts(material, 0, ("loss", "bits_per_byte"))
    row = table_of(loss)[1]
    assert row["difference"] is None and row["says"].startswith("not comparable: another tokenizer") and row["speed_up"] == "–"
    assert table_of(bits)[1]["difference"] is not None
    with pytest.raises(JaxlmError, match=r"'model.moe.experts' of --arms-by. Did you mean 'model.moe."):
        gather([two], arms_by=("model.moe.experts",))


def test_verdicts_are_careful(tmp_path):
    arms = {"control": 4, "two": 8, "three": 16}
    sweep = write_sweep(tmp_path, arms, seeds=3, steps=20, unfinished=False, probes=False)
    losses = {"control": (3.0, 3.1, 3.2), "two": (2.97, 3.05, 3.16), "three": (2.5, 2.61, 2.69)}
    for place, (arm, seed) in enumerate((arm, seed) for arm in arms for seed in range(3)):
        value = losses[arm][seed]
        change = {"loss": value, "router_load_cv": [value, value], "z": value} if arm else {}
        edit(
            tmp_path / "trials" / f"{place:016x}",
            lambda row, change=change: row | (change if row["split"] == "validation" else {}),
        )
    material = gather([sweep])
    loss, load, z = (table_of(verdict) for verdict in verdicts(material, 0, ("loss", "router_load_cv", "z")))
    assert (loss[2]["says"], loss[2]["better"]) == ("lower", True)
    assert load[2]["mean"] == pytest.approx(2.6) and (z[2]["says"], z[2]["better"]) == ("lower", None)
    assert loss[2]["speed_why"] == "as low at the first validation" and loss[2]["p_value"] < 0.05
    with pytest.raises(JaxlmError, match="has 'los'. Did you mean 'loss'"):
        content(material, 60, ("los",))
    assert len(content(gather([sweep, sweep]), 60, ("loss",))["keys"]) == 6  # two sweeps of one name
    with pytest.raises(JaxlmError, match="no arm is called 'contrl'"):
        gather([sweep, sweep], control="contrl")


def test_a_difference_that_others_explain_is_no_finding(tmp_path):
    arms = {"control": 4} | {f"arm {n}": 8 for n in range(3)}
    sweep = write_sweep(tmp_path, arms, seeds=3, steps=20, unfinished=False, probes=False)
    gains = {"control": (0, 0, 0), "arm 0": (-0.1, -0.13, -0.07), "arm 1": (0.1, -0.1, 0), "arm 2": (0.1, -0.12, 0)}
    for place, (arm, seed) in enumerate((arm, seed) for arm in arms for seed in range(3)):
        value = 3 + gains[arm][seed]
        edit(
            tmp_path / "trials" / f"{place:016x}",
            lambda row, value=value: row | ({"loss": value} if row["split"] == "validation" else {}),
        )
    (verdict,) = verdicts(gather([sweep]), 0, ("loss",))
    row = table_of(verdict)[1]
    assert row["better"] is None and row["says"] == "lower, but not among all comparisons"
    assert verdict.arms[1].effect.high < 0  # alone its interval leaves 0 out


def test_odd_files_stop_nothing(two, tmp_path):
    odd = {"seconds": {"stepping": "long"}, "all_seconds": {"stepping": math.nan, "saving": "x", "evaluating": 4}}
    edit(two / "one", lambda row: row | (odd if row["split"] == "goodput" else {"real_tokens": math.nan, "batch_hash": [1]}))
    measured(two / "one", 10, [1, 2], ["matrix"], ["a", "b"])
    shutil.copytree(two / "other", two / "third")
    (two / "third" / "run.json").write_text(json.dumps({"starts": [{"time": 3, "git_commit": [1], "versions": {"a": {}}}]}))
    done = write_report([two], tmp_path / "r.html")
    assert done["runs"] == 3
    assert costs(gather([two]))["rows"][0]["hours"] == 4 / 3600
    edit(two / "third", lambda row: row | {"step": 10**400} if row["split"] == "train" and row["step"] == 19 else row)
    done = write_report([two], tmp_path / "r.html")
    assert done["runs"] == 2 and done["unread"][0][1] == "broken"


def test_runs_without_validation_and_imported_ones(two):
    edit(two / "one", lambda row: row if row["split"] != "validation" else None)
    configure(two / "one", model__dropout=0.1)
    material = gather([two])
    assert material.groups[0].control == material.runs[1].arm  # the first that was validated
    (verdict,) = verdicts(material, 0, ("loss",))
    row = table_of(verdict)[0]
    assert row["value"] == "no validation" and row["says"] == "no loss was measured"
    record = json.loads((two / "one" / "run.json").read_text())
    record["starts"][0]["imported"] = {"family": "llama", "dtypes": [], "source": "x"}
    (two / "one" / "run.json").write_text(json.dumps(record))
    (verdict,) = verdicts(gather([two]), 0, ("loss",))
    assert [arm.done for arm in verdict.arms] == [0, 1]


def test_trials_not_begun_show_what_they_change(tmp_path):
    sweep = write_sweep(tmp_path, {"one": 4, "two": 8}, seeds=1, steps=20, unfinished=False, probes=False)
    shutil.rmtree(tmp_path / "trials" / f"{1:016x}")
    found = differences(gather([sweep]))
    assert found["arms"] == ["one", "two (not begun)"]
    assert ("model.moe.num_experts", [("4", True), ("8", True)]) in found["differing"]
    assert dict(found["all"])["model.num_layers"][1] == ("–", False)


def test_names_tell_arms_apart_in_few_words():
    paths = [f"/data/{'long/' * 9}{n}" for n in (1, 2, 2)]
    settings = [
        {"model.factor": f, "data.path": p, "z.factor": 1, "other": f} for f, p in zip((2.0, 2.0, 4.0), paths, strict=True)
    ]
    ends = [shortened(path, 22) for path in paths]
    assert arm_names(["run"] * 3, settings) == [f"factor {f}, path {end}" for f, end in zip((2, 2, 4), ends, strict=True)]
    assert arm_names(["a", "b"], [{"x": 1}, {"x": 2}]) == ["a", "b"]
    assert arm_names(["a", "a"], [{}, {}]) == ["a", "a [2]"]
    assert shortened("abcdefghij", 7) == "ab…ghij"
    assert keys(["short", "x" * 40]) == ["A1", "A2"] and keys(["short"]) == [""]
