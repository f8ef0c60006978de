"""A model trained on 256 tokens reads 512, 1,024 and 2,048: what holds, what explodes, and what is found again.

python experiments/self_extend.py                                  # every model and seed, the table below and the picture
jaxlm train experiments/self_extend.py                             # one of the models: RoPE, rows of 256
jaxlm plan experiments/self_extend.py:pod --topology v5p:4x4x4     # Llama 3 8B at 128k tokens, rows split over their length

Claim (arXiv:2401.01325): a model with RoPE fails beyond the length that it was trained at because relative positions are new to
it; Self-Extend, which maps far ones to positions it knows, keeps its loss and its retrieval there without any training.
A loss that stays low is no proof of a long context: given the last 256 tokens alone a model keeps it low, too. So passkeys are
asked for as well, at every depth of the text.

Protocol: base() of long_context.py, with RoPE and with ALiBi, is read at each length in each way. Bits per byte are means over
the second half of the beginnings of 16 held-out modules, each row in one forward pass, intervals (95 %) bootstrapped over rows;
passkeys have five digits, 10 at each of 5 depths and length for each seed, right where all digits are, intervals Wilson's. PI,
NTK and YaRN have the factor length / 256, NTK also twice that, dynamic NTK has 2; Self-Extend G/w has groups of G and w near
tokens. Frequencies of dynamic NTK are those of the whole row. "last 256" gives the model the last 256 tokens and no more
(losses: 192 to 256 of them); "window 256" is a sliding window, which reaches 766 tokens through three layers.

Result (2 seeds, 100 passkeys a cell; % right, in brackets bits per byte):

                                      256          512          1024         2048
    plain                             96 (2.530)    0 (3.310)    0 (4.269)    0 (4.852)
    PI                                -             0 (3.393)    0 (3.982)    0 (4.270)
    NTK                               -            21 (2.718)    0 (3.070)    0 (4.049)
    NTK, twice the factor             -            18 (2.661)    0 (2.727)    0 (3.349)
    dynamic NTK                       -            22 (2.650)    0 (2.770)    0 (3.414)
    YaRN                              -            50 (2.624)    4 (2.631)    5 (2.749)
    Self-Extend 16/128                96 (2.533)   89 (2.635)   59 (2.433)    0 (2.586)
    Self-Extend 16/128, log-length    96 (2.533)   94 (2.624)   88 (2.403)   56 (2.401)
    ALiBi, trained so                100 (2.441)   95 (2.470)   72 (2.301)   36 (2.124)
    window 256                        96 (2.530)   32 (2.595)   16 (2.380)   16 (2.203)
    last 256                          96 (2.530)   38 (2.588)   19 (2.371)   19 (2.192)

Of what needs no training Self-Extend alone finds keys that lie further back than the length trained at, up to four times that
length, and with queries scaled by the logarithm of their place up to eight; the others explode (plain, PI, NTK) or keep much
of the loss and lose the keys (YaRN). On loss it never beats reading the last 256 tokens alone, which find a key only where it
is among them: loss shows no long context. ALiBi, too, keeps its loss by being near-sighted: at 2,048 it finds no key in the
first third. The model learnt this very form of question at 256 tokens: this is what becomes of a retrieval that it has, not
how well models retrieve. 16/128 and the logarithm were picked on the same tasks, among seven settings
(runs/long_context/self_extend.md): at 512 groups of 4 and 8 find 86 to 94 % and 16/64 41 %, at 1,024 the others 27 to 52 %.
The logarithm was not tried with the rivals.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import llama_8b
import long_context
import numpy as np
from compare import command
from long_context import DEPTHS, LENGTH, LENGTHS, Found, Measured, grouped, measured, options, run_seeds, scaled, windowed
from tuned import trained

from jaxlm.experiment import Experiment
from jaxlm.model.extension import Extension

GRID = ((4, 64), (4, 128), (8, 64), (8, 128), (16, 64), (16, 128))
IN_PICTURE = ("plain", "PI", "NTK", "YaRN", "Self-Extend 16/128", "Self-Extend 16/128, log-length", "last 256", "ALiBi")


def experiment() -> Experiment:
    """The model that all but ALiBi's arms read."""
    return long_context.base()


