"""Draw the rooms of the house and what imports what, from the sources as they are: docs/rooms.svg.

    python docs/draw_rooms.py

An arrow goes from a room to one that it imports; left out are those that follow from others. `tests/test_architecture.py` fails
where the drawing is not of today's sources.
"""

import ast
import io
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DRAWING = ROOT / "docs" / "rooms.svg"
# What a room is for, in the fewest words.
ABOUT = {
    "errors": "faults a user can mend", "locks": "whose a folder is", "trust": "code that may run",
    "imported": "what a file imports", "function_file": "functions of a user's file",
    "module_file": "a file run as a module",
    "config": "checked dataclasses", "layout": "mesh, logical axes",
    "hardware": "what chips can do", "param": "a weight before it exists", "ops": "numerics on arrays",
    "data": "text to batches", "model": "spec and forward",
    "interop": "others' checkpoints", "objective": "batch to loss", "decode": "prompt to text", "train": "one step, its state",
    "eval": "what a model is worth", "experiment": "all that decides a result", "experiment_file": "reads one from Python",
    "experiment_mesh": "over which devices",
    "run": "a run, start to end", "analysis": "into checkpoints", "plan": "for chips not here", "launch": "somewhere else",
    "sweep": "many runs, one answer", "report": "one page", "commands": "what commands take", "cli": "jaxlm",
}  # fmt: skip


def rooms() -> dict[str, list[Path]]:
    """Return the files of every room: a folder of jaxlm, or a file beside them."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "jaxlm").rglob("*.py")):
        room = path.relative_to(ROOT / "jaxlm").parts[0].removesuffix(".py")
        if not room.startswith("__"):
            found.setdefault(room, []).append(path)
    return found


def imported(path: Path) -> Iterator[str]:
    """Yield the room of every import of jaxlm in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("jaxlm."))


def arrows(found: dict[str, list[Path]]) -> list[tuple[str, str]]:
    """Return (importing, imported) rooms, without those that follow from the others."""
    direct = {room: {to for path in files for to in imported(path)} & set(found) - {room} for room, files in found.items()}
    reach: dict[str, set[str]] = {}

    def reached(room: str) -> set[str]:
        if room not in reach:
            reach[room] = set().union(*({to} | reached(to) for to in direct[room]))
        return reach[room]

    return sorted((room, to) for room in direct for to in direct[room] if not any(to in reached(by) for by in direct[room]))


def describe() -> str:
    """Return what the drawing shows, as text that is kept in it."""
    found = rooms()
    return "rooms: " + " ".join(sorted(found)) + "; arrows: " + " ".join(f"{a}>{b}" for a, b in arrows(found))


def _places(edges: list[tuple[str, str]], names: list[str]) -> dict[str, tuple[float, float]]:
    """Return (x, y) of each room: as high as its longest way down, in each row near to what it imports."""
    down = {name: [to for room, to in edges if room == name] for name in names}
    height: dict[str, int] = {}

    def high(room: str) -> int:
        height.setdefault(room, 1 + max((high(to) for to in down[room]), default=-1))
        return height[room]

    x: dict[str, float] = {}
    for level in range(max(map(high, names)) + 1):
        row = [name for name in names if height[name] == level]
        row.sort(key=lambda name: (sum(x[to] for to in down[name]) / max(len(down[name]), 1), name))
        x |= {name: index - (len(row) - 1) / 2 for index, name in enumerate(row)}
    return {name: (2.0 * x[name], 1.0 * height[name]) for name in names}


def draw() -> bytes:
    """Return the drawing, the same bytes for the same sources."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "rooms", "svg.fonttype": "none", "font.family": "sans-serif"}
    from matplotlib import pyplot

    found = rooms()
    edges = arrows(found)
    places = _places(edges, list(found))
    xs, ys = zip(*places.values(), strict=True)
    figure, axes = pyplot.subplots(figsize=(1.02 * (max(xs) - min(xs) + 2.2), 0.7 * (max(ys) + 1)), dpi=72)  # as SVG is drawn
    figure.subplots_adjust(0, 0, 1, 1)
    boxes = {}
    for room, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.4", "facecolor": "#eef3fa", "edgecolor": "#3b5b92", "linewidth": 0.9}
        boxes[room] = axes.text(
            x, y, f"{room}\n{ABOUT[room]}", ha="center", va="center", fontsize=8.5, bbox=box, linespacing=1.35, zorder=2
        ).get_bbox_patch()
    axes.set_xlim(min(xs) - 1.1, max(xs) + 1.1)
    axes.set_ylim(-0.5, max(ys) + 0.5)
    axes.axis("off")
    figure.canvas.draw()  # from here on the boxes know where they are, and arrows end at them
    for room, to in edges:
        ends = {"patchA": boxes[room], "patchB": boxes[to], "shrinkA": 0, "shrinkB": 0}
        style = {"arrowstyle": "-|>", "color": "#6b7a90", "linewidth": 0.9}
        axes.annotate("", places[to], places[room], arrowprops=style | ends, zorder=1)  # behind the boxes on its way
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Description": describe()})
    pyplot.close(figure)
    return file.getvalue()


if __name__ == "__main__":
    DRAWING.write_bytes(draw())
    print(f"{DRAWING.relative_to(ROOT)} written")
