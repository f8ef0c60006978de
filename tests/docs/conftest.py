"""A folder as a reader has it after following the pages: the repository's files, and runs of the names that they use."""

import re

import pytest
from documents import ROOT, files
from run_folders import make_run


@pytest.fixture(scope="session")
def readers_folder(tmp_path_factory):
    """The folder; its runs have begun and taken no step."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("jaxlm", "docs", "experiments", "benchmarks", "launch", "LICENSE", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    named = {name for file in files() for name in re.findall(r"\bruns/[a-z]\w*(?![\w/])", (ROOT / file).read_text())}
    for name in sorted(named - {"runs/sweeps"}):
        make_run(folder / name, done=0, saves=(), max_length=4096)
    (folder / "runs" / "sweeps").mkdir()
    (folder / "plan.json").write_text("{}")
    return folder


@pytest.fixture
def there(readers_folder, monkeypatch):
    """The same, as the working directory."""
    monkeypatch.chdir(readers_folder)
    return readers_folder
