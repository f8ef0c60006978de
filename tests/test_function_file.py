"""A function of a file: its spelling, its digest, and what is never run."""

import dataclasses
import os
import py_compile
import re

import pytest

from jaxlm import function_file, module_file, trust
from jaxlm.config import digest, from_dict, to_dict
from jaxlm.errors import ConfigError
from jaxlm.function_file import UntrustedError, contents, identity, load, parse, settled, trusted
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig

SIZES = {"vocab_size": 8, "num_layers": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 8}


def another_process():
    """Forget what this process was told, as another one has not heard it."""
    load.cache_clear()
    for known in (function_file._MODULES, module_file._NEIGHBOURS, function_file._PLACES):
        known.clear()
    for known in (function_file._READ, function_file._OWN):
        known.clear()


@pytest.fixture
def rules(tmp_path, monkeypatch):
    """A folder with a rule, and the neighbour that it takes a number from; the working directory is above it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    another_process()
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "rule.py").write_text("from number import N\n\ndef route(logits, token):\n    return N\n")
    (folder / "number.py").write_text("N = 3\n")
    return folder


def test_a_value_gets_the_digest_of_its_file_and_neighbours(rules):
    value = settled("rules/rule.py:route")
    assert re.fullmatch(r"rules/rule\.py:route@[0-9a-f]{8}", value)
    assert settled(value) == value == settled(f"{rules}/rule.py:route")  # below the working directory, however spelled
    assert load(value)(None, None) == 3 and load(value) is load(value)
    assert set(contents(parse(value).file)) == {"rule.py", "number.py"}
    (rules / "number.py").write_text("N = 4\n")
    assert settled("rules/rule.py:route") != value
    (rules / "number.py").write_text("N = 3\r\n")  # another system's lines
    assert settled("rules/rule.py:route") == value


def test_a_configuration_holds_the_digest_and_can_be_read_without_the_file(rules):
    config = ModelConfig(**SIZES, moe=MoeConfig(num_experts=2, router="rules/rule.py:route"))
    assert config.moe.router == settled("rules/rule.py:route")
    (rules / "rule.py").rename(rules / "moved.py")
    again = from_dict(ModelConfig, to_dict(config))
    assert again == config == dataclasses.replace(config)
    with pytest.raises(ConfigError, match=r"there is no file rules.rule\.py, seen from .*"):
        load(again.moe.router)
    with pytest.raises(ConfigError, match=r"MoeConfig\.router = .*there is no file"):
        MoeConfig(num_experts=2, router="rules/rule.py:route")


def test_what_is_refused(rules):
    value = settled("rules/rule.py:route")
    with pytest.raises(ConfigError, match="defines no function rout. Did you mean 'route'"):
        load(settled("rules/rule.py:rout"))
    with pytest.raises(ConfigError, match=r"cannot be run: SyntaxError"):
        (rules / "broken.py").write_text("def route(:\n")
        load(settled("rules/broken.py:route"))
    (rules / "rule.py").write_text("def route(logits, token):\n    return 5\n")
    with pytest.raises(ConfigError, match=r"has changed: its digest is [0-9a-f]{8} now.*name it without a digest"):
        load(f"rules/../{value}")  # another spelling: what was loaded once stays loaded
    with pytest.raises(ConfigError, match="is not FILE.py:NAME"):
        settled("rules/rule.py:route@12")
    with pytest.raises(ConfigError, match=r"is none of 'rope'.* Did you mean 'rope'\?.*rotate\(x_BLNH, positions_BL, part\)"):
        ModelConfig(**SIZES, positions="ropee")
    with pytest.raises(ConfigError, match="rope_scaling changes the frequencies of RoPE"):
        ModelConfig(**SIZES, positions="rules/rule.py:route", rope_scaling={"kind": "linear", "factor": 2.0})
    with pytest.raises(ConfigError, match="groups the positions of RoPE"):
        ModelConfig(**SIZES, positions="rules/rule.py:route", self_extend={"group_size": 2, "window_size": 4})


EVIL = "raise SystemExit('was run')\ndef route(logits, token): ...\n"


def test_what_others_name_is_not_run_until_the_user_names_it(rules, tmp_path):
    (tmp_path / "stuff" / "run").mkdir(parents=True)
    (tmp_path / "stuff" / "run" / "evil.py").write_text(EVIL)
    (rules / "link.py").symlink_to(tmp_path / "stuff" / "run" / "evil.py")
    fields = {**SIZES, "moe": {"num_experts": 2, "router": "rules/rule.py:route"}}
    digest = function_file.full_digest("stuff/run/evil.py:route")[:8]
    link = function_file.full_digest("rules/link.py:route")[:8]
    for value in (f"stuff/run/evil.py:route@{digest}", f"rules/link.py:route@{link}"):
        read = from_dict(ModelConfig, fields | {"moe": {"num_experts": 2, "router": value}})
        again = dataclasses.replace(read, moe=dataclasses.replace(read.moe))  # what is made of it was not named either
        with pytest.raises(UntrustedError, match=r"have not named yourself: read it, then `jaxlm trust [\w/]+.py:route`"):
            load(again.moe.router)
    with pytest.raises(ConfigError, match="has no digest, and only you may leave it out"):
        from_dict(ModelConfig, fields)
    with pytest.raises(ConfigError, match="has no digest"):  # and nothing is looked for
        from_dict(ModelConfig, fields | {"positions": "/nowhere/at.py:all"})
    assert not (tmp_path / "cache").exists()

    value = settled("rules/rule.py:route")  # named by the user
    another_process()
    assert load(from_dict(ModelConfig, fields | {"positions": value, "moe": {}}).positions)(None, None) == 3
    assert [path.stat().st_uid for path in (tmp_path / "cache" / "trusted").iterdir()] == [os.getuid()]
    (rules / "number.py").write_text("N = 5\n")  # what it imports is another content
    other = function_file.full_digest("rules/rule.py:route")[:8]
    from_dict(ModelConfig, fields | {"positions": f"rules/rule.py:route@{other}", "moe": {}})
    with pytest.raises(UntrustedError, match="read it and number.py, then"):
        load(f"rules/rule.py:route@{other}")
    assert "rule.py" in trusted("rules/rule.py:route")[0] and load(f"rules/rule.py:route@{other}")(None, None) == 5
    with pytest.raises(ConfigError, match="is something else"):
        trusted(value)


def test_a_job_brings_its_trust_along(rules, monkeypatch, tmp_path):
    value, full = settled("rules/rule.py:route"), function_file.full_digest("rules/rule.py:route")
    another_process()
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "of another"))
    with pytest.raises(UntrustedError):
        load(value)
    monkeypatch.setenv(trust.VARIABLE, f"{'0' * 64}:{full}")
    assert load(value)(None, None) == 3


def test_digests_are_of_all_that_runs(rules):
    package = rules / "helpers"
    package.mkdir()
    for name in ("sly", "tried", "package/__init__", "package/own", "package/deep/__init__", "package/deep/low", "star/one"):
        (rules / "helpers" / name).parent.mkdir(exist_ok=True, parents=True)
        (rules / "helpers" / f"{name}.py").write_text("X = 1\n")
    (package / "star" / "__init__.py").write_text("__all__ = ['one']\n")
    (package / "__init__.py").write_text("from .package import (  # a word\n    own)\n")
    (package / "package" / "own.py").write_text("from .deep.low import X\nfrom ..star import *\n")
    (rules / "rule.py").write_text(
        "x = 1; import helpers.sly\ntry: import helpers.tried\nexcept ImportError: pass\n\ndef route(logits, token):\n"
        "    from late import N\n    return N\n"
    )
    (rules / "late.py").write_text("from number import N\n")
    names = {"__init__", "sly", "tried", "package/__init__", "package/own", "package/deep/__init__", "package/deep/low",
             "star/__init__", "star/one"}  # fmt: skip
    found = {f"helpers/{name}.py" for name in names} | {"rule.py", "late.py", "number.py"}
    assert set(contents(rules / "rule.py")) == found
    assert load(settled("rules/rule.py:route"))(None, None) == 3  # what is imported within is found, too
    (package / "package" / "deep" / "__init__.py").write_text("Y = 2\n")
    before = settled("rules/rule.py:route")
    (rules / "helpers" / "sly.pyc").write_bytes(b"")
    assert settled("rules/rule.py:route") != before


def test_only_what_the_digest_is_of_runs(rules):
    (rules / "hidden.py").write_text(EVIL)
    (rules / "colorsys.py").write_text(EVIL)  # it shadows nothing that others import
    (rules / "rule.py").write_text(
        "import importlib, number\n\ndef route(logits, token):\n"
        "    importlib.import_module('colorsys')\n    return importlib.import_module('hidden')\n"
    )
    with pytest.raises(ModuleNotFoundError, match="hidden"):
        load(settled("rules/rule.py:route"))(None, None)


def test_code_in_a_cache_of_the_interpreter_is_not_run(rules):
    source = rules / "number.py"
    source.write_text("N = 4\n")
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    source.write_text("N = 3\n")
    assert load(settled("rules/rule.py:route"))(None, None) == 3


def test_a_changed_helper_is_read_anew_and_a_file_is_run_once(rules):
    (rules / "rule.py").write_text(
        "from number import N\nHELD = [N]\ndef route(*_): return HELD\ndef rotate(*_): return HELD\n"
    )
    first = settled("rules/rule.py:route")
    assert load(first)() == [3] and load(settled("rules/rule.py:rotate"))() is load(first)()
    (rules / "number.py").write_text("N = 4\n")
    assert load(settled("rules/rule.py:route"))() == [4] and load(first)() == [3]
    with module_file.beside(rules):
        import number
    (rules / "number.py").write_text("N = 5\n")
    with module_file.beside(rules):
        import number as again
    assert (number.N, again.N) == (4, 5)


def test_a_moved_file_is_the_same_function(rules):
    value = settled("rules/rule.py:route")
    old = ModelConfig(**SIZES, positions=value)
    rules.rename(rules.parent / "elsewhere")
    with pytest.raises(ConfigError, match="there is no file"):
        load(value)
    new = dataclasses.replace(old, positions="elsewhere/rule.py:route")
    assert new.positions != value and identity(new.positions) == identity(value) == f"route@{value[-8:]}"
    assert digest(new) == digest(old) and load(value)(None, None) == 3  # as an older checkpoint spells it
    assert identity("rules/rule.py:route") == "rules/rule.py:route" and identity(7) == 7
