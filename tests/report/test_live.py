"""A run and a sweep in the terminal: what is appended, what is drawn, and how watching ends."""

import fcntl
import io
import itertools
import json
import re
import shutil
import time

import numpy as np
import pytest
from report_sweep import write_run, write_sweep
from rich.console import Console

from jaxlm.errors import CheckpointError, ConfigError
from jaxlm.report import live, live_record
from jaxlm.report.live import RunSubject, SweepSubject, watch
from jaxlm.report.live_record import Followed, NewRows
from jaxlm.report.live_view import clock
from jaxlm.report.terminal_plot import Curve, bars, plot, sparkline
from jaxlm.run.metrics import keep_rows_before


@pytest.fixture(scope="module")
def invented(tmp_path_factory):
    """The folder of a sweep of eleven runs."""
    return write_sweep(tmp_path_factory.mktemp("watched") / "runs", steps=200, probes=False)


@pytest.fixture
def run(tmp_path):
    """The folder of a run that stopped after 60 of 100 steps."""
    write_run(tmp_path / "run", experts=4, steps=100, done=60, probes=False)
    return tmp_path / "run"


def row(step, split="train", **values):
    return json.dumps({"step": step, "split": split} | values) + "\n"


def looked(folder):
    """Return a run whose record has been read."""
    followed = Followed(folder)
    followed.look()
    return followed


def subject_of(subject):
    """Return a subject that has been looked at."""
    subject.look()
    return subject


def rewritten(folder, change, splits=("train", "validation")):
    """Change the rows of a record."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(change(r) if r["split"] in splits else r) + "\n" for r in rows))


def drawn(frame, width=110, height=40):
    """Return a frame's lines; none is wider than the terminal."""
    out = Console(width=width, height=height, file=io.StringIO(), highlight=False)
    out.print(frame)
    lines = out.file.getvalue().split("\n")[:-1]
    assert max(map(len, lines)) <= width
    return lines


