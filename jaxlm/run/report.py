"""What a finished run leaves for people: curves, samples and a short summary."""

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxlm import param
from jaxlm.data.storage import write_atomically
from jaxlm.decode.generate import generate_text
from jaxlm.decode.sampling import Sampling
from jaxlm.run.directory import SUMMARY
from jaxlm.run.display import number_of
from jaxlm.run.router_report import draw_routers
from jaxlm.run.setup import Setup


def write_samples(setup: Setup, params: Any) -> list[tuple[str, str]]:
    """Return (prompt, continuation) pairs, as the experiment's `sample` asks."""
    sample = setup.experiment.sample
    if not sample.tokens:
        return []
    sampling = Sampling(temperature=sample.temperature, top_p=sample.top_p)
    prompts = sample.prompts or ("",)
    layout = dataclasses.replace(setup.experiment.layout, batch=None)  # a handful of prompts need not divide over the mesh
    texts = generate_text(
        setup.plain(params),
        setup.model,
        layout,
        setup.prepared.tokenizer,
        prompts,
        sample.tokens,
        sampling,
        setup.experiment.seed,
    )
    return list(zip(prompts, texts, strict=True))


def write_all(setup: Setup, rows: Sequence[dict[str, Any]], samples: Sequence[tuple[str, str]], folder: Path, out: Any) -> None:
    """Leave pictures and a summary in a finished run's folder."""
    name, layers = setup.experiment.name, setup.model.moe_layers
    draw_curves(rows, folder / "curves.png", name)
    if layers:
        draw_routers(rows, layers, folder / "routers.png", name)
    write_summary(setup, rows, samples, folder, out)


# (metrics, title, logarithmic)
Panels = tuple[tuple[tuple[str, ...], str, bool], ...]
LANGUAGE: Panels = (
    (("bits_per_byte",), "bits per byte", False),
    (("gradient_norm",), "gradient norm", True),
    (("learning_rate",), "learning rate", False),
    (("tokens_per_second",), "tokens per second", False),
)
PREFERENCE: Panels = (
    (("loss",), "loss", False),
    (("rewards/accuracies",), "accuracy", False),
    (("rewards/margins", "rewards/chosen", "rewards/rejected"), "rewards", False),
    (("logps/chosen", "logps/rejected"), "log-probability of a response, nats", False),
    (("gradient_norm",), "gradient norm", True),
    (("entropy",), "entropy of a response token, nats", False),
)


def draw_curves(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw a run's metrics against the step; of preferences loss, accuracy, rewards, log-probabilities, gradient, entropy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = PREFERENCE if any("rewards/margins" in r for r in rows) else LANGUAGE
    figure, axes = plt.subplots(len(panels) // 2, 2, figsize=(10, 3.25 * (len(panels) // 2)), layout="constrained")
    for ax, (names, label, logarithmic) in zip(axes.flat, panels, strict=True):
        for number, name in enumerate(names):
            _draw_metric(ax, rows, name, f"C{0 if not number else number + 1}", alone=len(names) == 1)
        if len(ax.get_legend_handles_labels()[1]) > 1:
            ax.legend(fontsize=8)
        if logarithmic and min((y for line in ax.get_lines() for y in line.get_ydata()), default=0) > 0:
            ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.set_title(label, fontsize=10)
        ax.grid(alpha=0.25)
    figure.suptitle(title)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
    temporary.rename(path)


def _draw_metric(ax: Any, rows: Sequence[dict[str, Any]], name: str, color: str, *, alone: bool) -> None:
    """Draw a metric of training as a line, of validation as dots: in a color of their own where it is `alone` in its panel."""
    points = [(r["step"] + 1, r[name]) for r in rows if r["split"] == "train" and r.get(name) is not None]
    held_out = [(r["step"], r[name]) for r in rows if r["split"] == "validation" and r.get(name) is not None]
    if points:
        steps, values = zip(*points, strict=True)
        ax.plot(steps, values, linewidth=0.6, alpha=0.35, color=color)
        ax.plot(steps, _smoothed(values), linewidth=1.6, color=color, label="training" if alone else name.partition("/")[2])
    if held_out:
        label = "validation" if alone else f"{name.partition('/')[2]}, validation"
        ax.plot(*zip(*held_out, strict=True), "o-" if alone else "o--", ms=4, color="C1" if alone else color, label=label)
    if held_out and alone:
        ax.margins(y=0.12)
        ax.annotate(f"{held_out[-1][1]:.3f}", held_out[-1], (-8, 6), textcoords="offset points", ha="right")


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return running medians over about a fiftieth of the run: a spike stays visible only in the thin line."""
    half = max(1, len(values) // 100)
    return [statistics.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def _held_out_facts(first: dict[str, Any], last: dict[str, Any]) -> dict[str, str]:
    """Return what a summary says of the last validation, beside the first."""
    since = f"after step {first['step']}"
    now, before = functools.partial(number_of, last), functools.partial(number_of, first)
    four, three, two = "{:.4f}", "{:.3f}", "{:.2f}"
    if "rewards/margins" in last:
        return {
            "validation loss": f"{now('loss', four)} a pair (from {before('loss', four)} {since})",
            "validation accuracy": f"{now('rewards/accuracies', three)} (from {before('rewards/accuracies', three)})",
            "validation margin": f"{now('rewards/margins', four)} (chosen {now('rewards/chosen', four)}, rejected "
            f"{now('rewards/rejected', four)})",
            "log-probability of a response": f"chosen {now('logps/chosen', two)} (from {before('logps/chosen', two)}), "
            f"rejected {now('logps/rejected', two)} (from {before('logps/rejected', two)})",
        }
    return {
        "validation loss": f"{now('loss', four)} nats a token (perplexity {now('perplexity', two)})",
        "validation bits per byte": f"{now('bits_per_byte', four)} (from {before('bits_per_byte', four)} {since})",
    }


def write_summary(
    setup: Setup, rows: Sequence[dict[str, Any]], samples: Sequence[tuple[str, str]], folder: Path, out: Any
) -> None:
    """Write summary.md and show the same on the screen."""
    experiment = setup.experiment
    train = [r for r in rows if r["split"] == "train"]
    held_out = [r for r in rows if r["split"] == "validation"]
    facts = {"parameters": f"{param.count(setup.spec):,}", "steps": f"{experiment.steps:,}"}
    if train:
        facts["training tokens"] = f"{sum(r.get('real_tokens', r['tokens']) for r in train) * experiment.log.every:,.0f}"
        facts["tokens per second"] = f"{statistics.median(r['tokens_per_second'] for r in train):,.0f} (median)"
        facts["skipped steps"] = f"{train[-1]['skipped_total']:.0f}"
    if held_out:
        facts |= _held_out_facts(held_out[0], held_out[-1])
    lines = [f"# {experiment.name}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    lines += ["", "![curves](curves.png)", "", *(["## Samples", ""] if samples else [])]
    for prompt, text in samples:
        lines += ["```", prompt + text, "```", ""]
    write_atomically(folder / SUMMARY, "\n".join(lines))
    table = Table(box=None, show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    out.print(table)
    for prompt, text in samples:
        out.rule("sample", style="dim")
        out.print(prompt, style="bold", end="", markup=False, soft_wrap=True)
        out.print(text, markup=False, soft_wrap=True)
    out.rule(style="dim")
    out.print(
        f"curves: {folder / 'curves.png'}    record: {folder / 'metrics.jsonl'}    summary: {folder / SUMMARY}",
        soft_wrap=True,
    )
