"""Long rows of plain text, one after the other as they stand: what a long context is measured on."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from jaxlm.data.building import Job
from jaxlm.data.data_config import DataConfig
from jaxlm.data.encoding import encode_document
from jaxlm.data.sources import parse_source, stop_at
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.errors import DataError


def documents_of(config: DataConfig, split: str, report: Callable[[str], None] | None = None) -> Iterator[str]:
    """Yield the texts of the split "train" or "validation", in order; ConfigError for a source that is not there.

    They are those that preparing `config` puts there, which must be of text: one source after the other, whatever
    `config.weights` are, so that who takes a few may see the first source alone. `report` is told of each source whose texts
    begin.
    """
    fraction = 0.0 if config.validation_sources else config.validation_fraction
    jobs = [Job(parse_source(spelling), fraction) for spelling in config.sources]
    jobs += [Job(parse_source(spelling), 1.0) for spelling in config.validation_sources]
    on_bad = stop_at if config.on_bad_document == "error" else lambda fault: None
    return itertools.chain.from_iterable(_texts(job, split, on_bad, report) for job in jobs)


def _texts(job: Job, split: str, on_bad: Callable[[DataError], None], report: Callable[[str], None] | None) -> Iterator[str]:
    texts = (document.text for document in job.source.documents(on_bad) if job.split(document.id) == split)
    for number, text in enumerate(texts):
        if report and not number:
            report(job.source.spelling)
        yield text


def long_rows(
    documents: Iterable[str], tokenizer: Tokenizer, rows: int, length: int, *, whole_documents: bool = False
) -> np.ndarray:
    """Return at most `rows` rows of text, int32 [R, L + 1]: as many as there is text for.

    Each begins as a prompt does (bos, or nothing). Documents are laid end to end, eos between them, and cut where rows end;
    with `whole_documents` a row is the beginning of one document, and those too short for a row are left out. Raises DataError
    where there is not text enough for a single row.
    """
    documents = iter(documents)
    if (first := next(documents, None)) is None:
        raise DataError(
            "this split has no documents: read the other one, --split train say, or name text, --source text:book.txt say"
        )
    documents = itertools.chain([first], documents)
    prefix = np.array(tokenizer.prefix_ids, np.int32)
    wanted = length + 1 - len(prefix)
    pieces = _beginnings(documents, tokenizer, wanted) if whole_documents else _pieces(documents, tokenizer, wanted)
    found, longest = [], 0
    for piece in pieces:
        if len(piece) == wanted:
            found.append(np.concatenate([prefix, piece]))
        longest = max(longest, len(piece))
        if len(found) == rows:
            break
    if not found:
        what = "no document is long enough: the longest has" if whole_documents else "there is too little text:"
        fix = "leave out --whole-documents, " if whole_documents else ""
        raise DataError(
            f"{what} {longest:,} tokens, and a row takes {wanted:,}. {fix[:1].upper()}{fix[1:]}{'lower' if fix else 'Lower'} "
            "--lengths, or name more text with --source"
        )
    return np.stack(found)


def _beginnings(documents: Iterable[str], tokenizer: Tokenizer, wanted: int) -> Iterator[np.ndarray]:
    for text in documents:
        # Far more characters than a row takes: the rest of a long document need not be encoded.
        yield encode_document(tokenizer, text[: 32 * wanted])[:wanted]


def _pieces(documents: Iterable[str], tokenizer: Tokenizer, wanted: int) -> Iterator[np.ndarray]:
    """Yield all text in pieces of `wanted` ids, the last one shorter."""
    kept, size = [], 0
    for number, text in enumerate(itertools.chain(documents, [None])):
        if text is not None:
            kept += [np.array([tokenizer.eos_id, *tokenizer.prefix_ids], np.int32)] if number else []
            kept.append(encode_document(tokenizer, text))
            size = sum(map(len, kept))
        if size >= wanted or text is None:
            ids = np.concatenate(kept) if kept else np.zeros(0, np.int32)
            while len(ids) >= wanted:
                yield ids[:wanted]
                ids = ids[wanted:]
            kept = [ids]
    yield kept[0]
