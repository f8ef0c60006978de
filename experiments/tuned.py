"""What experiments on tuned models share: rows on disk, runs made once, answers and pairs of responses scored, intervals."""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from compare import run_folder

from jaxlm.data.mixture import Batches
from jaxlm.data.prepare import DataConfig, prepare
from jaxlm.data.readers import Document
from jaxlm.data.sources import parse_source
from jaxlm.data.storage import cache_folder, write_atomically
from jaxlm.decode.generate import Request, generate
from jaxlm.decode.sampling import Sampling
from jaxlm.decode.weights import prepare as prepare_weights
from jaxlm.errors import ConfigError
from jaxlm.experiment import Experiment
from jaxlm.objective.preference import reference_log_probs
from jaxlm.run.loop import train
from jaxlm.run.open import OpenRun
from jaxlm.run.standing import is_complete, standing


def write_rows(name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Return a JSON lines file of these rows in the cache; its name changes with its content, and so does a run's folder."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path = cache_folder("") / "experiments" / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return path


@functools.cache
def library(*without: str) -> str:
    """Return the source of Python's standard library but for these of its files ("pydoc_data/topics.py"), to be tested on."""
    documents = {each.id: each.text for each in parse_source("stdlib").documents() if isinstance(each, Document)}
    if unknown := set(without) - set(documents):
        raise ConfigError(f"the standard library has no {', '.join(sorted(unknown))}")
    return f"jsonl:{write_rows('library', ({'text': text} for id, text in documents.items() if id not in without))}"


def kept(path: Path, compute: Callable[[], Any]) -> Any:
    """Return what a JSON file holds, having computed and written it where it is not there."""
    if not path.exists():
        write_atomically(path, (json.dumps(compute()) + "\n").encode())
    return json.loads(path.read_text())


def trained(experiment: Experiment, runs: Path) -> Path:
    """Return the folder of the finished run, having trained it, or what was left of it, where that is not done yet.

    Where training was stopped the program ends: what would be measured of half a run would be kept as the whole's.
    """
    folder = run_folder(runs, experiment)
    if not is_complete(standing(folder)):
        train(experiment, folder)
        if not is_complete(standing(folder)):
            sys.exit("stopped: run the same command to go on")
    return folder


def answer(
    run: OpenRun, prompts: Sequence[Sequence[int]], tokens: int, *, temperature: float = 0.0, seed: int = 0,
    batch_size: int = 64, stop: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """Return a run's answer to each prompt of ids, at most `tokens` long: the likeliest tokens, or a draw at `temperature`."""
    layout = dataclasses.replace(run.experiment.layout, batch=None)
    weights, made = prepare_weights(run.params, run.model, layout), []
    # Prompts of like length, in batches of one size, so that few shapes are compiled.
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start in range(0, len(order), batch_size):
        part = (order[start : start + batch_size] * batch_size)[:batch_size]
        requests = [
            Request(prompt=prompts[number], sampling=Sampling(temperature=temperature), seed=seed, sample=number)
            for number in part
        ]
        made += generate(weights, run.model, layout, requests, tokens, tokenizer=run.tokenizer, stop=stop)[: len(order) - start]
    found = {number: completion.text or "" for number, completion in zip(order, made, strict=True)}
    return [found[number] for number in range(len(prompts))]


@functools.partial(jax.jit, static_argnames=("model", "layout"))
def _log_probs(params: Any, batch: Any, model: Any, layout: Any) -> jax.Array:
    return reference_log_probs(params, batch, model, layout)


def pair_log_probs(run: OpenRun, data: DataConfig, batch_size: int) -> np.ndarray:
    """Return [pairs, 2]: log-probabilities of the chosen and the rejected responses of the validation split, in its order."""
    batches, layout, parts = Batches(prepare(data), "validation", batch_size, 0), run.experiment.layout, []
    for number in range(batches.num_batches):
        batch = batches.batch(number)
        placed = [
            jax.device_put(a, jax.NamedSharding(run.mesh, layout.spec("batch", *["length"] * (a.ndim - 1)))) for a in batch
        ]
        parts.append(np.asarray(_log_probs(run.params, type(batch)(*placed), run.model, layout)).reshape(-1, 2))
    return np.concatenate(parts)[: batches.num_rows].astype(np.float64)


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap(values: np.ndarray, draws: int = 10_000) -> Interval:
    """Return the mean of `values` [items], or of each seed's [seeds, items], and its interval over items (Efron 1979).

    Items are drawn anew, the same for all seeds, so that what is common to an item counts once.
    """
    of_items = np.atleast_2d(np.asarray(values, np.float64)).mean(axis=0)
    picks = np.random.default_rng(0).integers(0, len(of_items), (draws, len(of_items)))
    low, high = np.percentile(of_items[picks].mean(axis=1), [2.5, 97.5])
    return Interval(float(of_items.mean()), float(low), float(high))


def write_results(runs: Path, name: str, tables: Sequence[Sequence[Sequence[str]]], results: Any) -> None:
    """Write tables (the heading of each first) as NAME.md, and all numbers behind them as NAME.json."""
    parts = []
    for lines in tables:
        text = ["| " + " | ".join(line) + " |" for line in lines]
        text.insert(1, "|---|" + "---:|" * (len(lines[0]) - 1))
        parts.append("\n".join(text) + "\n")
    write_atomically(runs / f"{name}.md", "\n".join(parts).encode())
    write_atomically(runs / f"{name}.json", (json.dumps(results, indent=1) + "\n").encode())