def test_only_what_was_appended_is_read_and_a_file_written_anew_from_its_beginning(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = NewRows(path)
    assert tail.read() == ([], False, True)
    path.write_text(row(0, loss=3.0) + row(1, loss=2.0) + '{"step": 2, "spl')
    assert [r["step"] for r in tail.read()[0]] == [0, 1]
    with path.open("a") as file:
        file.write('it": "train", "loss": 1.0}\n' + "no row\n" + row(3, loss=None))
    rows, anew, _ = tail.read()
    assert [r["step"] for r in rows] == [2, 3] and not anew  # the torn line is whole now, the broken one is left out
    assert tail.read() == ([], False, True)
    path.write_text(row(0, loss=3.0) + row(1, loss=2.0) + row(2, loss=1.0))
    keep_rows_before(path, 2)  # what a run does that goes on at step 2
    rows, anew, _ = tail.read()
    assert [r["step"] for r in rows] == [0, 1] and anew
    same_size = path.read_text().replace("3.0", "4.0")
    with path.open("r+") as file:  # the same file, as long as before
        file.write(same_size)
    assert tail.read()[0][0]["loss"] == 4.0
    path.unlink()
    assert tail.read() == ([], False, True)


def test_a_long_record_is_read_a_stretch_at_a_time(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(row(step, loss=1.0) for step in range(100)) + "x" * 9000 + "\n" + row(100, loss=2.0))
    monkeypatch.setattr(live_record, "_AT_ONCE", 400)
    monkeypatch.setattr(live_record, "_LONGEST", 4000)
    tail, steps, shares, ended = NewRows(path), [], [], False
    while not ended:
        rows, _, ended = tail.read()
        steps += [r["step"] for r in rows]
        shares.append(tail.share)
        assert len(shares) < 100
    assert steps == list(range(101)) and shares == sorted(set(shares)) and shares[-1] == 1  # no row twice, none lost


def test_a_resumed_run_s_curve_has_no_row_twice(run):
    followed = looked(run)
    assert len(followed.curve[0]) == 60
    keep_rows_before(run / "metrics.jsonl", 40)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(row(40, loss=1.25, step_seconds=0.5))
    followed.look()
    steps, losses = followed.curve
    assert steps.tolist() == list(range(1, 42)) and losses[-1] == 1.25


def test_while_a_run_writes_its_lock_is_left_alone_and_its_checkpoints_are_seen(run, monkeypatch):
    monkeypatch.setattr(live_record, "LOOK_AGAIN", 0.0)
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        followed = looked(run)
        assert followed.running and followed.standing.checkpoints[-1] == 60
        probed = []
        monkeypatch.setattr(live_record, "standing", lambda folder, known: probed.append(folder) or followed.standing)
        shutil.copytree(run / "checkpoints" / "60", run / "checkpoints" / "61")
        with (run / "metrics.jsonl").open("a") as file:
            file.write(row(60, loss=1.5))
        followed.look()
        assert not probed and followed.standing.checkpoints[-1] == followed.step == 61
        followed.look()
        assert probed == [run]  # nothing was heard


def test_a_plot_has_the_size_and_the_course_of_its_curves():
    steps = np.arange(1, 101, dtype=float)
    text = plot(
        [Curve("a", steps, 1 + steps / 100, "cyan"), Curve("b", steps[::50], steps[::50] * 0 + 1.5, "", mark="●")], 60, 12
    )
    lines = text.plain.split("\n")
    assert len(lines) == 12 and max(map(len, lines)) <= 60
    assert lines[0].startswith("   1.9") and lines[9].startswith("   1.0") and lines[-2].rstrip().endswith("100")
    braille = [[place for place, char in enumerate(line) if "⠀" < char <= "⣿"] for line in lines[:10]]
    assert min(braille[0]) > 50 and max(braille[9]) < 20  # it rises
    middles = [np.mean(places) for places in braille]
    assert all(above > below for above, below in itertools.pairwise(middles))
    assert text.plain.count("●") == 3  # two values and the legend
    falling = plot([Curve("a", steps, np.exp(-steps / 20), "")], 60, 12).plain.split("\n")
    assert falling[-1].endswith("logarithmic")
    at = [int(np.mean([place for place, char in enumerate(line) if "⠀" < char <= "⣿"])) for line in falling[:10]]
    np.testing.assert_allclose(np.diff(at), np.diff(at)[0], atol=2)  # an exponential is straight there
    nothing = plot([Curve("a", steps, np.full(100, np.nan), "")], 60, 6).plain
    assert nothing.startswith("no finite values") and nothing.count("\n") == 5
    assert plot([Curve("a", steps[:0], steps[:0], "")], 60, 6).plain.startswith("no values yet")
    half = plot([Curve("a", steps, np.where(steps > 50, np.nan, steps), "")], 60, 12).plain.split("\n")
    assert half[-2].rstrip().endswith("100") and all(not line[36:].strip() for line in half[:10])  # the axis goes on
    assert plot([Curve("a", steps[:1], steps[:1], "")], 20, 5).plain.count("\n") == 4


def test_sparklines_and_bars():
    assert sparkline(np.arange(8.0), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.array([1.0, np.nan, 3.0]), 8) == "▁█" and sparkline(np.array([]), 8) == ""
    assert len(sparkline(np.arange(1000.0), 24)) == 24
    assert bars([0.0, 0.25, 0.5, 2.0, np.nan], 0.5) == "·▅██?"
    assert [clock(s) for s in (5, 65, 3725, 200000)] == ["0:05", "1:05", "1:02:05", "2 d 7 h"]


def test_a_run_s_frame_tells_all_and_fits_any_terminal(run):
    subject = subject_of(RunSubject(run, 0))
    text = "\n".join(drawn(subject.frame(110, 40)))
    train = [r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if r["split"] == "train"]
    for part in (
        "stopped after 60 of 100 steps; the same command continues at step 60", "60.0 %", "training loss", "●",
        f"learning rate {train[-1]['learning_rate']:.2e}", "tokens/s", "routers of 2 mixture layers", "goodput",
        "checkpoints 10, 20, 30, 40, 50, 60", "starts 1",
    ):  # fmt: skip
        assert part in " ".join(text.split()) or part in text, part
    for width, height in ((40, 12), (80, 24), (200, 60), (20, 5)):
        lines = drawn(subject.frame(width, height), width, height)
        if height >= 24:
            assert height - 8 <= len(lines) < height
    assert "120" not in drawn(subject_of(RunSubject(run, 50)).frame(110, 40))[2]


def test_dead_routers_and_skipped_steps_are_told(run):
    newest = json.loads([line for line in (run / "metrics.jsonl").read_text().splitlines() if '"train"' in line][-1])
    newest |= {"step": 60, "router_dead": [0.0, 3.0], "router_load_max": [1.0, 4.0], "skipped_total": 7.0, "mfu": 0.421}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(newest) + "\n")
    text = "\n".join(drawn(subject_of(RunSubject(run, 0)).frame(110, 40)))
    assert "skipped 7" in text and "MFU 42.1 %" in text
    dead = [line for line in text.split("\n") if "busiest" in line]
    assert (
        ["dead 0" in dead[0], "dead 3" in dead[1]] == [True, True] and dead[0].lstrip()[0] == "1" and dead[1].lstrip()[0] == "3"
    )


