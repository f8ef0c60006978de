"""Which source files another one runs through, from their import lines alone: what a digest of the code is of."""

import hashlib
from pathlib import Path

import jaxlm
from jaxlm.imported import imported_files

# What training imports to show, to draw, to keep account and to write text at its end: no result depends on it.
TELLING = tuple(
    f"run/{name}.py"
    for name in "display report router_report watch goodput failure sources tensorboard unread functions".split()
)


def training_files(root: Path | None = None) -> dict[str, str]:
    """Return the files of the package that decide what training computes, records and saves: path in it -> digest.

    They are the files that the training loop imports, directly or not, but for those that only tell of it (`TELLING`) and what
    these alone import. The same on any machine that has the same sources.
    """
    root = root or Path(jaxlm.__file__).parent
    files = imported_files(root, root / "run" / "loop.py", without=[root / name for name in TELLING])
    contents = {path.relative_to(root).as_posix(): path.read_bytes().replace(b"\r\n", b"\n") for path in files}
    return {name: hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)}


def code_digest() -> str:
    """Return 16 hexadecimal digits of the code that decides what training computes, as it is on disk now."""
    return digest_of(training_files())


def digest_of(files: dict[str, str]) -> str:
    """Return 16 hexadecimal digits of what `training_files` returned."""
    return hashlib.sha256("".join(f"{name} {value}\n" for name, value in files.items()).encode()).hexdigest()[:16]
