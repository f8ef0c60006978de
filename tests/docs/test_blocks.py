"""Every piece of Python in the documentation runs, and every output that it shows is what is printed."""

import ast
import importlib
import re
import sys

import pytest
from documents import all_blocks, blocks, commands

from jaxlm import cli
from jaxlm.experiment import Experiment
from jaxlm.sweep.combine import Trial

# What pages leave out that a file of one's own would begin with.
IMPORTS = """
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from jaxlm.data.prepare import DataConfig
from jaxlm.experiment import Experiment
from jaxlm.layout import MeshConfig
from jaxlm.model.rope_config import RopeScaling
from jaxlm.objective.preference_config import PreferenceConfig
from jaxlm.run.directory import load_config
from jaxlm.sweep.combine import Trial, grid, named, product, trials

def experiment():
    return load_config(Path("runs/quickstart"))
"""
# Runs there only: a pretrained model, a trained one, or a package of others. The rest is compared, or made, in these tests.
ELSEWHERE = ("run by .ci/docs", "illustration: ")
# Of the README, which has no marks: what begins so is the output of a run of minutes.
OF_ONE_MACHINE = ("quickstart: training, 2.4M parameters",)


@pytest.mark.parametrize("block", all_blocks("python"), ids=lambda block: block.place)
def test_python_runs(block, there):
    tree = ast.parse(block.text)
    for line in (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module.startswith("jaxlm")):
        module = importlib.import_module(line.module)
        assert all(hasattr(module, name.name) for name in line.names), f"{block.place}: {ast.unparse(line)}"
    if block.mark.startswith(ELSEWHERE):
        return
    names = {}
    exec(IMPORTS + block.text, names)
    made = names["experiment"]()
    assert isinstance(made, Experiment)
    if "sweep" in names:
        found = list(names["sweep"]())
        assert len(found) > 1 and all(isinstance(trial, Trial) for trial in found)


SHOWN = [block for block in all_blocks("text") if not block.mark.startswith(ELSEWHERE)]


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: block.place)
def test_an_output_is_what_is_printed(block, there, capsys):
    """Lines of dots stand for what is left out; paths of the reader's are those of this test."""
    if block.text.startswith(OF_ONE_MACHINE):
        return
    given, *lines = block.text.splitlines()
    if block.mark.startswith("output: "):
        before = [commands(other)[-1] for other in blocks(block.file) if other.language == "bash" and other.line < block.line]
        words, lines = [*before[-1].words[1:], *block.mark.removeprefix("output: ").split()], [given, *lines]
    else:
        assert given.startswith("$ jaxlm "), f"{block.place}: mark what it is the output of, or <!-- illustration: why -->"
        words = given.split()[2:]
    cli.main(words)
    printed = capsys.readouterr()
    printed = (printed.out + printed.err).replace(sys.executable, "PYTHON").replace(str(there), "/home/me")
    printed, shown = _joined(printed), _joined("\n".join(lines))
    shown = re.sub(r"/\w+/me/venv/bin/python3\.\d+", "PYTHON", shown)
    place = 0
    for line in shown.splitlines():
        if line.startswith(" ..."):
            continue
        wanted = r"[^\n]*".join(re.escape(part) for part in line.split("..."))
        found = re.compile(wanted).search(printed, place)
        assert found, f"{block.place}: not printed, or not here: {line}"
        place = found.end()
    assert place


def _joined(text):
    """Return a text with commands that are broken over lines in one: how long a line may be depends on its paths."""
    return re.sub(r" \\\n\s*", " ", text)


def test_enough_is_looked_at():
    assert len(SHOWN) > 5 and sum(not block.mark for block in all_blocks("python")) > 4
