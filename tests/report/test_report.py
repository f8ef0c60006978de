"""A report says what the folders hold, is whole in one file, and survives whatever lies in them."""

import html.parser
import json
import re
import shutil
import sys

import numpy as np
import pytest
from report_sweep import NASTY, write_run, write_sweep

from jaxlm.cli import main
from jaxlm.errors import JaxlmError
from jaxlm.report import maps
from jaxlm.report.build import embedded, write_report
from jaxlm.report.gather import gather
from jaxlm.report.lines import running_mean, thinned
from jaxlm.report.maps import shares
from jaxlm.report.probes import probe_sections
from jaxlm.sweep.table import tabulate

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Reads a page: that elements are closed in order, ids, addresses, cells of tables, scripts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.addresses, self.tags, self.tables, self.scripts = [], [], [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.addresses += [given[name] for name in ("href", "src", "action", "data", "poster", "srcset") if name in given]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += text
        elif {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += text


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_page_is_whole_and_asks_for_nothing(reported):
    page = Page(reported.text)
    assert len(page.ids) == len(set(page.ids))
    assert {"asked", "verdict", "configs", "curves", "routers", "probes", "cost", "provenance"} <= set(page.ids)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    contents = {a[1:] for a in page.addresses if a.startswith("#")}
    assert contents and contents <= set(page.ids)  # they lead somewhere
    assert not {"iframe", "img", "object", "embed"} & set(page.tags)
    styles = "".join(re.findall(r"<style>(.*?)</style>", reported.text, re.DOTALL))
    assert styles and not re.search(r"@import|url\(", styles)
    assert "default-src 'none'" in reported.text and "<noscript>" in reported.text
    assert len(reported.text.encode()) == reported.done["bytes"] < 8e6


def test_what_users_wrote_stays_text(reported):
    assert "<img src=x" not in reported.text.partition('id="data"')[0].replace("&lt;img src=x", "")
    assert "</script><img" not in reported.text and "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in reported.text
    assert json.loads(embedded([NASTY])) == [NASTY]
    assert not set("<>&\u2028\u2029") & set(embedded([NASTY, "\u2029"]))
    assert len(Page(reported.text).scripts) == 3


def test_verdict_is_the_sweep_table(reported):
    table = tabulate(reported.sweep).numbers["arms"]
    shown = reported.done["verdicts"][0]
    assert [row["arm"] for row in shown["rows"]] == [arm["arm"] for arm in table]
    for row, arm in zip(shown["rows"], table, strict=True):
        assert row["mean"] == pytest.approx(arm["metrics"]["loss"]["mean"]["mean"])
        if not row["control"]:
            assert row["difference"] == pytest.approx(arm["metrics"]["loss"]["difference"]["mean"])
    cells = Page(reported.text).tables[0]
    lows = table[1]["metrics"]["loss"]["difference"]
    assert f"{lows['mean']:+.4f} ({lows['low']:+.4f} to {lows['high']:+.4f})" == " ".join(cells[2][3].split())
    assert "1 of 3" in cells[4][1] and "incomplete" in cells[4][1] and "one seed" in cells[4][5]
    assert shown["comparisons"] == 3 and "3 comparisons with the control" in reported.text


def test_trouble_is_said_loudly(reported):
    verdict = reported.text.partition('id="verdict"')[2].partition('id="configs"')[0]
    assert "2 trials did not finish" in verdict and "10 steps in a row" in verdict and "missing" in verdict
    assert "10 steps in a row &lt;had&gt; a loss that is not finite" in verdict  # the traceback
    assert "3 of 11 runs had changes that were not committed" in verdict
    assert "did not read the same batches" not in verdict


def test_figures_hold_the_record(reported):
    data = data_of(reported.text)
    run = data["runs"][4]
    rows = [
        json.loads(line) for line in (reported.sweep.parent / "trials" / f"{4:016x}" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = {row["step"] + 1: row["loss"] for row in rows if row["split"] == "train"}
    (arm,) = (a for a in data["metrics"]["train/loss"]["arms"] if a["arm"] == run["arm"])
    (seed,) = (s for s in arm["seeds"] if s["run"] == 4)
    assert 2 < len(arm["steps"]) <= 60 and arm["steps"][0] == 1 and arm["steps"][-1] == 200
    assert seed["y"] == pytest.approx([losses[step] for step in arm["steps"]], rel=1e-5)
    assert max(seed["y"]) == pytest.approx(max(losses.values()), rel=1e-5) or len(arm["seeds"]) > 1
    assert run["knots"]["tokens"][-1] == 200 * 1024 and run["knots"]["flops"][-1] > 0
    held = [row for row in rows if row["split"] == "validation"]
    (loads,) = (r for r in data["charts"]["router-load"]["runs"] if r["run"] == 4)
    assert loads["labels"]["layer"] == ["1", "3"] and loads["steps"] == [row["step"] for row in held]
    assert loads["values"][-1] == pytest.approx(8 * np.array(held[-1]["router_load"]).ravel(), rel=1e-4)
    assert data["metrics"]["train/router_load_cv/3"]["arms"] and "train/skipped" not in data["metrics"]
    probe = next(c for c in data["charts"].values() if c.get("title") == "distance")
    assert probe["axes"] == ["layer", "head", "position"] and probe["runs"][0]["shape"] == [4, 4, 64]
    assert data["metrics"]["probe/loss/loss"]["arms"][0]["steps"] == [0, 66, 133, 200]


def test_thinning_keeps_every_peak():
    line = np.sin(np.arange(10_000) / 50)
    line[7777], line[3333] = 40.0, -40.0
    table = np.stack([np.zeros(10_000), line])
    kept = thinned(table, 100)
    assert len(kept) <= 100 and {0, 7777, 3333, 9999} <= set(kept.tolist())
    assert thinned(table[:, :50], 100).tolist() == list(range(50))
    np.testing.assert_allclose(running_mean(np.arange(500.0))[20:-20], np.arange(500.0)[20:-20])
    gap = running_mean(np.array([1.0, np.nan, 3.0] * 100))
    assert np.isnan(gap[1]) and gap[150] == pytest.approx(2.0, abs=0.5)


def test_shares_fill_up():
    assert shares({"a": 10, "b": 500, "c": 1000}, 300) == {"a": 10, "b": 145, "c": 145}
    assert shares({"a": 10, "b": 20}, 300) == {"a": 10, "b": 20}


def test_maps_fit_the_page_and_say_so(reported, monkeypatch):
    material = gather([reported.sweep])

    def distance():
        return next(m for section in probe_sections(material, 60) for m in section["maps"] if m["title"] == "distance")

    whole = distance()
    assert not whole["notes"] and whole["runs"][0]["shape"] == [4, 4, 64] and len(whole["runs"][0]["steps"]) == 4
    monkeypatch.setattr(maps, "MOST_NUMBERS", 12_000)
    coarse = distance()
    assert coarse["runs"][0]["steps"] == [0, 133, 200] and coarse["runs"][0]["shape"] == [4, 4, 16]
    assert "along position, each place is the mean of 4" in coarse["notes"] and any(
        "3 of up to 4" in n for n in coarse["notes"]
    )
    first = np.array(whole["runs"][0]["values"][0]).reshape(4, 4, 16, 4).mean(-1)
    np.testing.assert_allclose(np.array(coarse["runs"][0]["values"][0]).reshape(4, 4, 16), first, rtol=1e-3, atol=1e-4)
    assert coarse["runs"][0]["labels"]["position"][1] == "4–7"


def test_same_input_same_bytes(reported, tmp_path):
    again = tmp_path / "again.html"
    write_report([reported.sweep], again, max_points=60, written="2026-03-02T00:00:00+00:00")
    assert again.read_bytes() == reported.page.read_bytes()
    write_report([reported.sweep], again, max_points=60, title="<Other>")
    changed = again.read_text()
    assert "<title>&lt;Other&gt;</title>" in changed
    blank = re.compile(r'<time id="written".*?</time>|(?<=<title>).*?(?=</title>)|(?<=<h1>).*?(?=</h1>)')
    assert blank.sub("", changed) == blank.sub("", reported.text)


def test_broken_and_foreign_folders_stop_nothing(reported, tmp_path):
    runs = tmp_path / "runs"
    for seed in range(2):
        write_run(runs / f"small-{seed}", 4, seed, steps=20, checkpoints=2)
        write_run(runs / f"large-{seed}", 8, seed, steps=20, gain=-0.5, probes=False)
    (runs / "photos").mkdir()
    (runs / "photos" / "cat.jpg").write_bytes(b"\xff\xd8")
    (runs / "cut").mkdir()
    (runs / "cut" / "config.json").write_text('{"name": "cut", "ste')
    (runs / "cut" / "metrics.jsonl").write_text('{"step": 0, "split": "train", "loss": 1.0}\n')
    with (runs / "small-1" / "metrics.jsonl").open("a") as record:
        record.write('{"step": 21, "spl')
    for path in (runs / "small-0" / "analysis").glob("*/0.json"):
        path.write_text("[1, 2")
    rows = (runs / "large-1" / "metrics.jsonl").read_text().replace('"batch_hash": "00000001', '"batch_hash": "ffffffff')
    (runs / "large-1" / "metrics.jsonl").write_text(rows)
    done = write_report([runs], tmp_path / "out" / "r.html", metrics=("loss", "accuracy"))
    assert done["runs"] == 4 and [kind for _, kind, _ in done["unread"]] == ["broken", "foreign"]
    assert [v["metric"] for v in done["verdicts"]] == ["loss", "accuracy"]
    arms = [row["arm"] for row in done["verdicts"][0]["rows"]]
    assert arms == ["num_experts 8", "num_experts 4"]
    text = (tmp_path / "out" / "r.html").read_text()
    assert "Seed 1: arms did not read the same batches (from step 0 on, 20 of 20 steps)" in text
    Page(text)
    both = gather([reported.sweep.parent, runs / "small-0"])  # a folder of sweeps, and a run
    assert [group.name for group in both.groups] == ["moe_sweep", ""] and len(both.runs) == 12 and not both.unread
    found = gather([runs], control=arms[1])
    assert found.groups[0].control == arms[1]
    with pytest.raises(JaxlmError, match="no arm is called 'nothing'"):
        gather([runs], control="nothing")


def test_a_diverged_run_counts(tmp_path):
    sweep = write_sweep(tmp_path, {"one": 4, "two": 8}, seeds=2, steps=20, unfinished=False, probes=False)
    record = tmp_path / "trials" / f"{3:016x}" / "metrics.jsonl"
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    last = max(place for place, row in enumerate(rows) if row["split"] == "validation")
    rows[last]["loss"] = None
    record.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = write_report([sweep], tmp_path / "r.html")
    row = done["verdicts"][0]["rows"][1]
    assert row["value"] == row["interval"] == "not finite" and row["done"] == 2 and row["says"] == "a run is not finite"


def test_faults_name_what_to_do(reported, tmp_path, monkeypatch, capsys):
    with pytest.raises(JaxlmError, match="is no folder"):
        write_report([tmp_path / "nothing"], tmp_path / "r.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(JaxlmError, match="no run can be read"):
        write_report([tmp_path / "empty"], tmp_path / "r.html")
    with pytest.raises(JaxlmError, match="is a folder"):
        write_report([reported.sweep], tmp_path)
    with pytest.raises(JaxlmError, match="--max-points 1"):
        write_report([reported.sweep], tmp_path / "r.html", max_points=1)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(JaxlmError, match=r"pip install 'jaxlm\[report\]'"):
        write_report([reported.sweep], tmp_path / "r.html")
    assert not list(tmp_path.glob("*.html"))
    assert main(["report"]) == 2 and "report" in capsys.readouterr().err


def test_command(reported, tmp_path, capsys):
    one = tmp_path / "one"
    shutil.copytree(reported.sweep.parent / "trials" / f"{0:016x}", one)
    assert main(["report", str(one), "--out", str(tmp_path / "one.html"), "--max-points", "50"]) == 0
    assert "1 run," in capsys.readouterr().err
    text = (tmp_path / "one.html").read_text()
    assert "moe_sweep" in text and "difference (95 %)" not in text.partition("<script")[0]
