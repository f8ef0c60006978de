"""What runs had spent by each of their steps, and what they cost in all."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from jaxlm.report.curves import label_of
from jaxlm.report.lines import number
from jaxlm.report.material import Material, Run
from jaxlm.run.goodput import KINDS
from jaxlm.run.tail import finite


def knots_of(run: Run, max_points: int) -> dict[str, list[float | None]]:
    """Return what a run had spent by some of its steps: tokens, FLOPs, hours in steps; between them a page interpolates.

    A row stands for its own step and those up to the next row, the first also for what came before it, and the last up to
    where the run stands.
    """
    rows = run.by_split["train"]
    steps = [row["step"] for row in rows]
    ends = [*steps[1:], max(run.standing.step, steps[-1] + 1)] if rows else []
    tokens, hours, at = [0.0], [0.0], [0]
    for row, end in zip(rows, ends, strict=True):
        many = max(0, end - at[-1])
        tokens.append(tokens[-1] + many * _known(row, ("real_tokens", "tokens")))
        hours.append(hours[-1] + many * _known(row, ("step_seconds",)) / 3600)
        at.append(max(end, at[-1]))
    every = math.ceil(len(at) / max(2, max_points // 2)) or 1
    kept = sorted({*range(0, len(at), every), len(at) - 1})
    per_step = run.flops_per_step
    return {
        "step": [at[i] for i in kept],
        "tokens": [number(tokens[i]) for i in kept],
        "hours": [number(hours[i]) for i in kept],
        "flops": [number(per_step * at[i]) for i in kept] if per_step else [],
    }


def _known(row: Mapping[str, Any], names: Iterable[str]) -> float:
    return next((value for name in names if math.isfinite(value := finite(row.get(name)))), 0.0)


def costs(material: Material) -> dict[str, Any]:
    """Return what each run cost, and seconds by kind: {"rows": [...], "total": {...}, "kinds": [...], "seconds": [[...]]}.

    Tokens are those of the curves: real ones, without padding; FLOPs are of all places in the rows.
    """
    rows, seconds = [], []
    for run in material.runs:
        spent = {kind: run.seconds.get(kind, 0.0) for kind in KINDS}
        train, knots = run.by_split["train"], knots_of(run, 2)
        total = sum(spent.values())
        rows.append(
            {
                "run": label_of(run), "hours": total / 3600, "goodput": spent["stepping"] / total if total else None,
                "redone": spent["redone"], "starts": len(run.starts), "tokens": knots["tokens"][-1],
                "speed": _median(train, "tokens_per_second"), "mfu": _median(train, "mfu"),
                "flops": knots["flops"][-1] if knots["flops"] else None, "steps": knots["step"][-1],
            }
        )  # fmt: skip
        seconds.append([round(spent[kind], 1) for kind in KINDS])
    total = {
        name: sum(row[name] for row in rows if row[name] is not None)
        for name in ("hours", "redone", "starts", "tokens", "flops", "steps")
    }
    used = [place for place, _ in enumerate(KINDS) if any(line[place] for line in seconds)]
    return {
        "rows": rows, "total": total, "kinds": [KINDS[i] for i in used],
        "seconds": [[line[i] for i in used] for line in seconds],
    }  # fmt: skip


def _median(rows: Iterable[dict[str, Any]], name: str) -> float | None:
    known = [value for row in rows if math.isfinite(value := finite(row.get(name)))]
    return statistics.median(known) if known else None
