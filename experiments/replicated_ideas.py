"""Facts that are asserted with conflicting values: does a model answer by frequency, by variety of phrasing, by source?

jaxlm sweep experiments/replicated_ideas.py                             # tags, and tags dealt out at random; three seeds
python experiments/replicated_ideas.py                                  # then the tables below and the picture
jaxlm report runs/sweeps/replicated_ideas --out replicated_ideas.html
jaxlm train experiments/replicated_ideas.py                             # one run alone
jaxlm plan experiments/replicated_ideas.py:pod --topology v5p:4x4x4     # Llama 3.2 1B, one row in a hundred of such facts

Claim: a language model repeats what it has read most often, and the odds of its answers follow those of its text; paraphrases
of a statement are worth more than copies of it (arXiv:2309.14316), for they are what an unseen question is answered from; and
a tag that marks a source as reliable raises what it says, also where nothing but the tag speaks for it (arXiv:2310.15047).

Protocol: `CELLS` of conflicting_facts.py has who asserts what, how often, in how many phrasings. A fifth of the rows is prose,
so that the facts are learnt by a language model and beside something else, as ideas are, and so that a loss on text held out
tells whether it is one; more would only take longer. Asked is the beginning of an assertion, in a phrasing in which this name
was never spoken of unless said otherwise, and log-odds are ln p(A) / p(B) of the next word. Intervals are 95 %, by bootstrap
over pairs of names, the same for all seeds. The control for tags has the same documents, their tags dealt out at random.

Result (1.2M parameters, 2M tokens, one seed; log-odds of A unless said otherwise):
- Frequency: told 9 : 9, 12 : 6, 15 : 3 times, A has 0.48, 0.67, 0.85 of the answers; at 16 : 2 0.95 in place of 0.89.
- Phrasing: six paraphrases beat twelve copies where both are asked in an unseen phrasing, +3.1 (2.1 to 4.1); nine beat nine by
  +4.5. In the phrasing of the copies these answer, by 4.4 to 5.7.
- Source: a tag in the prompt brings up what that source said: expert minus forum 4.0 to 4.6 where they conflict, 0.0 with tags
  dealt out at random. Without a tag the reliable source is not believed at 6 : 6 (+0.3, -0.3 to 0.9, over tags at random); at
  3 : 9 its share is above its count (+1.0, 0.4 to 1.7) and still the lesser.
"""

import argparse
import dataclasses
import functools
import hashlib
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import llama_1b
import numpy as np
from compare import command, show
from conflicting_facts import (
    EXPERT,
    FORUM,
    NEW,
    RATIOS,
    SOURCES,
    TAGS,
    UNSEEN,
    VARIETY,
    A,
    B,
    documents,
    draw_world,
    entries,
    prompts,
)
from fact_answers import Asked, answers, spell
from tuned import kept, write_results, write_rows

from jaxlm.commands.start import start_jax
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import ConfigError
from jaxlm.eval.comparison import Effect, bootstrap_items
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment, LogConfig, SampleConfig
from jaxlm.model.config import ModelConfig
from jaxlm.run.open import opened
from jaxlm.run.standing import standing
from jaxlm.sweep.combine import Trial, named, trials
from jaxlm.sweep.read import Record, read_record
from jaxlm.train.optimizer import OptimizerConfig

TRUE_TAGS, SHUFFLED = "tags", "shuffled tags"


@functools.cache
def facts(shuffled: bool = False) -> str:
    """Return all assertions as a source."""
    texts = (document.text for document in documents(draw_world(), shuffled))
    return f"jsonl:{write_rows('facts-shuffled' if shuffled else 'facts', entries(texts))}"


@functools.cache
def prose(held_out: bool = False) -> str:
    """Return the language reference in stretches of at most 150 characters as a source, every tenth of them held out."""
    texts = (" ".join(text.split()) for text in topics.values())
    stretches = dict.fromkeys(stretch for text in texts for stretch in textwrap.wrap(text, 150))
    chosen = (" " + stretch for number, stretch in enumerate(stretches) if (number % 10 == 0) == held_out)
    return f"jsonl:{write_rows('prose-held-out' if held_out else 'prose', entries(chosen))}"


