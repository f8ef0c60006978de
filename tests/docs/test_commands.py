"""Every command of the documentation is one that the product takes.

What costs nothing is run; of the rest the command line is read by the product's own parser. `.ci/docs` runs them all, small.
"""

import functools
import re
import tomllib
from pathlib import Path

import pytest
import run_all
from documents import ROOT, all_blocks, commands

from jaxlm import cli
from jaxlm.commands import training

BASH = [command for block in all_blocks("bash") for command in commands(block)]
# What these print or refuse is cheap to find out, so they run, with a word more where they would begin something.
RUNS = {"runs": (), "diff": (), "launch": ("--dry-run",), "jobs": ()}


@pytest.mark.parametrize("command", BASH, ids=str)
def test_a_command_is_taken(command, there, monkeypatch):
    program, *words = command.words
    read = READERS.get(program)
    assert read, f"{command}: nobody knows how to check {program}; say so in READERS of {Path(__file__).name}"
    read(words, monkeypatch)


def _jaxlm(words, monkeypatch):
    """Run the command line up to what the command would do; some commands altogether."""
    name = " ".join(words[:2]) if " ".join(words[:2]) in cli.COMMANDS else words[0]
    began = []

    def noticed(command):
        return functools.wraps(command)(lambda *args, **fields: began.append(fields))

    if name in RUNS or "--list" in words:
        words = [*words, *(word for word in RUNS.get(name, ()) if word not in words and "--help" not in words)]
        began.append({})
    else:
        monkeypatch.setattr(cli, "COMMANDS", {known: noticed(command) for known, command in cli.COMMANDS.items()})
        monkeypatch.setattr(training, "show_run", noticed(training.show_run))
    try:
        status = cli.main(words)
    except SystemExit as stop:
        status = stop.code
    assert status in (0, None) and (began or "--help" in words)


def _pip(words, monkeypatch):
    """Look whether the extras that are asked for are there."""
    assert words[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for wanted in re.findall(r"\.\[([\w,-]+)\]", " ".join(words)):
        assert set(wanted.split(",")) <= set(extras)


def _python(words, monkeypatch):
    """Look for the file or module, and for its options in its text and in that of files beside it."""
    if words[:2] == ["-m", "venv"]:
        return
    file = ROOT / (f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else words[0])
    assert file.is_file(), file
    text = "".join(path.read_text() for path in file.parent.glob("*.py"))
    for word in words:
        if re.fullmatch(r"--[a-z][\w-]*", word):
            assert re.search(rf'"{word}\b|\b{word[2:].replace("-", "_")}\b', text), f"{file.name} takes no {word}"


def _script(words, monkeypatch):
    assert (ROOT / words[0]).is_file()


def _nothing(words, monkeypatch):
    """What the shell does by itself, or a program of others: there is nothing of ours to check."""


def _docker(words, monkeypatch):
    if words[0] == "build":
        assert (ROOT / words[words.index("-f") + 1]).is_file()
        (argument,) = [word for word in words if "=" in word]
        assert re.search(rf"^ARG {argument.partition('=')[0]}\b", (ROOT / "launch/Dockerfile").read_text(), re.MULTILINE)


def _site(words, monkeypatch):
    assert words[:3] == ["-W", "-n", "docs"]  # as test_site.py builds it


READERS = {
    "jaxlm": _jaxlm, "pip": _pip, "python": _python, "pytest": _nothing, "bash": _script, ".ci/docs": _nothing,
    "docker": _docker, "sphinx-build": _site, "export": _nothing, "source": _nothing, "cd": _nothing, "git": _nothing,
}  # fmt: skip


def test_no_command_hides_in_a_block_of_another_kind():
    known = ("bash", "text", "python", "json", "", "{toctree}", "{eval-rst}")
    for block in all_blocks(*{block.language for block in all_blocks(*known)} | set(known)):
        assert block.language in known or block.language.startswith("{literalinclude}"), block.place
        if block.language == "":
            assert not re.search(r"^(\$ )?(jaxlm|pip|python) ", block.text, re.MULTILINE), block.place
    for file in {block.file for block in all_blocks("bash", "text", "python", "")}:
        assert not re.search(r"^    (\$ )?(jaxlm|pip|python) ", (ROOT / file).read_text(), re.MULTILINE), file


@pytest.mark.parametrize("table", ["SMALL", "SHORT", "LEFT_OUT", "OTHERWISE"])
def test_no_row_of_what_ci_changes_is_dead(table):
    for pattern, _ in getattr(run_all, table):
        used = [c for c in BASH if (pattern in c.text if table == "OTHERWISE" else re.match(pattern, c.text))]
        assert used, f"{table}: {pattern} is of no command any more"
