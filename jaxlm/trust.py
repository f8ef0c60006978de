"""Which code in files of Python may be run: what the user has named, by the sha-256 of all that would run.

A configuration that was read from a run, or from anywhere else, names functions too. Those are run only where the same content
was named before by the user: in an experiment file, on the command line, or to `jaxlm trust`.
"""

import os
from pathlib import Path

VARIABLE = "JAXLM_TRUSTED"  # digests with colons between them: what a job brings along, where it sees no home of the user's
FOLDER = "trusted"


def user_cache() -> Path:
    """Return the user's folder for what is kept between runs: $JAXLM_CACHE, $XDG_CACHE_HOME/jaxlm, ~/.cache/jaxlm."""
    if os.environ.get("JAXLM_CACHE"):
        return Path(os.environ["JAXLM_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm"


def allow(digest: str, what: str) -> None:
    """Remember that a content (64 hexadecimal digits) may be run, from now on; `what` is kept for people.

    Each is a file of its own, so that two processes cannot lose one another's. Where none can be written, this process and
    those that it starts know it.
    """
    if allowed(digest):
        return
    try:
        (user_cache() / FOLDER).mkdir(parents=True, exist_ok=True)
        (user_cache() / FOLDER / digest).write_text(f"{what}\n", encoding="utf-8", errors="replace")
    except OSError:
        pass
    if not allowed(digest):
        os.environ[VARIABLE] = ":".join(filter(None, (os.environ.get(VARIABLE), digest)))


def allowed(digest: str) -> bool:
    """Return whether a content was named by this user; entries that another user wrote into a shared folder do not count."""
    try:
        return (user_cache() / FOLDER / digest).lstat().st_uid == os.getuid()
    except OSError:
        return digest in os.environ.get(VARIABLE, "").split(":")
