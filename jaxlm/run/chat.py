"""`jaxlm chat`: a conversation through the model's chat template, its past kept in the cache between turns."""

import dataclasses
import io
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from jaxlm.data.chat import encode_chat
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.decode.cache import Cache, empty_cache, enlarge, forget, ring_size
from jaxlm.decode.forward import extend
from jaxlm.decode.generate import Completion, Request, batch_of, follow
from jaxlm.decode.loop import State, begin
from jaxlm.decode.rows import ROUNDING, rounded
from jaxlm.decode.sampling import Sampling
from jaxlm.decode.text import check_text
from jaxlm.decode.weights import prepare
from jaxlm.errors import ConfigError, DataError, JaxlmError
from jaxlm.layout import Layout
from jaxlm.model.config import ModelConfig
from jaxlm.model.extension import Extension
from jaxlm.ops.masks import Tokens
from jaxlm.run import display
from jaxlm.run.open import opened
from jaxlm.run.sample import check_seed

FIRST_SLOTS = 1024  # a cache begins with this many and doubles: attention reads every slot for every token
# Text is read in chunks of these widths alone, so that two programs are compiled, and no more than this many rows of
# attention logits lie in memory.
SHORT, LONG = 64, 256
HELP = "/reset forgets the conversation, /undo the last turn, /system TEXT sets instructions and begins anew, /quit ends"


@dataclasses.dataclass
class Chat:
    """A conversation, and the cache of what the model has read of it."""

    params: Any
    model: ModelConfig
    layout: Layout
    tokenizer: Tokenizer
    tokens: int
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    stop: tuple[str, ...] = ()
    system: str = ""
    messages: list[dict[str, str]] = dataclasses.field(default_factory=list)
    read: list[int] = dataclasses.field(default_factory=list)
    """The ids that the cache holds."""
    cache: Cache | None = None
    slots: int = 0

    def __post_init__(self) -> None:
        """Prepare the weights once for all turns."""
        self.weights = prepare(self.params, self.model, self.layout)
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; instructions stay."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def undo(self) -> bool:
        """Forget the last question and its answer; return whether there was one."""
        asked = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        del self.messages[asked[-1] if asked else len(self.messages) :]
        return bool(asked)

    def answer(self, text: str) -> Iterator[Completion]:
        """Yield the answer as it grows; what was made of it when the caller stops is kept, as is the cache.

        Raises DataError, with the question taken back, where the conversation fills the model's context or the question is no
        Unicode text.
        """
        check_text(text, "the question")
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = encode_chat(self.tokenizer, messages)
        room = min(self.tokens, self.model.max_length - len(ids))
        if room <= 0:
            raise DataError(
                f"the conversation has {len(ids)} tokens with this question, and the model reads {self.model.max_length}: "
                "nothing is dropped silently; /undo takes back a turn, /reset begins anew"
            )
        turn = sum(message["role"] == "user" for message in messages)
        request = Request(prompt=ids, sampling=self.sampling, seed=self.seed, sample=turn)
        stop_ids = tuple(self.tokenizer.stop_ids)
        last = [self._read(ids, room)]
        completion = Completion(text="")
        steps = follow(
            self.weights, batch_of([request], stop_ids, self.model), [request], last[0], room, stop_ids, self.model,
            self.layout, self.tokenizer, self.stop, last,
        )  # fmt: skip
        try:
            for (completion,) in steps:
                yield completion
        finally:
            state = last[0]
            made = np.asarray(state.tokens)[0, : int(state.made)].tolist()
            self.cache, self.read = state.cache, [*ids, *made]
            self.messages = [*messages, {"role": "assistant", "content": completion.text or ""}]

    def _read(self, ids: list[int], room: int) -> State:
        """Return the state after `ids`, of which only those are read that the cache does not hold."""
        known = self._known(ids)
        cache, self.cache = self.cache if known else None, None
        widths = _widths(len(ids) - known)
        slots = self.slots if known else FIRST_SLOTS
        while slots < max(len(ids) + room, known + sum(widths)):
            slots *= 2
        slots = min(slots, rounded(self.model.max_length + LONG, ROUNDING))
        if not known:
            cache = empty_cache(self.model, self.layout, 1, slots)
        else:
            cache = forget(cache, np.int32(known)) if known < len(self.read) else cache
            cache = enlarge(cache, self.model, slots) if slots > self.slots else cache
        self.slots, length = slots, np.array([len(ids)], np.int32)
        for width in widths:
            new = ids[known : known + width]
            tokens, segments = np.zeros((2, 1, width), np.int32)
            tokens[0, : len(new)], segments[0, : len(new)] = new, 1
            at = Tokens(np.where(segments, known + np.arange(width)[None], 0).astype(np.int32), segments)
            logits, cache = extend(self.weights, tokens, at, np.int32(len(new)), cache, self.model, self.layout, length)
            known += len(new)
        return begin(logits, cache, length, rounded(self.tokens, ROUNDING))

    def _known(self, ids: list[int]) -> int:
        """Return how many of `ids` the cache holds and can go on from; 0 to begin anew. The last one is always read."""
        if self.cache is None:
            return 0
        same = (place for place, pair in enumerate(zip(self.read, ids, strict=False)) if pair[0] != pair[1])
        known = min(next(same, len(self.read)), len(ids) - 1)
        model, read = self.model, len(self.read)
        if known < read and read > ring_size(model, self.slots):
            return 0  # what a ring has overwritten cannot come back
        if model.positions == "rope" and model.rope_scaling.by_length:
            # What was read with other frequencies is of no use.
            original = model.rope_scaling.original_length or model.max_length
            shorter, longer = sorted((read, len(ids)))
            if longer > original and (model.rope_scaling.kind == "dynamic" or shorter <= original):
                return 0
        return known