def pod() -> Experiment:
    """Llama 3 8B trained on at 128k tokens with YaRN, what Self-Extend would spare."""
    return llama_8b.long_context("yarn", 16.0)


def readings(length: int) -> dict[str, Extension]:
    """Return the ways in which the model with RoPE is read at a length; at the one trained at, those that change something."""
    factor, found = length / LENGTH, {"plain": Extension(max_length=length)}
    if length > LENGTH:
        found |= {
            "PI": scaled("linear", factor, length), "NTK": scaled("ntk", factor, length),
            "NTK, twice the factor": scaled("ntk", 2 * factor, length),
            "dynamic NTK": scaled("dynamic", 2.0, length), "YaRN": scaled("yarn", factor, length),
        }  # fmt: skip
    grid = GRID if length > LENGTH else ((16, 64), (16, 128))
    found |= {f"Self-Extend {group}/{window}": grouped(group, window, length) for group, window in grid}
    found["Self-Extend 16/128, log-length"] = grouped(16, 128, length, scale_base=LENGTH)
    found["window 256"] = windowed(length)
    return {name: extension for name, extension in found.items() if extension}


def run_seed(seed: int, runs: Path, others: Sequence[str]) -> dict[str, dict[int, Measured]]:
    """Train the models of a seed, and return what was measured of each arm at each length."""
    folder, found = trained(long_context.base(seed), runs), {}
    for length in LENGTHS:
        for name, extension in readings(length).items():
            found.setdefault(name, {})[length] = measured(folder, extension, length)
        found.setdefault("last 256", {})[length] = measured(folder, None, length)
    for positions, name in (("alibi", "ALiBi"), ("none", "no positions")):
        if positions in others:
            folder = trained(long_context.base(seed, positions), runs)
            found[name] = {length: measured(folder, Extension(max_length=length), length) for length in LENGTHS}
    return found


def draw(found: Found, path: Path) -> None:
    """Draw loss by position at the greatest length, passkeys by length, and by depth at the greatest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(16, 4.6), layout="constrained")
    arms, last = [arm for arm in IN_PICTURE if arm in found], max(LENGTHS)
    for color, arm in enumerate(arms):
        bits = np.mean([seed.bits for seed in found[arm][last]], axis=(0, 1))
        axes[0].plot(128 * np.arange(len(bits)) + 64, bits, "o-", color=f"C{color}", ms=3, lw=1.2, label=arm)
        points = [(length, 100 * np.mean([seed.passkey for seed in of])) for length, of in found[arm].items()]
        axes[1].plot(*zip(*points, strict=True), "o-", color=f"C{color}", ms=4, lw=1.2)
    axes[0].axvline(LENGTH, color="black", lw=0.8, ls=":")
    axes[0].set(title=f"loss by position, rows of {last}", xlabel="position", ylabel="bits per byte")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms), fontsize=9)
    axes[1].set(title="passkeys right", xlabel="tokens", ylabel="%", xscale="log", xticks=LENGTHS, xticklabels=LENGTHS)
    axes[1].set(ylim=(-3, 103))
    axes[1].minorticks_off()
    by_depth = 100 * np.array([np.mean([seed.passkey for seed in found[arm][last]], axis=(0, 2)) for arm in arms])
    image = axes[2].imshow(by_depth, vmin=0, vmax=100, aspect="auto", cmap="viridis")
    axes[2].set(title=f"passkeys right at {last} tokens, %", xlabel="depth", xticks=range(len(DEPTHS)), xticklabels=DEPTHS)
    axes[2].set(yticks=range(len(arms)), yticklabels=arms)
    figure.colorbar(image, ax=axes[2])
    for ax in axes[:2]:
        ax.grid(alpha=0.25)
    figure.suptitle(f"trained on rows of {LENGTH}, read beyond")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Run everything, or what is left of it."""
    parser = options(__doc__)
    parser.add_argument("--positions", nargs="*", choices=("alibi", "none"), default=["alibi"], help="models besides RoPE's")
    arguments = parser.parse_args()
    of_seed = functools.partial(run_seed, others=arguments.positions)
    return run_seeds("self_extend", of_seed, arguments.seeds, arguments.runs, draw)


if __name__ == "__main__":
    command(main)
