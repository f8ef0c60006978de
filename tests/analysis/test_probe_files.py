"""A user's probe file: its neighbours, what its name may be, and what decides its results."""

import sys

import pytest

from jaxlm.analysis.probe_files import FOLDER, known_probes, listed, load_probes
from jaxlm.errors import ConfigError

PROBE = '''"""What its neighbour says."""
from __future__ import annotations

import dataclasses

from jaxlm.config import config
from shared_words import WORD


@dataclasses.dataclass
class Kept:
    word: str = WORD


@config
class Settings:
    texts: tuple[str, ...] = ()


SETTINGS = Settings()


def probe(view, settings, extra=3):
    import later_words

    return {"words": Kept().word + later_words.WORD}
'''


def written(folder, word, later="!"):
    folder.mkdir(exist_ok=True)
    (folder / f"mine_{word}.py").write_text(PROBE)
    (folder / "shared_words.py").write_text(f"WORD = {word!r}\n")
    (folder / "later_words.py").write_text(f"WORD = {later!r}\n")
    return str(folder / f"mine_{word}.py")


def test_each_has_its_own_neighbours(tmp_path):
    before = set(sys.modules), list(sys.path)
    probes = load_probes([written(tmp_path / "a", "one"), written(tmp_path / "b", "two", "?")])
    for _ in range(2):
        assert [probe(None)["words"] for probe in probes] == ["one!", "two?"]
    left = set(sys.modules) - before[0]
    assert all(name.startswith("jaxlm_file_mine_") for name in left) and sys.path == before[1]


def test_a_change_of_a_neighbour_is_a_change(tmp_path):
    path = written(tmp_path, "one")
    first = load_probes([path])[0]
    again = load_probes([path])[0]
    assert (first.code, first.version) == (again.code, again.version)
    (tmp_path / "later_words.py").write_text("WORD = 3")  # imported inside the function alone
    changed = load_probes([path])[0]
    assert changed.code != first.code and changed.version == first.version
    (tmp_path / "nobodys.py").write_text("")
    assert load_probes([path])[0].code == changed.code
    (tmp_path / "later_words.py").write_text("import jaxlm.sweep.combine\nWORD = 3")
    assert load_probes([path])[0].version != first.version  # that room is none that probes go through


def test_names_and_signatures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loss").write_text("no probe")
    assert load_probes(["loss"])[0].file.parent == FOLDER
    for text, said in [
        ("raise SystemExit(3)", r"cannot be run: SystemExit: 3 \(.*line 1\)"),
        ('"""T."""\ndef probe(view, *, more):\n    pass', r"it must be probe\(view\)$"),
    ]:
        (tmp_path / "mine.py").write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_probes(["mine.py"])
    (tmp_path / "mine.py").write_text('"""T."""\ndef probe(view, extra=3):\n    return {"x": extra}')
    assert load_probes(["mine.py"])[0](None) == {"x": 3}
    with pytest.raises(ConfigError, match=r"points = 'many' must be .*JSON"):
        load_probes(["connectivity"], ["connectivity.points=many"])


def test_ours_are_listed_from_their_sources():
    lines = listed()
    assert [line.partition(":")[0] for line in lines] == known_probes()
    for line, probe in zip(lines, load_probes([]), strict=True):
        assert probe.title in line
        assert all(name in line for name in (vars(probe.settings) if probe.settings is not None else ()))
