"""How a run stands is told of whatever lies in its folder, without an exception, and from the record's end alone."""

import fcntl
import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import experiment, make_run, record, write_rows

from jaxlm.cli import main
from jaxlm.config import digest, flatten
from jaxlm.run import goodput, standing, tail
from jaxlm.run.goodput import KINDS, row_of
from jaxlm.run.metrics import read_rows
from jaxlm.run.standing import sentence
from jaxlm.run.standing import standing as stand
from jaxlm.train.saved import saved_steps


def test_a_finished_run(finished):
    found, rows = stand(finished), read_rows(finished / "metrics.jsonl")
    assert (found.kind, found.why, found.name, found.steps, found.step) == ("finished", "", "tiny", 30, 30)
    assert found.last == [row for row in rows if row["split"] == "validation"][-1]
    assert found.train == [row for row in rows if row["split"] == "train"][-1]
    assert found.checkpoints == (21, 28, 30) and found.devices == "8 x cpu" and found.tokens == 30 * 8 * 32
    spent = goodput.by_start(rows)[0]
    assert found.seconds == pytest.approx(sum(spent.values()), abs=0.01)
    assert found.goodput == pytest.approx(goodput.share(spent), abs=1e-3)
    assert found.config["model.hidden_size"] == 32 and found.started[:2] == "20" and found.updated >= found.started
    assert sentence(found) == "finished, 30 steps"


def test_what_is_told_of_a_run(tmp_path):
    found = stand(make_run(tmp_path / "a", done=25, saves=(10, 20), seed=4))
    assert (found.kind, found.step, found.seed, found.digest) == ("stopped", 25, 4, digest(experiment(seed=4)))
    assert found.config == flatten(experiment(seed=4)) and found.commit == "ab" * 20
    assert found.train["step"] == 24 and found.last["step"] == 20 and found.goodput == pytest.approx(40 / 45)
    assert sentence(found) == "stopped after 25 of 30 steps; the same command continues at step 20"
    anew = stand(make_run(tmp_path / "b", done=3, saves=()))
    assert anew.kind == "stopped" and anew.why == "the same command begins anew, for it has no checkpoint"
    assert stand(make_run(tmp_path / "c", done=0, saves=())).kind == "empty"
    assert stand(tmp_path / "none").why == "there is no such folder"


def test_a_running_run_is_known_by_its_lock(tmp_path):
    folder = make_run(tmp_path / "a", done=12, saves=(10,))
    os.utime(folder / "metrics.jsonl", (time.time() - 40,) * 2)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = stand(folder)
        (folder / "config.json").unlink()
        assert stand(folder).kind == "running"  # it is only just being written
    assert found.kind == "running" and sentence(found) in [
        f"running, 12 of 30 steps, last heard of {s} s ago" for s in (40, 41, 42)
    ]


def test_a_failed_run(tmp_path):
    folder = make_run(tmp_path / "a", done=12, saves=(10,))
    failure = {"time": "2026-01-02T03:09:00+00:00", "kind": "DataError", "message": "the disk is full", "step": 12}
    (folder / "failure.json").write_text(json.dumps(failure))
    assert sentence(stand(folder)) == "failed after 12 of 30 steps: DataError: the disk is full"
    starts = [{"time": "2026-01-02T03:04:05+00:00"}, {"time": "2026-01-02T04:00:00+00:00"}]
    (folder / "run.json").write_text(json.dumps({"starts": starts}))
    assert stand(folder).kind == "stopped"  # a later start was killed without a word
    before = tmp_path / "before"  # a child that died before it had written anything
    before.mkdir()
    (before / "output.log").write_text("...")
    (before / "lock").touch()
    assert stand(before).kind == "empty"
    (before / "failure.json").write_text(json.dumps(failure | {"kind": "SIGKILL", "step": 0}))
    assert stand(before).kind == "failed" and sentence(stand(before)).startswith("failed before its first step: SIGKILL")
    (before / "failure.json").write_text(json.dumps(failure | {"kind": "DivergedError", "steps": 30}))
    assert sentence(stand(before)).startswith("failed after 0 of 30 steps") and stand(before).diverged
    (before / "failure.json").write_text('{"time"')
    assert stand(before).kind == "broken" and "failure.json is not JSON" in stand(before).why


