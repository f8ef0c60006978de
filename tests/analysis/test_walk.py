"""Every probe at every checkpoint, once: cached, made anew where it must be, and never stopped by what is broken."""

import json
import shutil
import time

import numpy as np
import pytest
from written_run import MODEL, SIZES, add_checkpoints, measured, walk

from jaxlm.analysis import store
from jaxlm.analysis.findings import findings
from jaxlm.analysis.probe_files import load_probes
from jaxlm.analysis.series import opened_series
from jaxlm.analysis.view import View
from jaxlm.analysis.walk import analyze, analyze_runs
from jaxlm.cli import main
from jaxlm.errors import CheckpointError, ConfigError, DataError
from jaxlm.run import directory
from jaxlm.train.saved import saved_steps

FOR_FAULTS = "from jaxlm.errors import CheckpointError\nimport numpy"


def test_results_are_made_once_and_again_where_they_must(run, sizes):
    assert (walk(run, sizes).made, walk(run, sizes).made, walk(run, sizes).kept) == (3, 0, 3)
    first = measured(run, 10)
    assert first["change"] == pytest.approx(first["size"] - measured(run, 0)["size"], abs=1e-3)
    assert walk(run, sizes, "sizes.scale=2").made == 3 and measured(run, 10)["size"] == pytest.approx(2 * first["size"])
    assert walk(run, sizes, "sizes.scale=2", steps=[10]).kept == 1
    sizes.write_text(SIZES.replace('"size": size', '"size": -size'))
    assert walk(run, sizes, steps=[0, 20]).made == 2
    assert measured(run, 0)["size"] < 0 and store.left_out(run) == {"sizes": {10: "another version of the probe"}}
    words = sizes.with_name("words.jsonl")
    words.write_text("one")
    assert [walk(run, sizes, f"sizes.texts={words}").made for _ in range(2)] == [3, 0]
    words.write_text("two")
    assert [walk(run, sizes, f"sizes.texts={words}").made for _ in range(2)] == [3, 0]
    assert walk(run, sizes).made == 1  # of 10: those of other settings did not take the place of 0 and 20
    assert walk(run, sizes).made == 0 and set(store.read_all(run)["sizes"]) == {0, 10, 20} and not store.left_out(run)
    store.path_of(run, "sizes", 20).write_text('{"half":')
    assert walk(run, sizes).made == 1 and measured(run, 20)["size"] < 0
    store.path_of(run, "sizes", 20).write_text('{"settings": {}, "code": "", "version": ""}')
    assert walk(run, sizes).made == 1


def test_what_was_read_decides_what_is_made_anew(run, sizes, written):
    assert walk(run, sizes).made == 3
    add_checkpoints(run, written[2], (30,))
    assert walk(run, sizes).made == 1
    shutil.rmtree(run / "checkpoints" / "10")  # retired: what 20 had read of it cannot be read again
    assert walk(run, sizes).kept == 3
    add_checkpoints(run, written[2], (15,))
    assert walk(run, sizes).made == 2  # itself, and what stands before 20 now
    assert walk(run, sizes, "sizes.with_last=true").made == 4
    add_checkpoints(run, written[2], (40,))
    assert walk(run, sizes, "sizes.with_last=true").made == 5 and measured(run, 0)["last"] == 40
    shutil.copy(run / "checkpoints" / "15" / "checksums.json", run / "checkpoints" / "0" / "checksums.json")
    redone = walk(run, sizes, "sizes.with_last=true")
    assert redone.made == 0 and redone.kept == 3  # 0 is not what it was, and 15 had read it
    (said,) = redone.faults
    assert said[1] == "checkpoint" and "is damaged" in said[2] and redone.faults[said] == [0, 15]


