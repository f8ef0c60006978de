"""A process of several that finds no room says so in a line; another fault of it shows where it came from."""

from types import SimpleNamespace

import pytest

from jaxlm.run import agreement


@pytest.mark.parametrize(("fault", "traced"), [(OSError(28, "No space left on device"), False), (ValueError("odd"), True)])
def test_what_a_user_can_mend_is_told_without_a_trace(monkeypatch, capsys, fault, traced):
    watch = SimpleNamespace(failed=None, left=[])
    watch.announce = lambda fault: setattr(watch, "failed", (0, type(fault).__name__, str(fault)))
    watch.leave = lambda: watch.left.append(True)
    monkeypatch.setattr(agreement, "_watch", watch)
    agreement._fail(fault)
    said = capsys.readouterr().err
    assert f"process 0: error: {fault}" in said and ("ValueError: odd\n" in said) == traced and watch.left
    assert said.count("\n") == 1 or traced
