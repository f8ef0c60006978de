"""A warning of our own code ends a test, and a process that a test starts; one of somebody else's does not."""

import subprocess
import sys
import warnings

import pytest

GIVEN = "import warnings; warnings.warn_explicit('old', DeprecationWarning, 'x.py', 1, module={module!r})"


@pytest.mark.parametrize("module", ["jaxlm.run.loop", "test_models", "conftest"])
def test_ours_are_errors(module):
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "x.py", 1, module=module)
    if module.startswith("jaxlm"):
        assert subprocess.run([sys.executable, "-c", GIVEN.format(module=module)], stderr=subprocess.DEVNULL).returncode == 1


def test_others_are_not():
    with warnings.catch_warnings(record=True):
        warnings.warn_explicit("old", DeprecationWarning, "x.py", 1, module="flax.struct")
    assert subprocess.run([sys.executable, "-c", GIVEN.format(module="flax.struct")]).returncode == 0
