"""The soak in small: a few faults, and that each promise it watches over can be seen to break."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.soak_faults import Broken, Command, Disk, namespace_for_mounts
from benchmarks.soak_jobs import differences, names, readable

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="the soak reads /proc")
def test_a_few_faults(tmp_path):
    command = [sys.executable, "-m", "benchmarks.soak", "--faults", "4", "--jobs", "prepare", "--parallel", "1", "--seed", "3"]
    command += ["--place", str(tmp_path / "soak"), "--json", str(tmp_path / "soak.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "soak.json").read_text())
    assert record["faults"] == sum(entry["faults"] for entry in record["summary"]) == 4
    assert record["starts"] > record["faults"] and len(record["code"]) == 1
    assert {fault["kind"] for done in record["rounds"] for fault in done["faults"]} <= {"kill", "terminate", "disk"}
    assert "| prepare |" in (tmp_path / "soak.md").read_text() and not (tmp_path / "soak").exists()


def start(tmp_path, program, mark):
    (tmp_path / "home").mkdir(exist_ok=True)
    return Command.start([sys.executable, "-c", program], tmp_path / "home", dict(os.environ), mark, tmp_path / "log")


@pytest.mark.skipif(sys.platform != "linux", reason="the soak reads /proc")
def test_an_orphan_is_seen_whatever_its_session(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.soak_faults.LEFT_ALONE", 0.3)
    left = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    command = start(tmp_path, left, f"test-{os.getpid()}")
    assert command.wait(60) == 0
    with pytest.raises(Broken, match="orphan processes.*sleep 60"):
        command.nobody_left()
    command.nobody_left()  # it was ended


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans to whom they are promised")
def test_an_orphan_that_hides_is_seen(tmp_path):
    program = (
        "import os, pathlib, sys\n"
        "from benchmarks import soak_faults\n"
        "soak_faults.LEFT_ALONE = 0.3\n"
        "soak_faults.adopt()\n"
        "home = pathlib.Path(sys.argv[1])\n"
        'left = \'import subprocess; subprocess.Popen(["sleep", "60"], start_new_session=True, env={})\'\n'
        "command = soak_faults.Command.start([sys.executable, '-c', left], home, dict(os.environ), 'hides', home / 'log')\n"
        "assert command.wait(60) == 0 and not soak_faults.marked('hides')\n"
        "try:\n    command.nobody_left()\n"
        "except soak_faults.Broken as fault:\n    print(fault)\n"
        "command.nobody_left()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert "orphan processes" in done.stdout and "sleep 60" in done.stdout and not done.stderr


def test_a_command_that_does_not_end_is_seen(tmp_path):
    command = start(tmp_path, "import time; time.sleep(60)", f"test-{os.getpid()}-slow")
    began = time.monotonic()
    with pytest.raises(Broken, match="did not end"):
        command.wait(0.2)
    assert command.process.poll() is not None and time.monotonic() - began < 30


def test_the_disk_is_really_full(tmp_path):
    words = namespace_for_mounts()
    if words is None:
        pytest.skip("nothing can be mounted here")
    program = (
        "import errno, sys, pathlib\n"
        "from benchmarks.soak_faults import Disk\n"
        "disk = Disk(pathlib.Path(sys.argv[1]), 1, mounted=True)\n"
        "disk.fill(5000)\n"
        "(disk.home / 'little').write_bytes(bytes(4000))\n"
        "try:\n    (disk.home / 'much').write_bytes(bytes(40000))\n"
        "except OSError as fault:\n    print(errno.errorcode[fault.errno])\n"
        "disk.empty()\n(disk.home / 'much').write_bytes(bytes(40000))\n"
        "disk.remove()\nprint(pathlib.Path(sys.argv[1]).exists())"
    )
    done = subprocess.run(
        [*words, sys.executable, "-c", program, str(tmp_path / "disk")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["ENOSPC", "False"], done.stderr


def test_what_is_unreadable_or_different_is_seen(tmp_path):
    disk = Disk(tmp_path / "disk", 1, mounted=False)
    (disk.home / "run" / "checkpoints" / "5").mkdir(parents=True)
    (disk.home / "run" / "config.json").write_text('{"name": ')
    with pytest.raises(Broken, match=r"config.json is no JSON"):
        readable(disk.home)
    (disk.home / "run" / "config.json").unlink()
    (disk.home / "run" / "metrics.jsonl").write_text('{"step": 0, "split": "train"}\n{"st')
    with pytest.raises(Broken, match="run is broken"):
        readable(disk.home)
    (disk.home / "run" / "checkpoints" / "6.tmp").mkdir()
    assert names(disk.home) == ["run/checkpoints: 1, the last 5, 1 other entries", "run/metrics.jsonl"]

    whole = {"rows": {"run": [{"loss": 1.0}, {"loss": 2.0}]}, "files": ["a", "b"]}
    assert differences(whole, json.loads(json.dumps(whole))) == []
    assert differences(whole, whole | {"files": ["a", "a.tmp"]}) == ["/files: more ['a.tmp'], less ['b']"]
    assert differences(whole, whole | {"rows": {"run": [{"loss": 1.0}, {"loss": 2.0000001}]}}) == [
        "/rows/run/1/loss: 2.0000001, in peace 2.0"
    ]
    assert differences(whole, whole | {"rows": {"run": [{"loss": 1.0}]}}) == ["/rows/run: 1 entries, 2 in peace"]
