"""What the documentation says: its files, their fenced blocks, and the commands in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# A researcher's order: what is trained on one page is read on those that follow.
FIRST = ("README.md", "docs/guides/first_run.md", "docs/smollm2.md")


class Block(NamedTuple):
    """A fenced block: where it begins, its language, its text, and an HTML comment on the line before it."""

    file: str
    line: int
    language: str
    text: str
    mark: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


class Command(NamedTuple):
    """One simple command as a reader would type it, where it stands, and the words a shell would make of it."""

    place: str
    text: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def files() -> list[str]:
    """Return every page, README first."""
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
    return [*FIRST, *(name for name in found if name not in FIRST)]


def blocks(file: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found, lines, open_at = [], (ROOT / file).read_text().splitlines(), None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if open_at is None:
            open_at = number
            continue
        before = lines[open_at - 1].strip() if open_at else ""
        mark = before[4:-3].strip() if before.startswith("<!--") else ""
        found.append(Block(file, open_at + 1, lines[open_at][3:].strip(), "\n".join(lines[open_at + 1 : number]), mark))
        open_at = None
    assert open_at is None, f"{file}:{open_at + 1} opens a block that nothing closes"
    return found


def all_blocks(*languages: str) -> list[Block]:
    """Return the blocks of all pages in these languages."""
    return [block for file in files() for block in blocks(file) if block.language in languages]


def commands(block: Block) -> list[Command]:
    """Return the simple commands of a block: comments taken off, continued lines joined, chains taken apart."""
    found, text, begun = [], "", 0
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        begun = begun if text else number
        text += line
        if text.endswith("\\"):
            text = text[:-1]
            continue
        for part in _parts(text):
            found.append(Command(f"{block.file}:{begun}", part, tuple(shlex.split(part, comments=True))))
        text = ""
    assert not text, f"{block.place} ends within a command"
    return found


def _parts(line: str) -> list[str]:
    """Return what stands between the `&&` of a line, without its comment; neither counts within quotes."""
    pieces = re.findall(r"""\$?'[^']*'|"[^"]*"|&&|(?:(?<=\s)|^)\#.*|[^'"&\#\s]+|[&\#]|\s+""", line)
    assert "".join(pieces) == line, f"this line is read as something else: {line}"
    parts = [""]
    for piece in pieces:
        if piece == "&&":
            parts.append("")
        elif not piece.startswith("#") or len(piece) == 1:
            parts[-1] += piece
    return [part.strip() for part in parts if part.strip()]
