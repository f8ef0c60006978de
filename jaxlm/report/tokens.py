"""`jaxlm tokens`: what a run's model says of every token of a text, alone or beside another model."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from jaxlm.data.storage import write_atomically
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.decode.text import check_text
from jaxlm.errors import ConfigError, DataError
from jaxlm.model.extension import Extension
from jaxlm.report import token_rows, tokens_page, tokens_terminal
from jaxlm.report.token_difference import compare
from jaxlm.report.token_reading import Own, check_own, read_run
from jaxlm.report.token_rows import Texts
from jaxlm.run import display
from jaxlm.run.directory import TOKENIZER, load_config
from jaxlm.run.probe_report import as_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be read, and how it is to be shown."""

    texts: tuple[str, ...] = ()
    file: Path | None = None
    sources: tuple[str, ...] = ()
    """What rows are of; none: the run's validation split."""
    rows: int = 0
    """0: one, where no text is named."""
    first: int = 0
    """Row."""
    top: int = 5
    """Likeliest tokens to tell."""
    limit: int = 4096
    """Tokens to read of texts at most."""
    experts: bool = False
    """Tell where tokens went."""
    extension: Extension = dataclasses.field(default_factory=Extension)
    """How the model is read."""
    extend_both: bool = False
    """And the one it is compared with."""
    json: bool = False
    out: Path | None = None
    """The page to write."""

    def check(self) -> None:
        """Raise ConfigError for what cannot be shown."""
        for name, least in (("rows", 0), ("first", 0), ("top", 1), ("limit", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} {getattr(self, name)} must be {least} or more")
        if sum([bool(self.texts), self.file is not None, self.rows != 0]) > 1:
            raise ConfigError("--text, --file and --rows each say what to read: give one of them")
        if (self.first or self.sources) and (self.texts or self.file):
            name = "--first counts rows" if self.first else "--source is what rows are read of"
            raise ConfigError(f"{name}: it does not go with --text or --file")
        for number, text in enumerate(self.texts, start=1):
            check_text(text, f"--text, text {number}")
        if self.out is not None and self.json:
            raise ConfigError("--out writes a page and --json prints numbers: give one of them")
        if self.out is not None and not self.out.parent.is_dir():
            raise ConfigError(f"--out {self.out} cannot be written: there is no folder {self.out.parent}")


def view_tokens(
    folder: Path, wanted: Wanted, step: int | None = None, against: Path | None = None, against_step: int | None = None
) -> None:
    """Show, print or write what the model of a run makes of every token, and how much better than that of another run.

    Models with different tokenizers are compared over the stretches of bytes that both cut alike. Raises ConfigError,
    DataError or CheckpointError for what cannot be read, before a device is touched where that is known so early.
    """
    wanted.check()
    if against is None and (against_step is not None or wanted.extend_both):
        option = "--extend-both" if wanted.extend_both else "--against-step"
        raise ConfigError(f"{option} is of --against: to compare two steps of one run, give --against RUN too")
    tokenizers = [_tokenizer(path) for path in (folder, against) if path is not None]
    if wanted.experts and not load_config(folder).model.moe_layers:
        raise ConfigError(f"--experts: the model of {folder} is dense, it has none")
    texts, notes = token_rows.shortened(_texts(wanted), tokenizers[0], wanted.limit)
    own = Own(first=wanted.first, count=wanted.rows or 1, sources=wanted.sources)
    if not texts:
        check_own(folder, own)
    beside = wanted.extension if wanted.extend_both else Extension()
    longest, context, apart = math.inf, "", ""
    if against is not None:
        longest, context = _reach(folder, wanted.extension, against, beside)
        apart = _apart(tokenizers, load_config(folder).data.sequence_length, longest if context else math.inf)
    left, material = read_run(
        folder, step, texts or own, top=wanted.top, experts=wanted.experts, as_texts=apart, longest=longest,
        extension=wanted.extension,
    )  # fmt: skip
    right = difference = None
    if against is not None:
        right, _ = read_run(against, against_step, material, top=wanted.top, longest=longest, extension=beside)
        cut = any(len(document.tokens) - 1 > longest for reading in (left, right) for document in reading.documents)
        difference = compare(left, right, context if cut else "")
    out = display.console()
    for note in dict.fromkeys((*notes, *left.notes, *(right.notes if right else ()))):
        out.print(f"[dim]note:[/] {note}", soft_wrap=True)
    if wanted.json:
        print(as_json(tokens_terminal.as_json(left, right, difference), ensure_ascii=False))
    elif wanted.out is not None:
        try:
            write_atomically(wanted.out, tokens_page.page(left, right, difference).encode())
        except OSError as fault:
            raise DataError(f"--out {wanted.out} cannot be written: {fault.strerror}") from fault
        print(f"{wanted.out}: {left.summary['tokens']:,.0f} tokens, loss {left.summary['loss']:.4f}")
    else:
        tokens_terminal.show(left, right, difference)


def _reach(folder: Path, extension: Extension, against: Path, beside: Extension) -> tuple[int, str]:
    """Return the longest window that both models read, and how to say so where one of them reads further."""
    lengths = [each.applied(load_config(path).model).max_length for path, each in ((folder, extension), (against, beside))]
    longest = min(lengths)
    said = f"both read in windows of {longest:,} tokens, the smaller max_length (of {max(lengths):,})"
    return longest, said if longest < max(lengths) else ""


def _apart(tokenizers: Sequence[Tokenizer], length: int, longest: float) -> str:
    """Return why packed rows of this length are none for both models; empty where they are."""
    if len({tokenizer.digest for tokenizer in tokenizers}) > 1:
        return "the tokenizers differ"
    return f"rows of {length:,} tokens are longer than one of the models reads" if length > longest else ""


def _tokenizer(folder: Path) -> Tokenizer:
    load_config(folder)  # says so where the folder is no run
    if not (folder / TOKENIZER).exists():
        raise DataError(f"{folder} has no tokenizer, so its tokens have no text: `jaxlm score --tokens` reads token ids")
    return load_tokenizer(folder / TOKENIZER)


def _texts(wanted: Wanted) -> Texts:
    """Return the texts that are named; none where rows are to be read."""
    if wanted.file is None:
        texts = [(f"text {number}", text) for number, text in enumerate(wanted.texts, start=1)]
    else:
        try:
            texts = [(wanted.file.name, wanted.file.read_bytes().decode())]
        except OSError as fault:
            raise DataError(f"--file {wanted.file} cannot be read: {fault.strerror}") from fault
        except UnicodeDecodeError as fault:
            wrong = f"byte {fault.start} is {fault.object[fault.start]:#04x}"
            raise DataError(f"--file {wanted.file} is not UTF-8 text: {wrong}") from fault
    for name, text in texts:
        if not text:
            raise DataError(f"{name} is empty: there is no token to foretell")
    return texts
