"""Where prepared data lies, what its configuration may say, and how a system that refuses to write is reported."""

import errno
import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxlm.data.prepare import DataConfig, prepare
from jaxlm.data.storage import cache_folder, write_atomically
from jaxlm.errors import ConfigError, DataError


def test_fields_are_checked():
    for fields, message in {
        ("sources", ()): "name at least one",
        ("weights", (1.0, 2.0)): "2 numbers for 1 sources",
        ("weights", (0.0,)): "must all be above 0",
        ("weights", (float("nan"),)): "must be a number, not NaN",
    }.items():
        with pytest.raises(ConfigError, match=message):
            DataConfig(**dict([fields]))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.EROFS])
def test_refused_by_the_system(byte_config, monkeypatch, code):
    def refuse(source, target):
        raise OSError(code, os.strerror(code), str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError, match=r"cannot write to .*cache.*data\.cache or \$JAXLM_CACHE"):
        prepare(byte_config())


def test_cache_that_is_no_folder(byte_config, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot write to .*/file/.*a part of this path is a file"):
        prepare(byte_config(cache=str(tmp_path / "file")))


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXLM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert str(cache_folder("")) == "/home/me/.cache/jaxlm"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(cache_folder("")) == "/xdg/jaxlm"
    monkeypatch.setenv("JAXLM_CACHE", "/own")
    assert str(cache_folder("")) == "/own"
    assert str(cache_folder("~/x")) == "/home/me/x"


def test_importing_is_light():
    heavy = "{'jax', 'tensorflow_datasets', 'pyarrow', 'zstandard', 'grain', 'tensorflow'} & set(sys.modules)"
    program = f"import sys, jaxlm.data.prepare, jaxlm.data.mixture; print({heavy})"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"set()\n"


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    write_atomically(tmp_path / "x", b"before")

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "x", b"after")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"before")]


def test_what_killed_writers_leave_does_not_gather(tmp_path):
    program = (
        "import os, sys, pathlib, jaxlm.data.storage as storage\n"
        "storage.os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "storage.write_atomically(pathlib.Path(sys.argv[1]), 'lost' * 9)"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", program, str(tmp_path / "x")]).returncode == -9
        assert [path.name for path in tmp_path.iterdir()] == ["x.tmp"]
    write_atomically(tmp_path / "x", "whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "whole")]


def test_writers_of_one_file_do_not_get_in_each_others_way(tmp_path):
    def write(number):
        for _ in range(15):
            write_atomically(tmp_path / "x", str(number) * 5000)
            assert len(set((tmp_path / "x").read_text())) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_written_where_a_file_system_knows_no_locks(tmp_path, monkeypatch, code):
    def refuse(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_atomically(tmp_path / "x", "whole")
    assert (tmp_path / "x").read_text() == "whole" and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_written_beside_what_a_process_of_another_user_left(tmp_path, monkeypatch):
    (tmp_path / "x.tmp").write_text("another's")
    opened = Path.open

    def refuse(path, *how, **options):
        if path.name == "x.tmp":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *how, **options)

    monkeypatch.setattr(Path, "open", refuse)
    write_atomically(tmp_path / "x", b"whole")
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == b"whole" and {path.name for path in tmp_path.iterdir()} == {"x", "x.tmp"}
