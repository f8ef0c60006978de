"""Where prepared data lies, what its configuration may say, and how a system that refuses to write is reported."""

import errno
import os
import subprocess
import sys

import pytest

from jaxlm.data.prepare import DataConfig, prepare
from jaxlm.data.storage import cache_folder, write_atomically
from jaxlm.errors import ConfigError, DataError


def test_fields_are_checked():
    for fields, message in {
        ("sources", ()): "name at least one",
        ("weights", (1.0, 2.0)): "2 numbers for 1 sources",
        ("weights", (0.0,)): "must all be above 0",
        ("weights", (float("nan"),)): "must all be above 0",
    }.items():
        with pytest.raises(ConfigError, match=message):
            DataConfig(**dict([fields]))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
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