def test_a_run_that_diverged_says_so_and_no_older_loss(run):
    text = "\n".join(drawn(subject_of(RunSubject(run, 0)).frame(110, 40)))
    assert "(mean of 50)" in text and "not finite" not in text
    rewritten(run, lambda r: r | ({"loss": None, "gradient_norm": None} if r["step"] > 30 else {}))
    out = Console(width=110, height=40, file=io.StringIO(), highlight=False, force_terminal=True, color_system="standard")
    out.print(subject_of(RunSubject(run, 0)).frame(110, 40))
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", out.file.getvalue()).split())
    for part in ("loss not finite after step 31", "gradient norm not finite", "validation not finite at 50", "best ", " at 30"):
        assert part in text, part
    assert "mean of" not in text and "\x1b[1;31mnot finite" in out.file.getvalue()
    rewritten(run, lambda r: r | ({"loss": 2.0} if r["step"] >= 55 else {}))  # one that came back
    assert "(mean of 26)" in "".join(drawn(subject_of(RunSubject(run, 0)).frame(110, 40)))


def test_odd_values_in_a_record_end_nothing(run):
    odd = [None, "text", [[]], [], {}, True, 10**400, [None, "x"], [[None], "x"], float("inf")]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    bases = [next(r for r in reversed(rows) if r["split"] == split) for split in ("train", "validation", "goodput")]
    lines = [row(-5, loss=1.0) + row(10**400, loss=1.0) + row(10**400, "validation", loss=1.0)]
    for value in odd:
        whole = [r | {name: value for name in r if name not in ("step", "split", "start")} for r in bases]
        inside = {name: dict.fromkeys(v, value) for name, v in bases[2].items() if isinstance(v, dict)}
        lines += ["".join(json.dumps(r) + "\n" for r in whole), json.dumps(bases[2] | inside) + "\n"]
    for line in reversed(lines):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(line)
        subject = RunSubject(run, 0)
        assert drawn(subject.frame(110, 40)), line  # with the record unread, and read
        heading = drawn(subject_of(subject).frame(110, 40))[0]
        assert ("of 100 steps" if line != lines[0] else "is no metrics row") in heading, line


def test_a_frame_is_drawn_before_all_of_a_long_record_was_read(run, monkeypatch):
    monkeypatch.setattr(live_record, "_AT_ONCE", 4000)
    monkeypatch.setattr(live, "DRAWN_AFTER", 0.0)
    subject = RunSubject(run, 0)
    subject.look(time.monotonic())
    assert 0 < subject.share < 1
    train = [r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if r["split"] == "train"]
    text = " ".join(drawn(subject.frame(110, 40)))
    assert "reading the record:" in text and f"loss {train[-1]['loss']:.4f} " in text  # the newest all the same
    assert "60.0 %" in text and "validation " in text and " at 50" in text
    for force_terminal, once in ((False, False), (True, True), (True, False)):
        out = Console(file=io.StringIO(), width=110, height=40, force_terminal=force_terminal, highlight=False)
        watch(run, out=out, once=once)
        said = out.file.getvalue()
        assert ("reading" in said) == force_terminal and "reading" not in said[-1500:], (force_terminal, once)


def test_a_failed_run_says_why_and_its_log_s_last_line(run):
    fault = {"time": "2027-01-01T00:00:00+00:00", "kind": "ValueError", "message": "bad \x1b[2J shape\nin layer 3", "step": 60}
    (run / "failure.json").write_text(json.dumps(fault | {"traceback": ["..."]}))
    (run / "output.log").write_text("first\n\x1b[31mCUDA out of memory\x1b[0m\rlast words\n\n")
    text = "\n".join(drawn(subject_of(RunSubject(run, 0)).frame(110, 40)))
    assert "failed after 60 of 100 steps" in text and "in layer 3" in text and "\x1b" not in text
    assert "output.log: last words" in text


