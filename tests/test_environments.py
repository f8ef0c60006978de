"""`.ci/environments`: what it copies, counts and writes; making an environment takes minutes, and is left to its own runs."""

import importlib.machinery
import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "environments"
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_good"/>
<testcase classname="tests.test_a" name="test_bad"><failure message="no"/></testcase>
<testcase classname="tests.test_b" name="test_broken"><error message="no"/></testcase>
<testcase classname="tests.test_b" name="test_out"><skipped message="no Slurm"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def environments(tmp_path, monkeypatch):
    loader = importlib.machinery.SourceFileLoader("environments", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("environments", loader))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path / "root")
    monkeypatch.setattr(module, "PROOF", tmp_path / "proof")
    return module


def test_what_is_not_committed_is_copied_and_what_is_gone_is_not(environments, tmp_path):
    root, place = tmp_path / "root", tmp_path / "copy"
    root.mkdir()
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@t"]
    for name, text in (("kept", "1"), ("changed", "1"), ("gone", "1"), (".gitignore", "left\n")):
        (root / name).write_text(text)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    (root / "gone").unlink()
    (root / "changed").write_text("2")
    (root / "left").write_text("")
    (root / "new").mkdir()
    (root / "new" / "file").write_text("3")
    environments.copy_sources(place)
    assert {path.name for path in place.iterdir()} == {".git", ".gitignore", "kept", "changed", "new"}
    assert (place / "changed").read_text() == "2" and (place / "new" / "file").read_text() == "3"


def test_outcomes_and_the_table_made_of_them(environments, tmp_path):
    (tmp_path / "junit.xml").write_text(JUNIT)
    found = environments.read_outcomes(tmp_path / "junit.xml")
    assert found == {
        "passed": 1, "failed": 2, "skipped": 1, "failures": ["tests.test_a::test_bad", "tests.test_b::test_broken"],
        "skipped_because": {"no Slurm": 1},
    }  # fmt: skip
    versions = {"python": "3.11.7", "jax": "0.10.2", "flax": "0.12.8", "orbax-checkpoint": "0.12.8", "numpy": "2.4.6"}
    line = {"environment": "oldest-3.11", "time": "2026-01-02T03:04:05+00:00", "commit": "abc", "tests": "all", **found}
    line |= {"status": 1, "seconds": 900, "cpu_seconds": 1500, "versions": versions, "machine": {"cores": 2}}
    environments.write([line])
    assert json.loads((tmp_path / "proof" / "environments.json").read_text()) == [line]
    text = (tmp_path / "proof" / "environments.md").read_text()
    assert "| oldest-3.11 (3.11.7) | 2026-01-02 03:04 | abc | all | 1 | 2 | 1 | 900 | 1500 | 0.10.2 |" in text
    assert "failed: `tests.test_b::test_broken`" in text and "skipped (1): no Slurm" in text


def test_an_environment_that_is_none_is_refused(environments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["environments", "newest"])
    with pytest.raises(SystemExit):
        environments.main()
    assert "newest is no environment: oldest-3.11" in capsys.readouterr().err
