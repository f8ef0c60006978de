"""`jaxlm report`: everything that was gathered, as one HTML file that needs no network and opens from a disk."""

import functools
import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxlm.data.storage import write_atomically
from jaxlm.errors import JaxlmError
from jaxlm.report.gather import gather
from jaxlm.report.material import Material
from jaxlm.report.page import content

TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    paths: Sequence[Path], out: Path, *, title: str = "", max_points: int = 500, metrics: Sequence[str] = ("loss",),
    control: str = "", arms_by: Sequence[str] = (), written: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the report of runs, sweeps, or folders of runs, whole or not at all, and return what went into it.

    Curves are thinned to `max_points`; `metrics` of the last validation are compared. `written` is the time that the file
    bears (None: now); everything else depends on what was read alone. Returns {"bytes", "runs", "unread", "verdicts"}. Raises
    JaxlmError where nothing can be read or written, or the extra is missing.
    """
    if max_points < 10:
        raise JaxlmError(f"--max-points {max_points} draws no curve: give 10 or more, 500 for example")
    jinja2, plotly = _libraries()
    if out.is_dir():
        raise JaxlmError(f"{out} is a folder: name a file in it, --out {out / 'report.html'}")
    material, page = _made(gather(paths, control, arms_by), max_points, metrics)
    page["title"] = title or _title(material)
    page["written"] = written or datetime.now(UTC).isoformat(timespec="seconds")
    text = _render(jinja2, page, plotly())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text.encode())
    except OSError as fault:
        raise JaxlmError(f"cannot write {out}: {fault.strerror}. Name another file with --out") from fault
    return {"bytes": len(text.encode()), "runs": len(material.runs), "unread": material.unread, "verdicts": page["verdicts"]}


def _made(material: Material, max_points: int, metrics: Sequence[str]) -> tuple[Material, dict[str, Any]]:
    """Return the page's content; runs whose files hold what nobody foresaw are left out and listed, and stop no report."""
    try:
        return material, content(material, max_points, metrics)
    except JaxlmError:
        raise
    except Exception:
        fit, unread = [], list(material.unread)
        for run in material.runs:
            try:
                content(replace(material, runs=(replace(run, place=0),)), max_points, ())
                fit.append(replace(run, place=len(fit)))
            except Exception as fault:  # whatever lies there
                unread.append((run.path, "broken", f"cannot be reported: {type(fault).__name__}: {fault}"))
        if not fit or len(fit) == len(material.runs):  # the fault is of no run's own
            raise
        material = replace(material, runs=tuple(fit), unread=tuple(unread))
        return material, content(material, max_points, metrics)


def _libraries() -> tuple[Any, Any]:
    """Return jinja2 and the function that gives plotly's JavaScript; JaxlmError where they are not installed."""
    try:
        return importlib.import_module("jinja2"), importlib.import_module("plotly.offline").get_plotlyjs
    except ImportError as fault:
        raise JaxlmError(f"a report needs {fault.name}: pip install 'jaxlm[report]'") from fault


def _title(material: Material) -> str:
    sweeps = [group.name for group in material.groups if group.name]
    if sweeps:
        return ", ".join(sweeps)
    first = material.runs[0]
    more = len(material.runs) - 1
    return (first.standing.name or first.folder.name) + (f" and {more} more" if more else "")


def _render(jinja2: Any, page: dict[str, Any], plotly: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"count": _count, "merged": lambda left, right: left | right}
    files = {name: _file(name) for name in ("report.css", "report.js")}
    return environment.get_template("report.html").render(
        page, css=_raw(files["report.css"]), js=_raw(files["report.js"]), plotly=_raw(plotly), json=_raw(embedded(page["data"]))
    )


def _raw(text: str) -> Any:
    """Mark text of ours as no text to escape; what users wrote never passes here but through `embedded`."""
    from markupsafe import Markup  # jinja2's own

    return Markup(text)


@functools.cache
def _file(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def embedded(value: Any) -> str:
    """Return JSON that can stand in a script element: nothing in it ends the element or a line, whatever users wrote."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # all but ASCII is escaped: U+2028 too
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _count(value: float | None, form: str = "") -> str:
    """Return a number for people: 12.3M, 4.1e+15; a dash where it is not known."""
    if value is None:
        return "–"
    if form:
        return format(value, form)
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and size > 1e3):
            return f"{value / size:.3g} {unit}"
    return f"{value:,.6g}"
