"""`jaxlm sample`: continuations on the terminal, or as JSON."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxlm.config import difference
from jaxlm.data.chat import encode_chat
from jaxlm.decode.beam import Beams, beam_search
from jaxlm.decode.generate import Completion, Request, best, check_requests, encode_prompt, generate, stream
from jaxlm.decode.sampling import Sampling
from jaxlm.decode.text import check_text
from jaxlm.decode.weights import prepare
from jaxlm.errors import ConfigError, DataError
from jaxlm.eval.reach import further
from jaxlm.layout import Layout
from jaxlm.model.config import ModelConfig
from jaxlm.model.extension import Extension
from jaxlm.run import display
from jaxlm.run.open import OpenRun, opened

TOKENS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to write, and how."""

    prompts: tuple[str, ...] = ()
    file: Path | None = None
    tokens: int | None = None
    """None: TOKENS, or as many as the longest prompt of a batch leaves room for."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    samples: int = 1
    best_of: int = 0
    best_by: Literal["mean", "total"] | None = None
    """None: the mean."""
    beams: Beams | None = None
    seed: int = 0
    json: bool = False
    chat: bool = False
    batch_size: int = 16

    def check(self) -> None:
        """Raise ConfigError where parts contradict one another."""
        if (self.tokens is not None and self.tokens < 0) or self.samples < 1 or self.batch_size < 1:
            raise ConfigError("--tokens must be 0 or more, --samples and --batch-size 1 or more")
        check_seed(self.seed)
        if self.best_of and self.best_of < self.samples:
            raise ConfigError(f"--best-of {self.best_of} is fewer than --samples {self.samples}: draw as many or more")
        if self.best_of and not self.sampling.temperature:
            raise ConfigError("--best-of chooses among different samples, but temperature 0 makes all the same: raise it")
        if self.best_by and not self.best_of:
            raise ConfigError(f"--best-by {self.best_by} says how --best-of chooses: give --best-of too")
        if self.beams:
            self._check_beams()
        for number, text in enumerate(self.prompts, start=1):
            check_text(text, f"--prompt, text {number}")
        for text in self.stop:
            check_text(text, "--stop")

    def _check_beams(self) -> None:
        if self.best_of or self.stop:
            raise ConfigError("--beams searches for the likeliest text: it takes neither --best-of nor --stop")
        if self.tokens == 0:
            raise ConfigError("--beams searches for continuations of 1 token or more: --tokens 0 asks for none")
        controls = [name for name, _, _ in difference(self.sampling, Sampling())]
        if controls:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in controls)
            raise ConfigError(f"--beams searches for the likeliest text and samples nothing: leave out {options}")


def beams_of(count: int, length_penalty: float | None, early_stopping: str | None) -> Beams | None:
    """Return the search that options ask for, None for none; ConfigError where they say how, but not to search."""
    given = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    given = {name: value for name, value in given.items() if value is not None}
    if count:
        return Beams(count=count, **given)
    for name in given:
        raise ConfigError(f"--{name.replace('_', '-')} says how --beams searches: give --beams too")
    return None


def check_seed(seed: int) -> None:
    """Raise ConfigError for a seed that is not two 32-bit words."""
    if not 0 <= seed < 2**64:
        raise ConfigError(f"--seed {seed} must be from 0 to 2**64 - 1")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt as it was given, where it was text, and as ids."""

    text: str | None
    ids: list[int]


def sample_run(folder: Path, wanted: Wanted, step: int | None = None, extension: Extension = Extension()) -> None:
    """Write continuations of each prompt to standard output, the model read as `extension` has it.

    A single one appears as it is made.
    """
    wanted.check()
    given = _given(wanted)
    with opened(folder, step, extension=extension) as run:
        prompts = [_prompt(run, each, wanted.chat) for each in given]
        layout = dataclasses.replace(run.experiment.layout, batch=None)
        room_for(prompts, wanted, run.model)
        check_requests([Request(prompt=prompt.ids) for prompt in prompts], 0, run.model, layout)
        weights = prepare(run.params, run.model, layout)
        if len(prompts) == wanted.samples == 1 and not (wanted.json or wanted.best_of or wanted.beams) and run.tokenizer:
            _stream(run, weights, layout, prompts[0], wanted)
            return
        made, several = _made(run, weights, layout, prompts, wanted), len(prompts) * wanted.samples
        if wanted.beams and not wanted.json:
            made = list(made)
            several = len(made)  # beams may find fewer than were asked for
        for number, (prompt, completion, score) in enumerate(made, start=1):
            if wanted.json:
                print(json.dumps(_row(prompt, completion, score), ensure_ascii=False), flush=True)
            elif several == 1:
                print(_text(prompt, completion, wanted))
            else:
                print(f"{'' if number == 1 else chr(10)}--- {number} of {several}\n{_text(prompt, completion, wanted)}")