def experiment() -> Experiment:
    """Sources whose tags say who speaks."""
    return Experiment(
        name="replicated-ideas",
        steps=1000,
        batch_size=16,
        model=ModelConfig(
            vocab_size=1024, num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512, max_length=128
        ),
        data=DataConfig(
            sources=(facts(), prose()), weights=(0.8, 0.2), validation_sources=(prose(held_out=True),), form="conversations",
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=1024), sequence_length=128,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50),
        evaluation=EvaluationConfig(every=250),
        checkpoint=CheckpointConfig(every=0, keep=1),
        sample=SampleConfig(tokens=0),
        log=LogConfig(tensorboard=False),
    )  # fmt: skip


def sweep() -> Iterator[Trial]:
    """Tags that say who speaks, and tags that say nothing: the control."""
    arms = {SHUFFLED: {"data.sources": (facts(shuffled=True), prose())}, TRUE_TAGS: {}}
    return trials(experiment(), named(arms), seeds=3)


def pod() -> Experiment:
    """Llama 3.2 1B on C4, one row in a hundred of them facts."""
    base = llama_1b.experiment()
    data = DataConfig(
        sources=(facts(), *base.data.sources), weights=(0.01, 0.99), tokenizer=base.data.tokenizer, sequence_length=2048
    )
    return dataclasses.replace(base, name="replicated-ideas-1b", data=data)


def ask(folder: Path) -> np.ndarray:
    """Return what a run answers to every prompt [prompts, 3]: computed once, and kept in its folder."""
    asked = prompts(draw_world())
    protocol = hashlib.sha256(repr([(each.text, each.entity.values) for each in asked]).encode()).hexdigest()[:8]

    def compute() -> list[list[float]]:
        with opened(folder) as run:
            return answers(run, asked).tolist()

    return np.array(kept(folder / f"facts-{protocol}.json", compute))


def of_frequency(asked: Asked) -> list[list[str]]:
    """Return a table of answers against what was told how often; matching the text's odds is an exponent of 1."""
    lines = [["told A : B", "share of A told", "share answered", "log-odds", "told log-odds", "exponent", "p(A) of all words"]]
    for cell, tellings in (RATIOS | UNSEEN).items():
        a, b = (sum(told.count for told in tellings if told.value == value) for value in (A, B))
        share, odds = (spell(bootstrap_items(values)) for values in (asked.share(cell), asked.log_odds(cell)))
        exponent = "-" if not b or a == b else spell(bootstrap_items(asked.log_odds(cell) / np.log(a / b)))
        told = ["-", "-"] if not a else [f"{a / (a + b):.2f}", "-" if not b else f"{np.log(a / b):.2f}"]
        lines.append([cell, told[0], share, odds, told[1], exponent, spell(bootstrap_items(asked.known(cell)))])
    return lines


def of_variety(asked: Asked) -> list[list[str]]:
    """Return a table of log-odds by phrasing: held out, one that A alone was told in, one that B alone was told in."""
    lines = [["told A : B", "unseen phrasing", "A's phrasing", "B's phrasing"]]
    lines.append(["9 varied : 9 varied", spell(bootstrap_items(asked.log_odds("9 : 9"))), "-", "-"])
    for cell in VARIETY:
        lines.append([cell, *(spell(bootstrap_items(asked.log_odds(cell, kind))) for kind in (NEW, A, B))])
    return lines


def of_sources(asked: Asked) -> list[list[str]]:
    """Return a table of what a tag in the prompt does, and of what is answered without one."""
    lines = [["told A : B", "log-odds, no tag", "expert", "forum", "expert - forum", "p(A) of all words, no tag"]]
    for cell in ("9 : 9", "12 : 6", "forum wrong", *SOURCES, *UNSEEN):
        by_tag = {tag: asked.log_odds(cell, tag=tag) for tag in TAGS}
        cells = [spell(bootstrap_items(values)) for values in (*by_tag.values(), by_tag[EXPERT] - by_tag[FORUM])]
        lines.append([cell, *cells, spell(bootstrap_items(asked.known(cell)))])
    return lines