def test_rows_are_spread_over_the_text_and_decide(run, sizes, written):
    assert walk(run, sizes, "sizes.with_rows=true", rows=4).made == 3
    assert measured(run, 0)["tokens"] == measured(run, 20)["tokens"] and measured(run, 0)["tokens"][0] == 4
    assert walk(run, sizes, "sizes.with_rows=true", rows=4).made == 0
    assert walk(run, sizes, "sizes.with_rows=true", rows=5).made == 3
    assert walk(run, sizes, "sizes.with_rows=true", rows=5, sources=[f"text:{written[1]}/3.txt"]).made == 3
    with opened_series(run, rows=1000) as series:
        rows = View(series, 0).rows
        assert set(View(series, 0).row_sources) == {f"text:{written[1]}/*.txt"}
        assert rows.tokens.shape[1] == 24 and View(series, 0).training_rows(3).tokens.shape == (3, 24)
        with opened_series(run, rows=2) as fewer:
            places = [np.flatnonzero((rows.tokens == row).all(axis=1))[0] for row in fewer.rows.batch.tokens]
        assert places == [len(rows.tokens) // 4, len(rows.tokens) * 3 // 4]


def test_both_rows_of_a_pair_are_read(run, written, tmp_path):
    pairs = [{"prompt": f"ask {n}", "chosen": "yes" * (n + 1), "rejected": "no"} for n in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"form": "preferences", "sources": [f"jsonl:{tmp_path}/pairs.jsonl"]}
    config["data"]["examples"]["max_prompt_length"] = 8
    config["preference"]["loss"], config["init_from"] = "sigmoid", "runs/base"
    (run / "config.json").write_text(json.dumps(config))
    with opened_series(run, rows=5) as series:
        rows = View(series, 0).rows
    assert rows.tokens.shape == (4, 24) and (rows.weights.sum(axis=1) > 1).all()
    np.testing.assert_array_equal(rows.tokens[::2, :3], rows.tokens[1::2, :3])  # the prompt is the same
    assert (rows.weights[::2].sum(axis=1) > rows.weights[1::2].sum(axis=1)).any()


def test_a_fault_is_listed_and_the_rest_goes_on(run, sizes, tmp_path, written):
    assert walk(run, sizes).made == 3
    before = store.path_of(run, "sizes", 10).read_bytes()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    largest = max((run / "checkpoints" / "20").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    walked = walk([broken, run, tmp_path / "none"], sizes, "sizes.fails_at=10", "sizes.scale=3")
    assert walked.made == 1
    said = {what: fault for _, what, fault in walked.faults}
    assert set(said) == {"run", "sizes", "checkpoint"} and "is damaged" in said["checkpoint"]
    assert "ZeroDivisionError: no reason (sizes.py, line 24)" == said["sizes"]
    assert store.path_of(run, "sizes", 10).read_bytes() == before  # what was found is not lost
    assert store.left_out(run)["sizes"] == {10: "other settings", 20: "other settings"}
    assert store.read_faults(run)["sizes"][10].startswith("ZeroDivisionError")
    assert walk(run, sizes, "sizes.scale=3").made == 2 and not store.read_faults(run)  # settings of 0 were others, too
    assert "runs" not in store.read_all(tmp_path / "none") and store.read_all(broken) == {}


def test_faults_are_of_whom_they_are(run, sizes, monkeypatch, capsys):
    sizes.write_text(SIZES.replace("raise ZeroDivisionError", "raise CheckpointError").replace("import numpy", FOR_FAULTS))
    walked = walk(run, sizes, "sizes.fails_at=10")
    assert walked.made == 2 and list(walked.faults) == [(str(run), "sizes", "no reason")]  # not of the checkpoint
    monkeypatch.setattr(store, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError("the disk is full [/]")))
    walked = walk(run, sizes, "sizes.scale=5")
    ((_, what, said),) = walked.faults
    assert (what, walked.made, walked.faults[str(run), what, said]) == ("sizes", 0, [0, 10, 20]) and "disk is full" in said
    assert not analyze_runs([run], load_probes([str(sizes)], ["sizes.scale=6"]), (), 16, ())
    assert "the disk is full [/]" in capsys.readouterr().err.replace("\n", " ")


def test_text_that_is_gone_is_named_once(run, sizes, monkeypatch):
    asked = []

    def gone(*_, **__):
        asked.append(1)
        raise DataError("gone")

    monkeypatch.setattr("jaxlm.analysis.series.prepare", gone)
    walked = analyze([run], load_probes([str(sizes), "memorization"], ["sizes.with_rows=true"]))
    assert len(asked) == 1 and walked.faults == {(str(run), "text", "gone"): []}


def test_sweeps_that_are_damaged_or_not_begun(run, sizes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jaxlm.commands.analysing.start_jax", lambda devices: None)
    for name, text in {"bad": "{", "good": None}.items():
        folder = tmp_path / name
        folder.mkdir()
        trials = [
            {"arm": arm, "seed": 0, "changes": {}, "control": False, "run": f"../{arm}", "digest": arm}
            for arm in ("run", "new")
        ]
        record = dict.fromkeys(("name", "about", "file", "control", "code", "time"), "") | {"trials": trials, "control": "run"}
        (folder / "sweep.json").write_text(text or json.dumps(record))
    assert main(["analyze", str(tmp_path / "good"), "--probes", str(sizes)]) == 0
    assert f"not yet: {tmp_path / 'new'} has no checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["analyze", str(tmp_path / "bad"), str(tmp_path / "good"), "--probes", str(sizes)])
    said = capsys.readouterr().err
    assert "sweep of" in said and "cannot be read as a sweep's record" in said and "0 results made, 3 were there" in said


def test_a_checkpoint_that_vanishes_while_it_is_read(run, sizes, monkeypatch):
    read = store.write_result

    def retired_meanwhile(series, probe, step, *rest):
        shutil.rmtree(run / "checkpoints" / "10", ignore_errors=True)
        return read(series, probe, step, *rest)

    monkeypatch.setattr(store, "write_result", retired_meanwhile)
    walked = walk(run, sizes)
    assert walked.made == 2 and list(walked.faults.values()) == [[10]]
    assert next(iter(walked.faults))[2] == "it was retired while the analysis went on"


def test_a_probe_that_does_not_suit_is_no_fault(run):
    walked = analyze([run], load_probes(["routers"]))
    assert not walked.faults and walked.not_suited[str(run), "routers"].startswith("no layer")
    assert store.read_all(run) == {} and analyze([run], load_probes(["routers"])).kept == 3


def test_the_table_and_the_command(run, sizes, capsys, monkeypatch):
    monkeypatch.setattr("jaxlm.commands.analysing.start_jax", lambda devices: None)  # tests have started it
    assert main(["analyze", str(run), "--probes", str(sizes), "--settings", "sizes.scale=2"]) == 0
    shown = capsys.readouterr()
    assert "3 results made, 0 were there" in shown.err
    assert all(word in shown.out for word in ("step 0", "step 10", "step 20", "size", "change"))
    assert findings(run, ["loss"]) is None and findings(run, ["sizes"]).row_count == 2
    begun = time.monotonic()
    assert main(["analyze", str(run), "--probes", str(sizes), "--settings", "sizes.scale=2"]) == 0
    assert "0 results made, 3 were there" in capsys.readouterr().err and time.monotonic() - begun < 5
    with pytest.raises(SystemExit) as ended:
        main(["analyze", str(run), "--probes", str(sizes), "--settings", "sizes.fails_at=0"])
    assert ended.value.code == 1 and "fault: sizes of" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(SystemExit):
        main(["analyze", str(run), "--probes", str(sizes), "--steps", "0", "7"])
    shown = capsys.readouterr().err
    assert "at step 7: there is no checkpoint of this step: the run has 0, 10, 20" in shown and "1 results made" in shown


def test_what_is_asked_wrongly(run, sizes, tmp_path):
    for names, settings, said in [
        (["lose"], (), "no probe 'lose'. Did you mean 'loss'"),
        ([str(tmp_path / "size.py")], (), "Did you mean 'sizes.py'"),
        ([str(sizes)], ("sizes.skale=2",), "no field 'skale'. Did you mean 'scale'"),
        ([str(sizes)], ("sizes.scale=wide",), "scale = 'wide' must be a number"),
        ([str(sizes)], ("size.scale=2",), "no probe 'size' is run here. Did you mean 'sizes'"),
        (["logit_lens"], ("logit_lens.x=2",), "has no settings"),
        ([str(sizes)], ("scale=2",), "PROBE.FIELD=VALUE"),
    ]:
        with pytest.raises(ConfigError, match=said):
            load_probes(names, settings)
    for text, said in [
        ("x = 1", "defines no function probe"),
        ('"""Title."""\ndef probe(view, more):\n    pass', r"has probe\(view, more\): it must be probe\(view\)"),
        ("def probe(view):\n    pass", "has no docstring"),
        ("import nothing_of_this_name", r"ModuleNotFoundError.*line 1"),
        ('"""T."""\nSETTINGS = {}\ndef probe(view, settings):\n    pass', "must be an instance of a configuration"),
    ]:
        sizes.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_probes([str(sizes)])
    (tmp_path / "loss.py").write_text(SIZES)
    with pytest.raises(ConfigError, match="has the name of one of our probes"):
        load_probes([str(tmp_path / "loss.py")])
    sizes.write_text('"""T."""\ndef probe(view):\n    return [1]')
    (said,) = {fault for _, _, fault in walk(run, sizes).faults}
    assert "returned a list: it must return a dictionary" in said


def test_parameters_in_memory_are_few(run, monkeypatch):
    monkeypatch.setattr("jaxlm.analysis.series.BYTES_OF_PARAMETERS", 1)
    with opened_series(run) as series:
        assert series.steps == tuple(saved_steps(run / directory.CHECKPOINTS)) == (0, 10, 20)
        for step in (0, 10, 20, 0, 10):
            series.params(step)
        assert list(series._params) == [20, 0, 10] and series.model_of(0).hidden_size == MODEL.hidden_size
        monkeypatch.setattr("jaxlm.analysis.series.LEAST_CHECKPOINTS", 2)
        series.read = lambda step: {"x": np.ones(3)}
        series.params(30)
        assert list(series._params) == [10, 30]


def test_a_folder_without_checkpoints(run, tmp_path):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"), opened_series(run):
        pass