def _made(
    run: OpenRun, weights: Any, layout: Layout, prompts: Sequence[Prompt], wanted: Wanted
) -> Iterator[tuple[Prompt, Completion, float | None]]:
    """Yield the completions to show, prompt by prompt."""
    if wanted.beams:
        at_once = max(1, wanted.batch_size // wanted.beams.count)
        for start in range(0, len(prompts), at_once):
            part = prompts[start : start + at_once]
            found = beam_search(
                weights, run.model, layout, [prompt.ids for prompt in part], room_for(part, wanted, run.model), wanted.beams,
                tokenizer=run.tokenizer, best=wanted.samples,
            )  # fmt: skip
            for prompt, completions in zip(part, found, strict=True):
                yield from ((prompt, completion, score) for score, completion in completions)
        return
    draws = wanted.best_of or wanted.samples
    asked = [(prompt, sample) for prompt in prompts for sample in range(draws)]
    made: list[Completion] = []
    for start in range(0, len(asked), wanted.batch_size):
        part = asked[start : start + wanted.batch_size]
        requests = [
            Request(prompt=prompt.ids, sampling=wanted.sampling, seed=wanted.seed, sample=sample) for prompt, sample in part
        ]
        room = room_for([prompt for prompt, _ in part], wanted, run.model)
        made += generate(weights, run.model, layout, requests, room, tokenizer=run.tokenizer, stop=wanted.stop)
        while len(made) >= draws:
            prompt, prompts = prompts[0], prompts[1:]
            of_prompt, made = made[:draws], made[draws:]
            kept = best(of_prompt, wanted.samples, wanted.best_by or "mean") if wanted.best_of else of_prompt
            yield from ((prompt, completion, None) for completion in kept)


def room_for(prompts: Sequence[Prompt], wanted: Wanted, model: ModelConfig) -> int:
    """Return how many tokens to write after prompts of one batch, or raise ConfigError where one leaves too little room."""
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    left = model.max_length - len(longest.ids)
    if left >= (1 if wanted.tokens is None else wanted.tokens):
        return min(TOKENS, left) if wanted.tokens is None else wanted.tokens
    beginning = f"{longest.ids[:8]}" if longest.text is None else f"{longest.text[:40]!r}"
    advice = f"give at most --tokens {left}" if left > 0 else "shorten it"
    longer = further(model)
    raise ConfigError(
        f"the prompt that begins with {beginning} has {len(longest.ids)} tokens, and with {wanted.tokens or 1} new ones that "
        f"is more than model.max_length = {model.max_length}: {advice}{', or ' * bool(longer)}{longer}"
    )


def _stream(run: OpenRun, weights: Any, layout: Layout, prompt: Prompt, wanted: Wanted) -> None:
    request = Request(prompt=prompt.ids, sampling=wanted.sampling, seed=wanted.seed)
    display.stream("" if wanted.chat else prompt.text or "")
    shown = 0
    room = room_for([prompt], wanted, run.model)
    for (completion,) in stream(weights, run.model, layout, [request], room, tokenizer=run.tokenizer, stop=wanted.stop):
        text = completion.text or ""
        display.stream(text[shown:])
        shown = len(text)
    display.stream("\n")


def _text(prompt: Prompt, completion: Completion, wanted: Wanted) -> str:
    if completion.text is None:
        return " ".join(map(str, completion.tokens))
    return completion.text if wanted.chat else f"{prompt.text or ''}{completion.text}"


def _row(prompt: Prompt, completion: Completion, score: float | None) -> dict[str, Any]:
    row = {
        "prompt": prompt.ids if prompt.text is None else prompt.text, "text": completion.text, "tokens": completion.tokens,
        "log_probs": completion.log_probs, "log_prob": completion.total, "finish": completion.finish,
    }  # fmt: skip
    return row if score is None else row | {"score": score}


def _given(wanted: Wanted) -> list[Any]:
    """Return prompts as given: texts, or objects of a JSON lines file."""
    given: list[Any] = list(wanted.prompts)
    if wanted.file is not None:
        try:
            # Other line ends than these are part of a text.
            lines = wanted.file.read_bytes().decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as fault:
            raise DataError(f"{wanted.file} cannot be read as UTF-8 text: {fault}") from fault
        numbered = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1) if line.strip()]
        as_json = wanted.file.suffix == ".jsonl"
        given += [_line(wanted.file, number, line) if as_json else line for number, line in numbered]
        if not numbered:
            raise DataError(f"{wanted.file} holds no prompt: write one a line")
    return given or [""]


def _line(file: Path, number: int, line: str) -> Any:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{file}, line {number} is no JSON: {fault}") from fault
    if isinstance(value, dict) and len(value) == 1:
        kind, value = next(iter(value.items()))
        if kind == "tokens" and isinstance(value, list) and value and all(type(i) is int for i in value):
            return value
        if kind == "messages" and isinstance(value, list) and all(isinstance(message, dict) for message in value):
            check_text(json.dumps(value, ensure_ascii=False), f"{file}, line {number}")
            return {"messages": value}
        value = value if kind == "prompt" else None
    if not isinstance(value, str):
        raise DataError(
            f'{file}, line {number} must be a JSON string or an object with one of "prompt" (text), "tokens" (ids) and '
            '"messages" ([{"role": ..., "content": ...}, ...])'
        )
    check_text(value, f"{file}, line {number}")
    return value


def _prompt(run: OpenRun, given: Any, chat: bool) -> Prompt:
    if isinstance(given, list):
        return Prompt(None, given)
    tokenizer = run.needs_tokenizer()
    if isinstance(given, dict):
        return Prompt(None, encode_chat(tokenizer, given["messages"]))
    if chat:
        return Prompt(given, encode_chat(tokenizer, [{"role": "user", "content": given}]))
    return Prompt(given, encode_prompt(tokenizer, given))
