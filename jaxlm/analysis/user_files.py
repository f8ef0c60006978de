"""What a probe's result depends on besides the checkpoint: its own file and the code of ours that it runs through."""

from pathlib import Path

import jaxlm
from jaxlm.imported import digest, imported_files

ROOT = Path(jaxlm.__file__).parent
# What every probe goes through: the rest is what it imports itself.
COMMON = (ROOT / "analysis" / "view.py", ROOT / "analysis" / "measure.py")


def digests(path: Path) -> tuple[str, str]:
    """Return a digest of a probe's file and its neighbours, and one of the code of ours that it runs through, 16 digits each.

    Both follow import lines, those inside functions too.
    """
    own = imported_files(path.parent, path, package="")
    ours = {file for file in imported_files(ROOT, *COMMON, *own) if file.is_relative_to(ROOT)}
    return digest(path.parent, own)[:16], digest(ROOT, ours - own)[:16]
