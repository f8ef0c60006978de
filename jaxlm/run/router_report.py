"""What the routers of a finished run did, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PANELS = (
    ("router_dropped", "fraction of assignments dropped"),
    ("router_load_cv", "coefficient of variation of expert loads"),
    ("router_load_max", "busiest expert's load over the mean"),
    ("router_entropy", "router entropy (nats)"),
    ("router_gate", "mean gate"),
)


def draw_routers(rows: Sequence[dict[str, Any]], layers: Sequence[int], path: Path, title: str) -> None:
    """Draw drops, loads, entropy and gates against the step, a line a mixture layer, and held-out loads by expert.

    `layers` are the numbers of the mixture layers. The last panel is the share of assignments of every expert at the last
    validation, white where it is an even share, red above and blue below.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    train = [r for r in rows if r["split"] == "train" and "router_load_cv" in r]
    held_out = [r for r in rows if r["split"] == "validation" and "router_load" in r]
    figure, axes = plt.subplots(2, 3, figsize=(14, 7), layout="constrained")
    thin = train[:: max(1, len(train) // 400)]
    for ax, (name, label) in zip(axes.flat, PANELS, strict=False):
        for index, layer in enumerate(layers):
            values = [np.nan if r[name] is None or r[name][index] is None else r[name][index] for r in thin]
            ax.plot([r["step"] + 1 for r in thin], values, lw=1, label=f"layer {layer}")
        ax.set_title(label, fontsize=10)
        ax.set_xlabel("step")
        ax.grid(alpha=0.25)
    axes[0, 0].legend(fontsize=7, ncols=2)
    last = axes.flat[-1]
    if held_out:
        load = np.array(held_out[-1]["router_load"])
        even = 1 / load.shape[1]
        picture = last.imshow(load / even, cmap="coolwarm", vmin=0, vmax=2, aspect="auto")
        last.set_yticks(range(len(layers)), [f"layer {layer}" for layer in layers])
        last.set_xlabel("expert")
        figure.colorbar(picture, ax=last, label="share over an even share")
    last.set_title("held-out load of every expert", fontsize=10)
    figure.suptitle(f"{title}: routers")
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
    temporary.rename(path)
