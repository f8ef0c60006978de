"""The documentation builds into a site without a warning, asks for nothing from a network, and every link leads somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, blocks, files

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def headings(file):
    """Return the anchors that GitHub gives to the headings of a page."""
    text = (ROOT / file).read_text()
    for block in blocks(file):
        text = text.replace(block.text, "")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(LINK, r"", title).lower()).strip().replace(" ", "-") for title in titles}


def links(file):
    """Return the links of a page to other files and to headings."""
    text = (ROOT / file).read_text()
    for block in blocks(file):
        text = text.replace(block.text, "")
    return [target for target in LINK.findall(re.sub(r"`[^`]*`", "", text)) if not re.match(r"https?:|mailto:", target)]


@pytest.mark.parametrize("file", files())
def test_every_link_leads_to_a_file_and_a_heading(file):
    for target in links(file):
        path, _, anchor = target.partition("#")
        place = (ROOT / file).parent / path if path else ROOT / file
        assert place.exists(), f"{file} links to {target}"
        if anchor:
            assert anchor in headings(str(place.resolve().relative_to(ROOT))), f"{file} links to {target}"


def test_what_is_said_to_prove_a_promise_is_there():
    text = (ROOT / "docs" / "proven.md").read_text()
    named = re.findall(r"`((?:tests|benchmarks|fuzz|docs|experiments|\.ci)/[\w./]*)`", text)
    modules = re.findall(r"`python -m ([\w.]+)", text)
    assert len(named) > 30 and len(modules) > 3
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []


def test_every_example_is_shown_whole_and_is_short():
    pages = [(ROOT / file).read_text() for file in files()]
    for example in (ROOT / "docs" / "examples").glob("*.py"):
        assert any(f"{{literalinclude}} ../examples/{example.name}\n" in page for page in pages), example.name
        assert len(example.read_text().splitlines()) <= 40


def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": ""})
    assert done.returncode == 0 and not done.stderr, done.stderr
    for page in re.findall(r"^[a-z_/]+$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE):
        assert (ROOT / "docs" / f"{page}.md").is_file(), f"docs/index.md lists {page}"
    for file in (file for file in files()[1:] if not file.startswith("docs/proof/")):
        assert (tmp_path / Path(file).relative_to("docs").with_suffix(".html")).is_file(), file
    fetches = re.compile(r"""<(?:script|img|link|iframe)[^>]*\s(?:src|href)="(?:https?:)?//""")
    pages = {page.name: page.read_text() for page in tmp_path.rglob("*.html")}
    assert len(pages) > 15 and [name for name, page in pages.items() if fetches.search(page)] == []
    assert "routing_rule" in (tmp_path / "searchindex.js").read_text()
    assert "token.tokens" in pages["routing_rule.html"] or ">tokens</span>" in pages["routing_rule.html"]
