"""Errors a user can mend: the command line prints their text alone, without a traceback."""

import difflib
import errno
from collections.abc import Iterable

STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
"""What an OSError says where the place to write to is at fault: no traceback helps."""


class JaxlmError(Exception):
    """What is wrong, where, and what to do about it."""


class ConfigError(JaxlmError):
    """A configuration that cannot be run."""


class DataError(JaxlmError):
    """A source, tokenizer or prepared data set that cannot be read or written."""


class CheckpointError(JaxlmError):
    """A run directory or checkpoint that cannot be read, written or continued."""


class DivergedError(JaxlmError):
    """A training whose losses or gradients were not finite, or spiked, for too many steps in a row: it does so again."""


class ProcessError(JaxlmError):
    """Processes of a run that do not find or hear one another: nothing to mend, starting all of them again may help."""


class PlanError(JaxlmError):
    """A plan that cannot be made: no compiler for the devices, or one that fails on the step."""


class LaunchError(JaxlmError):
    """A job that cannot be started, followed or stopped, or that ended before its run was done."""


def no_storage(fault: OSError) -> JaxlmError:
    """Return the error for one of STORAGE, with what to do about it."""
    return JaxlmError(f"{fault}. Make room or choose a folder that can be written; nothing written before is lost")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
