"""What a finished run leaves for people: curves, samples and a short summary."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxlm import param
from jaxlm.decode.generate import generate_text
from jaxlm.decode.sampling import Sampling
from jaxlm.run.directory import write_atomically
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
        params,
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


def draw_curves(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw bits per byte, gradient norm, learning rate and tokens per second against the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    train = [r for r in rows if r["split"] == "train"]
    held_out = [r for r in rows if r["split"] == "validation" and r.get("bits_per_byte") is not None]
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
    panels = (
        ("bits_per_byte", "bits per byte", False),
        ("gradient_norm", "gradient norm", True),
        ("learning_rate", "learning rate", False),
        ("tokens_per_second", "tokens per second", False),
    )
    for ax, (name, label, logarithmic) in zip(axes.flat, panels, strict=True):
        points = [(r["step"] + 1, r[name]) for r in train if r.get(name) is not None]
        if points:
            steps, values = zip(*points, strict=True)
            ax.plot(steps, values, linewidth=0.6, alpha=0.35, color="tab:blue")
            ax.plot(steps, _smoothed(values), linewidth=1.6, color="tab:blue", label="training")
        if name == "bits_per_byte" and held_out:
            ax.plot(
                [r["step"] for r in held_out], [r[name] for r in held_out], "o-", ms=4, color="tab:orange", label="validation"
            )
            ax.annotate(
                f"{held_out[-1][name]:.3f}",
                (held_out[-1]["step"], held_out[-1][name]),
                (-8, 10),
                textcoords="offset points",
                ha="right",
            )
            ax.legend()
        if logarithmic and points and min(values) > 0:
            ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.set_title(label, fontsize=10)
        ax.grid(alpha=0.25)
    figure.suptitle(title)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
    temporary.rename(path)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return running medians over about a fiftieth of the run: a spike stays visible only in the thin line."""
    half = max(1, len(values) // 100)
    return [statistics.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def write_summary(
    setup: Setup, rows: Sequence[dict[str, Any]], samples: Sequence[tuple[str, str]], folder: Path, out: Any
) -> None:
    """Write summary.md and show the same on the screen."""
    experiment = setup.experiment
    train = [r for r in rows if r["split"] == "train"]
    held_out = [r for r in rows if r["split"] == "validation"]
    facts = {"parameters": f"{param.count(setup.spec):,}", "steps": f"{experiment.steps:,}"}
    if train:
        facts["training tokens"] = f"{sum(r['tokens'] for r in train) * experiment.log.every:,.0f}"
        facts["tokens per second"] = f"{statistics.median(r['tokens_per_second'] for r in train):,.0f} (median)"
        facts["skipped steps"] = f"{train[-1]['skipped_total']:.0f}"
    if held_out:
        last = held_out[-1]
        facts["validation loss"] = f"{last['loss']:.4f} nats a token (perplexity {last['perplexity']:.2f})"
        facts["validation bits per byte"] = (
            f"{last['bits_per_byte']:.4f} (from {held_out[0]['bits_per_byte']:.4f} after step {held_out[0]['step']})"
        )
    lines = [f"# {experiment.name}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    lines += ["", "![curves](curves.png)", "", "## Samples", ""]
    for prompt, text in samples:
        lines += ["```", prompt + text, "```", ""]
    write_atomically(folder / "summary.md", "\n".join(lines))
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
        f"curves: {folder / 'curves.png'}    record: {folder / 'metrics.jsonl'}    summary: {folder / 'summary.md'}",
        soft_wrap=True,
    )
