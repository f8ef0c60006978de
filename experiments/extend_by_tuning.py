"""Interpolated positions and YaRN with a short training on longer rows, against methods that train nothing.

python experiments/extend_by_tuning.py                                  # every arm and seed, the table below
jaxlm train experiments/extend_by_tuning.py:base                        # the short-context model, in runs/long-context-base
jaxlm train experiments/extend_by_tuning.py                             # from there: YaRN, factor 4, rows of 1,024
jaxlm plan experiments/extend_by_tuning.py:pod --topology v5p:4x4x4     # Llama 3 8B to 128k tokens

Claim (arXiv:2306.15595, arXiv:2309.00071): a short training at the new length makes up for what scaled positions cost, and
YaRN needs less of it than PI. Against it (arXiv:2401.01325): Self-Extend comes near without any.

Protocol: base() of long_context.py goes on for 100 steps of 4,096 tokens, in rows of 1,024 with scaled positions or with
those it has, or in rows of 256; methods without training read that last one, so that all arms have learnt from as many tokens:
three tenths the library's text that the base began with, the others tasks that it did not see. Rows of 1,024 hold passkeys of
their own length. All is measured as self_extend.py has it, at 1,024 tokens and at 2,048, twice what was tuned for: tuned arms
keep the scaling that they were tuned with, the others have one that fits.

Result (0.67M parameters, one seed; bits per byte of a row's second half, and 50 passkeys; intervals are some 13 points to
either side):

    arm                  1,024           2,048
    YaRN x8, tuned       2.389  82 %     2.366  68 %
    YaRN x4, tuned       2.363  74 %     3.215   0 %
    PI x4, tuned         2.762   4 %     3.461   0 %
    PI x8, tuned         3.123   0 %     3.062   0 %
    unscaled, tuned      2.459   0 %     3.046   0 %
    Self-Extend          2.380  58 %     2.535  14 %
    YaRN                 2.606  10 %     2.693  26 %
    PI, NTK, plain       2.89 or more    0 %
    the last 256         2.316  18 %     2.141  20 %

100 steps suffice for YaRN and not for PI, which has its loss back in part and its retrieval not. With a factor to spare it
finds keys at twice the length that it was tuned at; with the factor of that length alone it does not. At 1,024 Self-Extend
without training lies below it by less than its interval in loss, and by 16 to 24 points in keys.
"""

import dataclasses
from pathlib import Path

import llama_8b
import long_context
from compare import command
from long_context import LENGTH, SHORT, Measured, grouped, measured, options, run_seeds, scaled, source, windowed
from tuned import trained

from jaxlm.experiment import Experiment
from jaxlm.model.extension import Extension
from jaxlm.model.rope_config import RopeScaling
from jaxlm.train.optimizer import OptimizerConfig

LONGER, LENGTHS = 1024, (1024, 2048)
TOKENS, STEPS = 4096, 100
ARMS = {"PI": "linear", "YaRN": "yarn"}
FACTORS = (4.0, 8.0)


def base() -> Experiment:
    """The model of rows of 256."""
    return long_context.base()


def experiment() -> Experiment:
    """YaRN, factor 4, tuned on rows of 1,024."""
    return tuned("runs/long-context-base", 0, "yarn", 4.0)


def tuned(init_from: str, seed: int, kind: str = "none", factor: float = 1.0, length: int = LONGER) -> Experiment:
    """Return an arm that goes on from the base at rows of `length`."""
    begun = long_context.base(seed)
    scaling = RopeScaling() if kind == "none" else RopeScaling(kind=kind, factor=factor, original_length=LENGTH)
    sources = ("stdlib", source(20_000, SHORT, 1), source(409_600 // length, length - 2, 1))
    return dataclasses.replace(
        begun,
        name="extend-by-tuning",
        steps=STEPS,
        batch_size=TOKENS // length,
        init_from=init_from,
        model=dataclasses.replace(begun.model, max_length=length, rope_scaling=scaling),
        data=dataclasses.replace(begun.data, sources=sources, sequence_length=length),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=10),
    )


def pod() -> Experiment:
    """YaRN, factor 16: Llama 3 8B trained on at 128k tokens."""
    return llama_8b.long_context("yarn", 16.0)


def run_seed(seed: int, runs: Path) -> dict[str, dict[int, Measured]]:
    """Train the base and every arm of a seed, and return what was measured of each at each length."""
    begun = str(trained(long_context.base(seed), runs))
    found: dict[str, dict[int, Measured]] = {}
    arms = {f"{name} x{factor:g}, tuned": (kind, factor) for name, kind in ARMS.items() for factor in FACTORS}
    for name, (kind, factor) in {**arms, "as trained, tuned": ("none", 1.0)}.items():
        folder = trained(tuned(begun, seed, kind, factor), runs)
        found[name] = {length: measured(folder, Extension(max_length=length), length) for length in LENGTHS}
    same = trained(tuned(begun, seed, length=LENGTH), runs)
    for length in LENGTHS:
        for name, extension in untuned(length).items():
            found.setdefault(name, {})[length] = measured(same, extension, length)
        found.setdefault("last 256", {})[length] = measured(same, None, length)
    return found


def untuned(length: int) -> dict[str, Extension]:
    """Return the ways in which the model that went on at 256 tokens is read; of Self-Extend the smallest group that reaches."""
    factor, window = length / LENGTH, LENGTH // 2
    group = next(extension for size in (4, 8, 16, 32) if (extension := grouped(size, window, length)))
    return {
        "plain": Extension(max_length=length),
        "PI": scaled("linear", factor, length),
        "YaRN": scaled("yarn", factor, length),
        "NTK": scaled("ntk", factor, length),
        "Self-Extend": group,
        "window 256": windowed(length),
    }


def main() -> int:
    """Run everything, or what is left of it."""
    arguments = options(__doc__).parse_args()
    return run_seeds("extend_by_tuning", run_seed, arguments.seeds, arguments.runs)


if __name__ == "__main__":
    command(main)