def against_shuffled(asked: dict[str, Asked]) -> list[list[str]]:
    """Return a table of log-odds with true tags minus those with tags dealt out at random, of the same names and seeds."""
    lines = [["told A : B", *(f"{tag or 'no'} tag" for tag in TAGS)]]
    for cell in ("9 : 9", "forum wrong", *SOURCES):
        pairs = [[asked[arm].log_odds(cell, tag=tag) for arm in (TRUE_TAGS, SHUFFLED)] for tag in TAGS]
        lines.append([cell, *(spell(bootstrap_items(true - random)) for true, random in pairs)])
    return lines


def draw(asked: dict[str, Asked], path: Path) -> None:
    """Draw answers against frequencies, the effect of variety, and that of tags with its control."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    true, ratios = asked[TRUE_TAGS], [cell for cell, told in RATIOS.items() if sum(each.count for each in told) == 18]
    told = [RATIOS[cell][0].count / 18 for cell in ratios]
    bars(left, told, [bootstrap_items(true.share(cell)) for cell in ratios], "unseen phrasing")
    left.plot([0.5, 1], [0.5, 1], color="black", lw=0.8, ls=":", label="as often as told")
    left.set(xlabel="share of A among 18 assertions", ylabel="p(A) / (p(A) + p(B))", title="frequency")
    cells = ["9 : 9", *VARIETY]
    bars(middle, range(len(cells)), [bootstrap_items(true.log_odds(cell)) for cell in cells], "unseen phrasing")
    middle.set(xticks=range(len(cells)), ylabel="ln p(A) / p(B)", title="variety of phrasing, told A : B")
    middle.set_xticklabels([cell.replace(" : ", "\n: ") for cell in cells], fontsize=8)
    cells = ["forum wrong", *(cell for cell in SOURCES if ":" in cell)]
    for place, arm in enumerate(asked):
        effects = [bootstrap_items(asked[arm].log_odds(c, tag=EXPERT) - asked[arm].log_odds(c, tag=FORUM)) for c in cells]
        bars(right, np.arange(len(cells)) + 0.1 * place, effects, arm)
    right.set(
        xticks=range(len(cells)), xticklabels=cells, ylabel="ln p(A) / p(B), expert minus forum", title="tag in the prompt"
    )
    for ax in (left, middle, right):
        ax.axhline(0 if ax is not left else 0.5, color="black", lw=0.5)
        ax.grid(alpha=0.25)
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def bars(ax: Any, places: Iterable[float], effects: list[Effect], label: str) -> None:
    """Draw means with their intervals."""
    means, low, high = np.array([effect[:3] for effect in effects]).T
    ax.errorbar(list(places), means, (means - low, high - means), fmt="o", capsize=3, label=label)


def finished(record: Record) -> dict[str, list[Path]]:
    """Return the runs of each arm, of those seeds that every arm has finished; ConfigError where there is none."""
    done = {arm: {e.seed: e.run for e in of if standing(e.run).kind == "finished"} for arm, of in record.arms.items()}
    seeds = sorted(set.intersection(*map(set, done.values())))
    if not seeds:
        raise ConfigError(f"no seed of {record.folder} is finished in both arms: run `jaxlm sweep {record.file}` to its end")
    return {arm: [runs[seed] for seed in seeds] for arm, runs in done.items()}


def main() -> int:
    """Ask every finished run of the sweep, and print, write and draw what it answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", type=Path, default=Path("runs/sweeps/replicated_ideas"))
    folder = parser.parse_args().sweep
    start_jax(1)
    found = {arm: np.stack([ask(run) for run in runs]) for arm, runs in finished(read_record(folder)).items()}
    world = prompts(draw_world())
    asked = {arm: Asked(world, each) for arm, each in found.items()}
    tables = {
        "frequency": of_frequency(asked[TRUE_TAGS]), "variety of phrasing": of_variety(asked[TRUE_TAGS]),
        "sources": of_sources(asked[TRUE_TAGS]), "sources, tags shuffled": of_sources(asked[SHUFFLED]),
        "log-odds, true tags minus shuffled": against_shuffled(asked),
    }  # fmt: skip
    for title, lines in tables.items():
        show(lines, f"{title} (seeds: {len(found[TRUE_TAGS])})")
    write_results(folder, "answers", list(tables.values()), dict(tables))
    draw(asked, folder / "replicated_ideas.png")
    return 0


if __name__ == "__main__":
    command(main)
