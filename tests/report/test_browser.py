"""The report in a real browser: it draws, answers, exports its numbers, and asks the network for nothing."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
READY = "performance.getEntriesByName('jaxlm-interactive').length"
SETTLED = "new Promise(done => setTimeout(() => done(1), 300))"


@pytest.fixture(scope="module")
def browser(reported):
    """A browser with the report open."""
    with Browser() as found:
        found.open(reported.page, READY)
        yield found


def test_draws_without_complaint_or_network(browser, reported):
    browser.open(reported.page.with_name("report.html"), READY)
    assert browser.evaluate("jaxlmReport.figures.size") == len(re.findall('class="chart"', reported.text))
    drawn = browser.evaluate("[...jaxlmReport.figures.values()].filter(f => f.drawn).length")
    assert drawn < browser.evaluate("jaxlmReport.figures.size")  # lazily
    browser.evaluate("for (const id of jaxlmReport.figures.keys()) jaxlmReport.draw(id)")
    browser.evaluate(SETTLED)
    empty = "[...jaxlmReport.figures.values()].filter(f => !f.plot.querySelector('svg path, svg image')).map(f => f.id)"
    assert browser.evaluate(empty) == []
    assert browser.complaints() == [] and browser.evaluate("jaxlmReport.errors") == []
    assert browser.evaluate("performance.getEntriesByType('resource').length") == 0
    assert [a for a in browser.requests() if not a.startswith("data:")] == [reported.page.as_uri()]  # heat-maps draw themselves
    assert browser.evaluate("document.querySelectorAll('img').length") == 0  # nothing of the samples became an element


def rows_of(browser, figure, show="values"):
    """What a figure's CSV button gives."""
    browser.evaluate(f"jaxlmReport.figures.get('{figure}').settings.show = '{show}'")
    found = list(csv.DictReader(io.StringIO(browser.evaluate(f"jaxlmReport.csv('{figure}')"))))
    browser.evaluate(f"jaxlmReport.figures.get('{figure}').settings.show = 'values'")
    return found


def test_csv_is_the_record(browser, reported):
    records = {}
    for place in range(11):
        path = reported.sweep.parent / "trials" / f"{place:016x}"
        records[str(path)] = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]

    def values(run, split, name):
        return {row["step"] + (split == "train"): row[name] for row in records[run] if row["split"] == split}

    plain = rows_of(browser, "validation-loss")
    assert len(plain) > 50
    for row in plain:
        step = int(row["step"])
        assert float(row["value"]) == pytest.approx(values(row["run"], "validation", "loss")[step], rel=1e-5)
        assert float(row["tokens"]) == pytest.approx(1024 * step, rel=1e-5)
    control = {row["seed"]: row["run"] for row in plain if row["arm"] == "4 experts"}
    less = [row for row in rows_of(browser, "gradient-norm", "difference") if row["arm"] != "4 experts"]
    assert len(less) > 200
    for row in less:
        mine, theirs = (values(run, "train", "gradient_norm")[int(row["step"])] for run in (row["run"], control[row["seed"]]))
        assert float(row["less_control"]) == pytest.approx(mine - theirs, rel=1e-4, abs=1e-6)
    for row in rows_of(browser, "router-load")[:2000]:
        loads = values(row["run"], "validation", "router_load")[int(row["step"])][{"1": 0, "3": 1}[row["layer"]]]
        assert float(row["value"]) == pytest.approx(len(loads) * loads[int(row["expert"])], rel=1e-4)
    names = ["word", "number", "space", "<b>other</b>"]
    by_class = next(f for f in browser.evaluate("[...jaxlmReport.figures.keys()].filter(k => k.includes('map'))")
                    if rows_of(browser, f)[0]["measure"] == "by_class")  # fmt: skip
    for row in rows_of(browser, by_class):
        result = json.loads(Path(row["run"], "analysis", "loss", f"{row['step']}.json").read_text())["measures"]["by_class"]
        assert float(row["value"]) == pytest.approx(result["values"][names.index(row["class"])], rel=1e-4)


def test_csv_is_the_data(browser, reported):
    found = list(csv.DictReader(io.StringIO(browser.evaluate("jaxlmReport.csv('training-loss')"))))
    data = json.loads(re.search(r'id="data">(.*?)</script>', reported.text, re.DOTALL)[1])
    expected = [
        (data["arms"][arm["arm"]]["name"], data["runs"][seed["run"]]["path"], step, y, smooth)
        for arm in data["metrics"]["train/loss"]["arms"]
        for seed in arm["seeds"]
        for step, y, smooth in zip(arm["steps"], seed["y"], seed["smooth"], strict=True)
        if y is not None
    ]
    got = [(r["arm"], r["run"], int(r["step"]), float(r["value"]), float(r["smoothed"])) for r in found]
    assert got == expected
    assert max(float(r["tokens"]) for r in found) == 200 * 1024
    loads = list(csv.DictReader(io.StringIO(browser.evaluate("jaxlmReport.csv('router-load')"))))
    chart = data["charts"]["router-load"]
    assert [float(r["value"]) for r in loads] == [v for run in chart["runs"] for frame in run["values"] for v in frame]
    assert {r["layer"] for r in loads} == {"1", "3"}
    offered = (
        "new Promise(done => { URL.createObjectURL = blob => { blob.text().then(done); return 'blob:none'; };"
        " HTMLAnchorElement.prototype.click = () => {};"
        " document.querySelector('#figure-training-loss button[aria-label^=CSV]').dispatchEvent(new Event('click')); })"
    )
    assert browser.evaluate(offered) == browser.evaluate("jaxlmReport.csv('training-loss')")


