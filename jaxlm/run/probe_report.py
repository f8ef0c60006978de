"""What probes of a long context found, as tables, pictures and JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxlm.data.storage import write_atomically
from jaxlm.errors import ConfigError, JaxlmError
from jaxlm.eval.probe_config import RETRIEVAL
from jaxlm.run.metrics import without_nan


def made_folder(folder: Path) -> None:
    """Make the folder for results where it is missing; ConfigError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".probe", "")
        (folder / ".probe").unlink()
    except OSError as fault:
        raise ConfigError(f"the folder {folder} cannot be written: {fault.strerror}. Name another with --out PATH") from fault


def as_json(found: dict[str, Any], indent: int | None = None, *, ensure_ascii: bool = True) -> str:
    """Return what was found as JSON, which has no number that is none or infinite: null in their places."""
    return json.dumps(without_nan(found), indent=indent, allow_nan=False, ensure_ascii=ensure_ascii)


def write(found: dict[str, Any], folder: Path) -> None:
    """Write probes.json, in the place of what an earlier measurement left; pictures of what is not in it now are removed."""
    if (folder / "probes.json").exists():
        for name in ("positions", *RETRIEVAL):
            if name not in found:
                (folder / f"{name}.png").unlink(missing_ok=True)
    write_atomically(folder / "probes.json", as_json(found, indent=1) + "\n")


def check_short(found: dict[str, Any]) -> None:
    """Raise JaxlmError where losses changed in rows that the extension must leave as they are."""
    changed = [row["length"] for row in found.get("short", {}).get("lengths", ()) if _wrong(row)]
    if changed:
        raise JaxlmError(
            f"{found['extension']} changes losses in rows of {', '.join(map(str, changed))} tokens, and must leave all up to "
            f"{found['short']['exact_to']} as they are: the model, or what computes it on this device, is at fault; trust "
            "none of these results"
        )


def _wrong(row: dict[str, Any]) -> bool:
    return row["fits"] and row["greatest"] != 0


def show(found: dict[str, Any], folder: Path, out: Console) -> None:
    """Print a table for each probe."""
    if "positions" in found:
        _print(out, f"positions: {found['extension']}", _position_rows(found["positions"]))
    if "short" in found:
        rows = [
            {"length": f"{row['length']:,}", "greatest change, nats": f"{row['greatest']:g}", "mean change": f"{row['mean']:g}",
             "must be 0": "[bold red]yes, and is not[/]" if _wrong(row) else "yes" if row["fits"] else "no"}
            for row in found["short"]["lengths"]
        ]  # fmt: skip
        _print(out, f"short: {found['extension']} less plain", rows)
    for kind in RETRIEVAL:
        if kind in found:
            what = "tokens right, %" if kind == "copy" else "answers right, %"
            _print(out, f"{kind}: {what}, by depth and length ({found['extension']})", _retrieval_rows(kind, found[kind]))
    out.print(f"results: {folder / 'probes.json'}    pictures: {folder}/*.png", soft_wrap=True)


def draw(found: dict[str, Any], folder: Path) -> None:
    """Draw a heat-map for each retrieval probe, perplexity by position, and time and memory against length."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    title = f"{Path(found['run']).name}, {found['extension']}"
    if "positions" in found:
        figure, (ax, time_ax, memory_ax) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
        _draw_positions(ax, found["positions"], found["trained_length"])
        _draw_costs(time_ax, memory_ax, found["positions"])
        _save(plt, figure, title, folder / "positions.png")
    for kind in (kind for kind in RETRIEVAL if kind in found):
        figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        _draw_cells(figure, ax, kind, found[kind])
        _save(plt, figure, f"{title}: {kind}", folder / f"{kind}.png")


def _position_rows(found: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "length": f"{row['length']:,}", "perplexity": f"{row['perplexity']:,.2f}",
            "last 1/16": f"{row['bins'][-1]['perplexity']:,.2f}", "bits/byte": f"{row['bits_per_byte']:.3f}",
            "s/row": f"{row['seconds']:.3g}", "peak MB": f"{row['memory']['peak'] / 1e6:,.0f}",
        }
        | ({"strided": f"{row['strided']['perplexity']:,.2f}"} if "strided" in row else {})
        for row in found
    ]  # fmt: skip


def _retrieval_rows(kind: str, cells: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    lengths, depths = _axes(cells)
    shown = {(cell["length"], cell["depth"]): f"{100 * cell[_score(kind)]:.0f}" for cell in cells}
    return [
        {"depth": f"{depth:g}"} | {f"{length:,}": shown.get((length, depth), "-") for length in lengths} for depth in depths
    ]


def _print(out: Console, title: str, rows: Sequence[dict[str, str]]) -> None:
    out.print(title, style="bold", soft_wrap=True)
    table = Table(box=None)
    for name in rows[0] if rows else ():
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row.values())
    out.print(table)


def _score(kind: str) -> str:
    return "token_accuracy" if kind == "copy" else "accuracy"


def _axes(cells: Sequence[dict[str, Any]]) -> tuple[list[int], list[float]]:
    return sorted({cell["length"] for cell in cells}), sorted({cell["depth"] for cell in cells})


def _draw_positions(ax: Any, found: Sequence[dict[str, Any]], trained: int) -> None:
    for row in found:
        places = [(each["from"] + each["to"]) / 2 for each in row["bins"]]
        ax.plot(places, [each["perplexity"] for each in row["bins"]], "o-", ms=3, lw=1.2, label=f"rows of {row['length']:,}")
    if trained <= max(row["length"] for row in found):
        ax.axvline(trained, color="gray", lw=1, ls="--", label=f"trained at {trained:,}")
    ax.set_yscale("log")
    ax.set_xlabel("position")
    ax.set_title("perplexity by position", fontsize=10)
    ax.legend(fontsize=8)
    ax.grid(alpha=0.25, which="both")


def _draw_costs(time_ax: Any, memory_ax: Any, found: Sequence[dict[str, Any]]) -> None:
    lengths = [row["length"] for row in found]
    time_ax.plot(lengths, [row["seconds"] for row in found], "o-", color="C0")
    time_ax.set_title("seconds a row", fontsize=10)
    for name, color in (("peak", "C3"), ("temporary", "C1")):
        memory_ax.plot(lengths, [row["memory"][name] / 1e6 for row in found], "o-", color=color, label=name)
    memory_ax.set_title("memory of a batch, MB", fontsize=10)
    memory_ax.legend(fontsize=8)
    for ax in (time_ax, memory_ax):
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
        ax.set_xlabel("length, tokens")
        ax.grid(alpha=0.25, which="both")


def _draw_cells(figure: Any, ax: Any, kind: str, cells: Sequence[dict[str, Any]]) -> None:
    import numpy as np

    lengths, depths = _axes(cells)
    values = np.full((len(depths), len(lengths)), np.nan)
    for cell in cells:
        values[depths.index(cell["depth"]), lengths.index(cell["length"])] = cell[_score(kind)]
    picture = ax.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        ax.text(column, row, "" if np.isnan(value) else f"{100 * value:.0f}", ha="center", va="center", fontsize=9)
    ax.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    ax.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    ax.set_xlabel("length, tokens")
    ax.set_ylabel("depth of the answer")
    figure.colorbar(picture, ax=ax, label="tokens right" if kind == "copy" else "answers right")


def _save(plt: Any, figure: Any, title: str, path: Path) -> None:
    figure.suptitle(title, fontsize=11)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
    temporary.rename(path)
