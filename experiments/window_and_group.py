"""Neighbour window and group size of Self-Extend against length: which loss and which retrieval they give.

python experiments/window_and_group.py                                  # every seed, the table below and the picture
jaxlm train experiments/window_and_group.py                             # the model: base() of long_context.py
jaxlm plan experiments/window_and_group.py:pod --topology v5p:4x4x4     # Llama 3 8B at 128k tokens

Claim (arXiv:2401.01325, its ablation): neither a small nor a large window is best, nor the smallest group that reaches the
length: a wide window keeps what is near exact, but leaves fewer known positions to the rest, so that it needs larger groups,
whose order is lost.

Protocol: that of self_extend.py, with every window and group of the table that reaches a length.

Result (one seed, 50 passkeys a cell: intervals are some 14 points wide to either side; % right, bits per byte in brackets):

    window            32            64           128           192    only the last 256
    512, groups 4     78 (2.638)    94 (2.631)    76 (2.615)          36 (2.583)
    512, groups 8     24            90            90            72
    512, groups 16     0            60            84            76
    512, groups 32     4            16            88            86
    1024, groups 8    30 (2.476)    58 (2.444)    48 (2.426)          18 (2.358)
    1024, groups 16    0            42            54            34
    1024, groups 32    0            26            66            34
    2048, groups 16   10 (2.785)    28 (2.657)     0 (2.613)          18 (2.191)
    2048, groups 32    2            16            14             0

Neither the smallest nor the largest window is best, as claimed; the smallest group that reaches is best with small windows and
no better with 128. Loss differs by less than its interval and tells nothing of this: it would choose the last 256 tokens alone.
At 2,048, eight times the length trained at, no setting holds without the logarithm of self_extend.py.
"""

from pathlib import Path

import llama_8b
import long_context
import numpy as np
from compare import command
from long_context import Found, Measured, grouped, measured, options, run_seeds
from tuned import trained

from jaxlm.experiment import Experiment

GROUPS, WINDOWS = (4, 8, 16, 32), (32, 64, 128, 192)
LENGTHS = (512, 1024, 2048)


def experiment() -> Experiment:
    """The model that is read."""
    return long_context.base()


def pod() -> Experiment:
    """Llama 3 8B trained on at 128k tokens with interpolated positions: one group size for near and far, as a comparison."""
    return llama_8b.long_context("linear", 16.0)


def run_seed(seed: int, runs: Path) -> dict[str, dict[int, Measured]]:
    """Return what was measured of every group and window that reaches a length, and of the control."""
    folder, found = trained(long_context.base(seed), runs), {}
    for length in LENGTHS:
        arms = {f"{group}/{window}": grouped(group, window, length) for group in GROUPS for window in WINDOWS}
        for name, extension in arms.items():
            if extension:
                found.setdefault(name, {})[length] = measured(folder, extension, length)
        found.setdefault("last 256", {})[length] = measured(folder, None, length)
    return found


def draw(found: Found, path: Path) -> None:
    """Draw loss and passkeys against the window, a panel a length, a line a group size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(LENGTHS), figsize=(15, 6.4), layout="constrained", sharey="row", sharex=True)
    for column, length in enumerate(LENGTHS):
        for row, (quantity, label) in enumerate((("late", "bits per byte"), ("passkey", "passkeys right"))):
            ax = axes[row, column]

            def mean(arm: str, length=length, quantity=quantity) -> float:
                return float(np.mean([getattr(seed, quantity) for seed in found[arm][length]]))

            for color, group in enumerate(GROUPS):
                arms = {window: f"{group}/{window}" for window in WINDOWS if length in found.get(f"{group}/{window}", {})}
                if arms:
                    values = [mean(arm) for arm in arms.values()]
                    ax.plot(list(arms), values, "o-", color=f"C{color}", ms=4, label=f"groups of {group}")
            ax.axhline(mean("last 256"), color="black", lw=0.8, ls=":", label="last 256 tokens")
            ax.set(title=f"{length} tokens" if row == 0 else None, ylabel=label if column == 0 else None, xticks=WINDOWS)
            ax.set(xlabel="window" if row else None)
            ax.grid(alpha=0.25)
    axes[0, 1].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Run everything, or what is left of it."""
    arguments = options(__doc__).parse_args()
    return run_seeds("window_and_group", run_seed, arguments.seeds, arguments.runs, draw)


if __name__ == "__main__":
    command(main)