def test_what_is_no_run_is_refused_with_the_nearest(run, tmp_path):
    with pytest.raises(CheckpointError, match="Did you mean 'run'.*--wait"):
        watch(tmp_path / "rum")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="neither a run nor a sweep"):
        watch(tmp_path / "other")
    with pytest.raises(ConfigError, match="--every 0"):
        watch(run, every=0)
    (run / "config.json").write_text("{")
    out = Console(file=io.StringIO(), width=110, highlight=False)
    watch(run, out=out)  # no terminal: one frame
    assert "broken" in out.file.getvalue() and "config.json is not JSON" in out.file.getvalue()


def test_watching_ends_with_the_run_or_at_ctrl_c_and_disturbs_nothing(run, monkeypatch):
    monkeypatch.setattr(live_record, "LOOK_AGAIN", 0.0)
    lock = (run / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            with (run / "metrics.jsonl").open("a") as file:
                file.write(row(60, loss=1.5, step_seconds=0.5))
        elif len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", nap)
    out = Console(file=io.StringIO(), width=110, height=40, force_terminal=True, highlight=False)
    watch(run, every=0.5, out=out)
    said = out.file.getvalue()
    assert (
        naps == [0.5] * 3 and "running, 61 of 100 steps" in said and said.rstrip().endswith("(no longer watched; it goes on)")
    )
    assert "left, at about" in said
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "metrics.jsonl"} == {
        path: stamp for path, stamp in before.items() if path.name != "metrics.jsonl"
    }
    monkeypatch.setattr(time, "sleep", lambda seconds: lock.close())  # the process ends
    out = Console(file=io.StringIO(), width=110, height=40, force_terminal=True, highlight=False)
    watch(run, out=out)
    assert out.file.getvalue().rstrip().endswith("stopped after 61 of 100 steps; the same command continues at step 60")


def test_a_sweep_s_frame_has_a_line_a_trial_and_the_best_arm(invented):
    subject = subject_of(SweepSubject(invented, 0))
    lines = drawn(subject.frame(130, 60), 130)
    assert "12 trials: 10 finished, 1 failed, 1 not begun" in lines[0] and subject.ending.startswith("moe_sweep: 12 trials")
    assert sum("finished  " in line and "200/200" in line for line in lines) == 10
    assert any("failed: JaxlmError: 10 steps" in line and "100/200" in line for line in lines)
    arms = {line.split("  ")[0]: line for line in lines[lines.index("") :]}
    assert arms["4 experts"].rstrip().endswith("control") and " 3/3 " in arms["4 experts"]
    assert arms["8 experts, dropless"].rstrip().endswith("best") and " 1/3 " in arms["16 experts"]
    assert any("█" in line for line in lines)
    short = drawn(subject.frame(100, 16), 100)
    assert len(short) <= 16 and any("more trials" in line for line in short) and any("failed" in line for line in short[2:])


def test_a_sweep_is_watched_until_its_last_trial_ends(invented, tmp_path, monkeypatch):
    root = tmp_path / "runs"
    shutil.copytree(invented.parent, root)
    monkeypatch.setattr(live_record, "LOOK_AGAIN", 0.0)
    rest = root / "trials" / f"{11:016x}"

    def nap(seconds):
        write_run(rest, 16, 2, 200, probes=False)

    monkeypatch.setattr(time, "sleep", nap)
    out = Console(file=io.StringIO(), width=120, height=40, force_terminal=True, highlight=False)
    watch(root / "moe_sweep", out=out)
    assert out.file.getvalue().rstrip().endswith("moe_sweep: 12 trials: 11 finished, 1 failed")


def test_an_arm_with_a_diverged_trial_is_not_the_best(invented, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(invented.parent, root)
    record = json.loads((root / "moe_sweep" / "sweep.json").read_text())
    best = next(t for t in record["trials"] if t["arm"] == "8 experts, dropless")
    rewritten(root / "moe_sweep" / best["run"], lambda r: r | ({"loss": None} if r["step"] > 150 else {}))
    for reading in (True, False):  # the newest losses are known before the records have been read
        subject = SweepSubject(root / "moe_sweep", 0)
        lines = drawn((subject if reading else subject_of(subject)).frame(130, 60), 130)
        arms = {line.split("  ")[0]: line.split() for line in lines[lines.index("") :]}
        assert arms["8 experts, dropless"][3:] == ["3/3", "not", "finite", arms["8 experts, dropless"][6], "not", "finite"]
        assert [name for name, words in arms.items() if words[-1:] == ["best"]] == ["8 experts"]
        trial = next(line for line in lines if line.startswith("8 experts, dropless") and " finished " in line)
        assert trial.count("not finite") == 2 and ("reading the records" in lines[0]) == reading