def _widths(length: int) -> list[int]:
    """Return the widths of the chunks in which so many tokens are read."""
    chunks, rest = divmod(length, LONG)
    return [LONG] * chunks + ([SHORT if rest <= SHORT else LONG] if rest else [])


def chat_with_run(
    folder: Path, step: int | None = None, *, system: str = "", tokens: int = 512, sampling: Sampling = Sampling(),
    stop: tuple[str, ...] = (), seed: int = 0, extension: Extension = Extension(),
) -> None:  # fmt: skip
    """Answer lines of standard input until it ends: with prompts and speed on a terminal, bare answers in a pipe."""
    if tokens < 1:
        raise ConfigError(f"--tokens {tokens} must be 1 or more")
    check_seed(seed)
    for option, text in (("--system", system), *(("--stop", text) for text in stop)):
        check_text(text, option)
    with opened(folder, step, extension=extension) as run:
        tokenizer = run.needs_tokenizer()
        encode_chat(tokenizer, [{"role": "user", "content": "?"}])  # says at once where there is no template
        layout = dataclasses.replace(run.experiment.layout, batch=None)
        chat = Chat(run.params, run.model, layout, tokenizer, tokens, sampling, seed, stop, system)
        out = display.console()
        talk(chat, out, at_terminal=sys.stdin.isatty() and sys.stdout.isatty())


def talk(chat: Chat, out: Console, *, at_terminal: bool) -> None:
    """Read lines and answer them; Ctrl-C ends an answer, Ctrl-D or /quit the conversation.

    Away from a terminal a question that cannot be answered gets an empty line, and DataError is raised in the end. There, lines
    that begin with "/" are questions if they are no command; at a terminal those that begin with a space.
    """
    if at_terminal:
        out.print(f"[dim]Ctrl-C stops an answer, Ctrl-D ends. {HELP}.[/]")
    refused = 0
    for line in _lines(at_terminal, out):
        if line.strip() == "/quit":
            break
        if _obey(chat, line, out) or not line.strip():
            continue
        if at_terminal and line.startswith("/"):
            out.print(f"unknown command: {HELP}; begin a question with a space", markup=False)
            continue
        try:
            _answer(chat, line, out, at_terminal)
        except JaxlmError as fault:
            refused += 1
            out.print(f"[red]error:[/] {escape(str(fault))}")
            if not at_terminal:
                display.stream("\n")
    if refused and not at_terminal:
        raise DataError(f"{refused} of the questions could not be answered, see above: their answers are empty lines")


def _answer(chat: Chat, line: str, out: Console, at_terminal: bool) -> None:
    shown, started, completion = 0, time.perf_counter(), Completion()
    answers = chat.answer(line)
    with _interruptible() as interrupted:
        for completion in answers:
            display.stream((completion.text or "")[shown:])
            shown = len(completion.text or "")
            if interrupted:
                break
        answers.close()
    display.stream("\n")
    if completion.finish == "length":
        full = len(chat.read) >= chat.model.max_length
        out.print("[yellow]the context is full[/]" if full else f"[dim]cut at {chat.tokens} tokens (--tokens)[/]")
    if at_terminal:
        made = len(completion.log_probs)
        out.print(f"[dim]{made} tokens, {made / (time.perf_counter() - started):,.1f} tokens/s[/]")


def _obey(chat: Chat, line: str, out: Console) -> bool:
    """Do what a command says and return True, or return False: the line is none."""
    command, _, rest = line.strip().partition(" ")
    if not line.startswith("/") or (rest and command != "/system"):
        return False
    if command == "/reset":
        chat.reset()
    elif command == "/undo":
        out.print("taken back" if chat.undo() else "there is nothing to take back")
    elif command == "/system":
        chat.system = rest.strip()
        chat.reset()
    else:
        return False
    return True


def _lines(at_terminal: bool, out: Console) -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a bad byte must not end the conversation
    if not at_terminal:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            out.print("\n[dim]Ctrl-D or /quit ends[/]")
        except EOFError:
            out.print()
            return


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Yield a list that is no longer empty once Ctrl-C was pressed; pressed again it ends the program.

    An exception in the middle of a stretch would leave no cache behind: the old one was given away for the new one.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