def test_an_imported_run(tmp_path):
    folder = make_run(tmp_path / "a", done=0, saves=(0,))
    origin = {"family": "llama", "source": "model.gguf", "dtypes": {"Q4_1": 7, "F32": 2}}
    (folder / "run.json").write_text(json.dumps({"starts": [{"imported": origin}]}))
    assert sentence(stand(folder)) == "imported, llama (Q4_1, F32) from model.gguf"


def spoil(name, content):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def into_folder(folder):
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()


def into_link(name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return change


def into_pipe(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def no_checkpoints(folder):
    for step in (folder / "checkpoints").iterdir():
        step.rmdir()
    (folder / "checkpoints").rmdir()
    (folder / "checkpoints").write_text("")


def of_another_version(folder):
    values = json.loads((folder / "config.json").read_text())
    values["model"]["num_leyers"] = 3
    (folder / "config.json").write_text(json.dumps(values))


BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "config cut short": (spoil("config.json", '{"name": "ti'), "config.json is not JSON"),
    "config of bytes": (spoil("config.json", bytes(range(256))), "config.json is not JSON"),
    "config a list": (spoil("config.json", "[1, 2]"), "config.json is no object"),
    "config deep": (spoil("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000), "config.json is nested too deeply"),
    "config empty": (spoil("config.json", ""), "config.json is not JSON"),
    "config another version's": (of_another_version, "'num_leyers'. Did you mean 'num_layers'?"),
    "config a pipe": (into_pipe, "config.json is no file"),
    "config a link to itself": (into_link("config.json"), "config.json cannot be read: Too many levels"),
    "record a folder": (into_folder, "metrics.jsonl is no file"),
    "record a link to itself": (into_link("metrics.jsonl"), "metrics.jsonl cannot be read: Too many levels"),
    "record of bytes": (spoil("metrics.jsonl", b"\x00\xff\n" * 9), "metrics.jsonl, line 2 from the end is no metrics row"),
    "starts cut short": (spoil("run.json", '{"starts": ['), "run.json is not JSON"),
    "starts no list": (spoil("run.json", '{"starts": 3}'), "run.json has no list of starts"),
    "checkpoints a file": (no_checkpoints, "checkpoints is no folder"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders(tmp_path, name):
    change, why = BROKEN[name]
    folder = make_run(tmp_path / "run")
    change(folder)
    found = stand(folder)
    assert found.kind == "broken" and why in found.why, found
    assert found.step == (30 if "record" not in name or found.checkpoints else 0)  # what can be read is told


def test_what_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    other = tmp_path / "other"
    (other / "checkpoints" / "100").mkdir(parents=True)
    (other / "metrics.jsonl").write_text('{"loss": 3}\n{"loss": 2}\n')
    before = sorted(tmp_path.rglob("*"))
    assert [stand(tmp_path / name).kind for name in ("file", "model", "other")] == ["foreign"] * 3
    assert stand(tmp_path / "loop").kind == "broken" and sorted(tmp_path.rglob("*")) == before


def test_only_the_end_of_a_record_is_read(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "a")
    rows = record(3000, every=100)
    write_rows(folder, rows)
    monkeypatch.setattr(tail, "BLOCK", 512)
    opened = []
    monkeypatch.setattr(tail, "parse_row", lambda line, real=tail.parse_row: opened.append(line) or real(line))
    found = tail.read_tail(folder / "metrics.jsonl", 1)
    assert found.train == rows[-3] and found.validation == rows[-2] and found.seconds["stepping"] == 6000.0
    assert len(opened) == 3 and not found.fault
    with (folder / "metrics.jsonl").open("a") as out:
        out.write('{"step": 3000, "split": "tra')  # being written
    assert tail.read_tail(folder / "metrics.jsonl", 1) == found
    with (folder / "metrics.jsonl").open("ab") as out:
        out.write(b"\n\0\n")
    assert "line 2 from the end" in tail.read_tail(folder / "metrics.jsonl", 1).fault
    opened.clear()
    write_rows(folder, [{"step": s, "split": "train", "loss": 1.0} for s in range(3000)])  # never validated
    monkeypatch.setattr(tail, "LOOK_BACK", 2000)
    lines = tail.lines_backward
    monkeypatch.setattr(tail, "lines_backward", lambda path: (opened.append(1) or line for line in lines(path)))
    assert tail.read_tail(folder / "metrics.jsonl", 1).train["step"] == 2999 and len(opened) < 60


@given(st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_lines_backward_are_the_complete_lines(tmp_path_factory, lines, block):
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(b"\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail, "BLOCK", block)
        assert list(tail.lines_backward(path)) == path.read_bytes().split(b"\n")[:-1][::-1]


def test_seconds_after_restarts_are_those_of_all_rows(tmp_path):
    """A restart writes rows of earlier starts anew; until it has one of its own, the newest row is not the sum."""

    def spent(step, start, earlier, **seconds):
        return {"step": step, "split": "goodput"} | row_of(dict.fromkeys(KINDS, 0.0) | seconds, start, earlier)

    zero = dict.fromkeys(KINDS, 0.0)
    rows = [
        spent(10, 0, [], stepping=10.0, compiling=2.0),
        spent(20, 1, [zero | {"stepping": 10.0, "compiling": 2.0}], stepping=9.0),
        spent(15, 0, [], stepping=8.0, redone=2.0, compiling=2.0),  # the third start found both to be corrected
        spent(15, 1, [zero | {"stepping": 8.0, "redone": 2.0, "compiling": 2.0}], stepping=5.0, redone=4.0),
    ]
    folder = make_run(tmp_path / "a", starts=3)
    for known, starts in ((rows[:1], 1), (rows[:2], 2), (rows[:3], 3), (rows, 3)):
        write_rows(folder, known)
        seconds = tail.read_tail(folder / "metrics.jsonl", starts).seconds
        assert seconds == goodput.total(goodput.by_start(known).values()), (starts, seconds)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["step", "split", "start", "seconds", "model", "data", "steps", "name", "x"]), inner)
    ),
    max_leaves=8,
)
texts = st.binary(max_size=60) | junk.map(lambda value: json.dumps(value).encode())
splits = st.fixed_dictionaries({"step": junk, "split": st.sampled_from(["train", "validation", "goodput", 3])})
rows = st.lists(texts | splits.map(lambda row: json.dumps(row).encode()), max_size=5).map(b"\n".join)


@given(config=st.none() | texts, metrics=st.none() | rows, starts=st.none() | texts, failure=st.none() | texts)
def test_junk_never_raises(tmp_path_factory, config, metrics, starts, failure):
    folder = tmp_path_factory.getbasetemp() / "junk"
    folder.mkdir(exist_ok=True)
    contents = {"config.json": config, "metrics.jsonl": metrics, "run.json": starts, "failure.json": failure}
    for name, content in contents.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
    found = standing._standing(folder, None)  # without the net below it
    assert found.kind in ("broken", "foreign", "failed", "stopped", "imported") and isinstance(sentence(found), str), found


def test_a_fault_nobody_thought_of_is_told(tmp_path, monkeypatch):
    def fail(*arguments):
        raise PermissionError(13, "Permission denied")

    folder = make_run(tmp_path / "a")
    monkeypatch.setattr(standing, "read_tail", fail)
    monkeypatch.setattr(standing, "saved_steps", fail)
    found = stand(folder)
    assert found.kind == "broken" and found.why.count("cannot be read: Permission denied") == 2
    monkeypatch.setattr(standing, "_read", lambda *arguments: 1 / 0)
    assert stand(folder).why == "cannot be read: ZeroDivisionError: division by zero"


def test_show_tells_the_same(tmp_path, capsys):
    folder = make_run(tmp_path / "a", done=25, saves=(10, 20))
    assert main(["show", str(folder)]) == 0
    said = capsys.readouterr().out
    assert sentence(stand(folder)) in said and "validation: loss 3.050" in said and "checkpoints: 10, 20" in said


def test_names_that_only_look_like_steps(tmp_path):
    for name in ("7", "²", "8.tmp", "x"):
        (tmp_path / name).mkdir()
    assert saved_steps(tmp_path) == [7]
