"""Pairs of right and wrong solutions, on disk, and how a policy that learnt from such pairs does on held-out ones."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from compare import interval
from tuned import answer, bootstrap, pair_log_probs, write_rows
from word_problems import FAULTS, Problem, draw_problems, draw_wrong, final_answer, write_solution

from jaxlm.data.chat import encode_chat
from jaxlm.data.prepare import DataConfig
from jaxlm.decode.generate import encode_prompt
from jaxlm.run.open import opened

SPLITS = ("held-out numbers", "held-out templates")
COLUMNS = (
    "accuracy", "margin", "plain accuracy before", "plain accuracy after", "chosen", "rejected", "both fell",
    "right likeliest before", "right likeliest after", "right drawn before", "right drawn after",
)  # fmt: skip
SYSTEM = "Solve the problem step by step. End with a line 'Answer: N'."


class Pairs(NamedTuple):
    """Preference rows of problems: where they lie, and what they are made of, in the same order."""

    path: Path
    problems: list[Problem]
    faults: list[str]


def make_pairs(count: int, seed: int, split: str = "train", *, chat: bool) -> Pairs:
    """Write right against wrong solutions of `count` problems: of strings, or of a conversation's messages."""
    rng, problems, rows, faults = np.random.default_rng(seed), draw_problems(count, seed, split), [], []
    for problem in problems:
        wrong = draw_wrong(problem, rng)
        texts = {"chosen": write_solution(problem), "rejected": wrong.text}
        rows.append(_conversation(problem.question, texts) if chat else {"prompt": f"{problem.question}\n", **texts})
        faults.append(wrong.fault)
    return Pairs(write_rows(f"word-problems-{'chat-' * chat}{split.replace(' ', '-')}", rows), problems, faults)


def _conversation(question: str, texts: dict[str, str]) -> dict[str, Any]:
    prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"prompt": prompt, **{name: [{"role": "assistant", "content": text}] for name, text in texts.items()}}


_LONGEST = 420  # characters of a question and a solution, of what others wrote


def gsm8k_pairs(path: Path, count: int) -> tuple[Path, Path]:
    """Write pairs of real models' solutions, right against wrong, one a question, as (training rows, held-out rows).

    A line of the file is {"question": ..., MODEL: {"is_correct": ..., "solution": ...}, ...}. Only short ones are taken
    (question and solution up to 420 characters); the calculator's notes, <<1+1=2>>, are left out.
    """
    rows = []
    for line in path.read_text().splitlines():
        values = json.loads(line)
        found = [v for v in values.values() if isinstance(v, dict) and "is_correct" in v]
        found = [(v["is_correct"], re.sub(r"<<[^<>]*>>", "", v["solution"]).strip()) for v in found]
        found = [(right, text) for right, text in found if text and len(values["question"]) + len(text) <= _LONGEST]
        right, wrong = ([text for is_right, text in found if is_right == wanted] for wanted in (True, False))
        if right and wrong:
            rows.append(_conversation(values["question"], {"chosen": right[0], "rejected": wrong[0]}))
    rows = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))[: 2 * count]]
    return write_rows("gsm8k-train", rows[: len(rows) // 2]), write_rows("gsm8k-held-out", rows[len(rows) // 2 :])


def log_probs(folder: Path, data: DataConfig, batch_size: int) -> list[list[float]]:
    """Return the log-probabilities of the held-out pairs' responses, [pairs, 2]."""
    with opened(folder) as run:
        return pair_log_probs(run, data, batch_size).tolist()


def solve(folder: Path, problems: Sequence[Problem], *, chat: bool, batch_size: int) -> dict[str, list[bool]]:
    """Return which problems a run answers rightly, with the likeliest tokens and with a draw from its distribution."""
    with opened(folder) as run:
        tokenizer = run.needs_tokenizer()
        prompts = [
            encode_chat(tokenizer, _conversation(p.question, {})["prompt"]) if chat
            else encode_prompt(tokenizer, f"{p.question}\n")
            for p in problems
        ]  # fmt: skip
        right = {}
        for name, temperature in (("likeliest", 0.0), ("drawn", 1.0)):
            texts = answer(run, prompts, 100, temperature=temperature, batch_size=batch_size)
            right[name] = [final_answer(text) == p.answer for text, p in zip(texts, problems, strict=True)]
        return right


def changes(before: np.ndarray, after: np.ndarray, beta: float) -> dict[str, np.ndarray]:
    """Return what became of each pair, from its responses' log-probabilities [pairs, 2]; `margin` is of implicit rewards."""
    change = after - before
    margins = beta * (change[:, 0] - change[:, 1])
    return {
        "margin": margins, "accuracy": margins > 0, "chosen": change[:, 0], "rejected": change[:, 1],
        "both fell": np.all(change < 0, axis=1),
        "plain accuracy before": before[:, 0] > before[:, 1], "plain accuracy after": after[:, 0] > after[:, 1],
    }  # fmt: skip


def tabulate(found: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Return the table's lines: of several seeds Student's t over them, of one the bootstrap over pairs."""
    lines = [["arm", "held out", *COLUMNS]]
    for arm, seeds in found.items():
        for split in seeds[0]:
            cells = []
            for name in COLUMNS:
                values = [np.asarray(of[split][name], float) for of in seeds if name in of[split]]
                several = interval([float(v.mean()) for v in values]) if len(values) > 1 else ""
                cells.append(several or (str(bootstrap(values[0])) if values else "-"))
            lines.append([arm, split, *cells])
    return lines


def by_fault(results: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Return a table of pair accuracy by what is wrong in the rejected solution, over all seeds and both splits."""
    lines = [["arm", *FAULTS]]
    for arm, seeds in results.items():
        splits = [of[split] for of in seeds for split in of if "fault" in of[split]]
        if splits:
            faults = np.concatenate([split["fault"] for split in splits])
            right = np.concatenate([split["accuracy"] for split in splits])
            of_fault = [right[faults == fault] for fault in FAULTS]
            lines.append([arm, *(f"{found.mean():.3f} of {len(found)}" if len(found) else "-" for found in of_fault)])
    return lines


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw, of every arm, how the log-probabilities of held-out chosen and rejected responses moved, a dot a pair."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(4.2 * len(found), 4.2), layout="constrained", squeeze=False)
    for ax, (arm, seeds) in zip(axes[0], found.items(), strict=True):
        for color, split in enumerate(seeds[0]):
            moved = [np.concatenate([of[split][name] for of in seeds]) for name in ("chosen", "rejected")]
            ax.plot(*moved, ".", color=f"C{color}", ms=3, alpha=0.5, label=split)
        ax.axline((0, 0), slope=1, color="gray", lw=1)
        ax.set(title=arm, xlabel="change of log p(chosen), nats", ylabel="change of log p(rejected), nats")
        ax.grid(alpha=0.25)
    axes[0][0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