def test_controls_answer(browser):
    figure = "document.getElementById('figure-training-loss')"
    axis = "jaxlmReport.figures.get('training-loss').plot.layout"
    browser.evaluate("jaxlmReport.draw('training-loss')")
    assert browser.evaluate(f"{axis}.yaxis.type") != "log"
    browser.evaluate(f"{figure}.querySelectorAll('.controls input')[1].click()")
    assert browser.evaluate(f"{axis}.yaxis.type") == "log"
    traces = "jaxlmReport.figures.get('training-loss').plot.data.length"
    before = browser.evaluate(traces)
    browser.evaluate("document.querySelector('#curves [data-set=seeds]').click()")
    assert browser.evaluate(traces) > before
    change = (
        "(s => { s.value = VALUE; s.dispatchEvent(new Event('change')); })(document.querySelector('#curves [data-set=SET]'))"
    )
    browser.evaluate(change.replace("VALUE", "'tokens'").replace("SET", "x"))
    assert browser.evaluate(f"{axis}.xaxis.title.text") == "tokens"
    assert browser.evaluate("Math.max(...jaxlmReport.figures.get('training-loss').plot.data.at(-1).x)") == 200 * 1024
    browser.evaluate(change.replace("VALUE", "'difference'").replace("SET", "show"))
    lines = "jaxlmReport.figures.get('training-loss').plot.data.filter(t => t.name === '4 experts').flatMap(t => t.y)"
    assert set(browser.evaluate(lines)) == {0}  # the control, less itself
    browser.evaluate(f"{figure}.querySelector('button[aria-expanded]').click()")
    assert browser.evaluate(f"{figure}.querySelectorAll('.numbers tbody tr').length") >= 60
    heads = browser.evaluate("[...document.querySelectorAll('#verdict-0 tbody th')].map(h => h.textContent.trim())")
    browser.evaluate("document.querySelectorAll('#verdict-0 thead button')[2].click()")
    ordered = browser.evaluate("[...document.querySelectorAll('#verdict-0 tbody td:nth-child(3)')].map(c => +c.dataset.value)")
    assert ordered == sorted(ordered) and len(heads) == len(ordered) == 4
    slider = "document.querySelector('#figure-probe-0-map-0 input[type=range]')"
    browser.evaluate(f"{slider}.value = 0; {slider}.dispatchEvent(new Event('input'))")
    assert browser.evaluate("document.querySelector('#figure-probe-0-map-0 output').textContent") == "0"


def test_themes_widths_and_print(browser, reported):
    browser.open(reported.page, READY)
    back = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(back)
    browser.media(prefers_color_scheme="dark")
    dark = browser.evaluate(back)
    assert light != dark
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(back) == light and browser.evaluate("localStorage.getItem('jaxlm-theme')") == "light"
    browser.evaluate("localStorage.clear()")
    browser.media()
    browser.resize(360, 700, mobile=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    browser.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("document.querySelectorAll('details:not([open]):not(.keep-folded)').length") == 0
    assert not browser.evaluate("document.querySelector('.keep-folded').open")  # hundreds of fields stay folded
    assert browser.evaluate("[...jaxlmReport.figures.values()].every(f => f.drawn)")
    browser.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") > 0
    assert browser.complaints() == []
    browser.resize(1280, 900)


def test_is_soon_interactive(browser, reported):
    times = []
    while len(times) < 3 and min(times, default=2000) >= 2000:  # the best of three: other work on the machine is not the page's
        browser.open(reported.page, READY, f"?{len(times)}")
        times.append(browser.evaluate("performance.getEntriesByName('jaxlm-interactive')[0].startTime"))
    assert min(times) < 2000, times
    assert browser.processor_seconds() < 5  # about 1 s on an idle machine; benchmarks/report.py holds it to its bar


def test_every_control_has_a_name_and_the_keyboard_reaches_it(browser):
    unnamed = """[...document.querySelectorAll('button, select, input')].filter(e => !e.closest('[hidden]') &&
        !(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label')?.textContent.trim()))
        .map(e => e.outerHTML)"""
    assert browser.evaluate(unnamed) == []
    assert browser.evaluate("[...document.querySelectorAll('[tabindex]')].every(e => e.tabIndex >= -1 && e.tabIndex < 1)")
    plots = "[...document.querySelectorAll('.plot')].every(e => e.getAttribute('role') === 'img' && e.ariaLabel.length > 10)"
    assert browser.evaluate(plots)
    contrast = """(() => {
        const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const probe = document.createElement('i'); document.body.append(probe);
        const read = name => { probe.style.color = `var(${name})`; return light(getComputedStyle(probe).color); };
        const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const least = {};
        for (const theme of ['light', 'dark']) {
            document.documentElement.dataset.theme = theme;
            for (const ink of ['--ink', '--soft', '--link', '--bad', '--good', '--warn'])
                for (const back of ['--back', '--raised', '--warn-back', '--bad-back'])
                    least[`${theme} ${ink} ${back}`] = ratio(read(ink), read(back));
        }
        delete document.documentElement.dataset.theme; probe.remove(); return least;
    })()"""
    assert {k: v for k, v in browser.evaluate(contrast).items() if v < 4.5} == {}
