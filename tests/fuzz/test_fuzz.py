"""Changed files give an error that a user can mend, or something sane: the small form of `python -m fuzz.run`."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import faulty_targets
import pytest
from found_inputs import EXAMPLES

from fuzz import record
from fuzz.examine import Examiner
from fuzz.mutate import json_bytes
from fuzz.shrink import shrunk
from fuzz.targets import TARGETS
from fuzz.worker import input_of

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
# Fewer of those that take long; `python -m fuzz.run` reads 100,000 of each.
INPUTS = {
    "run-folder": 30, "runs-index": 30, "report": 30, "sweep-record": 30, "checkpoint": 30, "checkpoint-arrays": 40,
    "source-words": 60,
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_refused_in_words_or_sane(name, tmp_path, monkeypatch):
    if name == "checkpoint-arrays":  # what Orbax leaves of a reading that failed, Python tells of when it throws it away
        monkeypatch.setattr(sys, "unraisablehook", lambda told: None)
    target, kinds = TARGETS[name], {"accepted": 0, "refused": 0}
    (tmp_path / "seeds").mkdir()
    seeds = target.seeds(tmp_path / "seeds")
    examiner = Examiner(target, tmp_path / "input")
    for number in range(INPUTS.get(name, 150)):
        found = examiner.examine(input_of(target, seeds, 0, number))
        assert found.kind != "failure", f"python -m fuzz.run {name} --input {number}: {found.what}\n{found.trace}"
        kinds[found.kind] += 1
    assert kinds["accepted"] and (kinds["refused"] or name in ("report", "runs-index")), "the inputs are all of one kind"
    if name == "checkpoint-arrays":
        gc.collect()


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_was_found_is_mended(name, tmp_path, tmp_path_factory):
    example = EXAMPLES[name]
    files = example.whole(_seeds_folder(tmp_path_factory))
    (tmp_path / "seeds").mkdir()
    target = TARGETS[example.target]
    if example.target == "source-words":
        target.seeds(tmp_path / "seeds")
    found = Examiner(target, tmp_path / "input").examine(files)
    assert found.kind == example.comes, f"{found.what}\n{found.trace}"


_FOLDERS: list[Path] = []


def _seeds_folder(factory) -> Path:
    if not _FOLDERS:
        _FOLDERS.append(factory.mktemp("seeds"))
    return _FOLDERS[0]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("KeyError", "KeyError at fuzz/faulty_targets.py:_fault"), ("slow", "more than 0.2 s"), ("slow below an except",
        "more than 0.2 s"),
        ("large", "memory|grew by 3"), ("exit", "SystemExit"), ("not sane", "AssertionError at fuzz/faulty_targets.py"),
        ("without words", "DataError of odd length at fuzz/faulty_targets.py:_fault|1:"),
        ("not to be printed", "DataError that cannot be printed at fuzz/faulty_targets.py"),
        ("in too many words", "DataError of odd length at fuzz/faulty_targets.py:_fault|20000:"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(word, said, tmp_path):
    examiner = Examiner(faulty_targets.FAULTS, tmp_path / "input", seconds=0.2 if "slow" in word else 5.0)
    found = examiner.examine({"word": word.encode()})
    assert found.kind == "failure" and said in found.what
    assert examiner.examine({"word": b"refused"}).kind == "refused"
    assert examiner.examine({"word": b"good"}).kind == "accepted"


def run(*arguments, folder):
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{ROOT}"}
    command = [
        sys.executable,
        "-m",
        "fuzz.run",
        *arguments,
        "--found",
        str(folder / "found"),
        "--json",
        str(folder / "fuzz.json"),
    ]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_a_process_that_dies_is_laid_to_its_input_and_followed_by_another(tmp_path):
    done = run("faulty_targets:DIES", "faulty_targets:REFUSES", "--inputs", "12", "--jobs", "2", folder=tmp_path)
    kept = json.loads((tmp_path / "fuzz.json").read_text())["targets"]
    died = [n for n in range(12) if b"7" in input_of(faulty_targets.DIES, None, 0, n)["word"]]
    assert done.returncode == 1 and died, done.stderr
    made = kept["faulty_targets:DIES"]
    assert (made["inputs"], made["failures"], made["accepted"]) == (12, len(died), 12 - len(died))
    assert [f"input {n} of seed 0: the process ended with status -11" for n in died] == made["found"]
    assert kept["faulty_targets:REFUSES"]["refused"] == 12 and not kept["faulty_targets:REFUSES"]["failures"]
    page = (tmp_path / "fuzz.md").read_text()
    assert f"24 inputs, {len(died)} failures, 2 targets" in page and str(ROOT) not in page
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == sorted(
        f"faulty_targets:DIES-0-{n}.json" for n in died
    )


def test_an_input_that_fails_is_made_smaller(tmp_path):
    files = {"a.json": b'{"one": [1, 2, {"bad": 3}], "two": "' + b"x" * 500 + b'"}', "b": b"y" * 300}
    small = shrunk(files, lambda made: b"bad" in made.get("a.json", b""))
    assert list(small) == ["a.json"] and len(small["a.json"]) <= 12 and b"bad" in small["a.json"]


def test_inputs_are_the_same_everywhere_and_differ_from_one_another():
    target = TARGETS["jsonl-text"]
    first = [input_of(target, None, 3, number) for number in range(40)]
    assert first == [input_of(target, None, 3, number) for number in range(40)]
    assert len({json.dumps({k: v.hex() for k, v in files.items()}) for files in first}) > 35
    assert first != [input_of(target, None, 4, number) for number in range(40)]


def test_results_are_merged(tmp_path):
    about = {"limits": {"seconds": 2.0, "growth_mib": 256, "spare_mib": 1024}, "machine": "one"}
    path = tmp_path / "proof" / "fuzz.json"
    record.merge(
        path, [record.Result("a", "x", 0, inputs=3, accepted=1, refused=2), record.Result("b", "y", 0, inputs=5)], about
    )
    record.merge(path, [record.Result("b", "y", 1, inputs=7, failures=1, found=["KeyError"])], about)
    assert {name: each["inputs"] for name, each in json.loads(path.read_text())["targets"].items()} == {"a": 3, "b": 7}
    assert "10 inputs, 1 failures, 2 targets" in path.with_suffix(".md").read_text()


def test_odd_values_stand_in_json_as_they_are_spelled():
    made = b"".join(json_bytes(Random(seed), b'{"a": {"b": [1, 2.5, "x"]}, "c": null}') for seed in range(400))
    for spelled in (b"NaN", b"1e999", b'"\\ud800"', b"[" * 900, b"9" * 5000, b"18446744073709551615"):
        assert spelled in made, spelled[:20]
    assert "\uf8ff".encode() not in made
