"""The map of the code is of the code as it is: its drawing, and every file and function that a journey stops at."""

import ast
import re
import runpy
from pathlib import Path

from test_imports import ORDER

ROOT = Path(__file__).parents[1]
MAP = ROOT / "docs" / "architecture.md"


def defined(path):
    """Return the functions and classes of a file, those inside others as Outer.inner."""
    found = set()

    def collect(node, before):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                found.add(before + child.name)
                collect(child, f"{before}{child.name}.")

    collect(ast.parse(path.read_text()), "")
    return found


def test_every_stop_of_a_journey_is_there():
    journeys = MAP.read_text().split("## Three journeys")[1].split("\n## ")[0]
    stops = re.findall(r"`([a-z_/]+\.py):([A-Za-z_.]+)`", journeys)
    assert len(stops) > 30
    missing = [f"{file}:{name}" for file, name in stops if name not in defined(ROOT / "jaxlm" / file)]
    assert not missing


def test_the_drawing_is_of_todays_sources():
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_rooms.py"))
    described = drawing["describe"]().replace(">", "&gt;")
    assert described in (ROOT / "docs" / "rooms.svg").read_text(), "python docs/draw_rooms.py"


def test_the_order_of_the_rooms_is_the_one_that_is_kept():
    line = re.search(r"^`(errors, .*)`$", MAP.read_text(), re.MULTILINE)[1]
    assert [set(rooms.split(", ")) for rooms in line.split(" < ")] == ORDER[:-1]
