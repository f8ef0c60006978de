"""How much better one model foretells a text than another, token by token."""

import math
from typing import NamedTuple

from jaxlm.errors import DataError
from jaxlm.report.token_reading import Document, Reading
from jaxlm.report.token_text import spans


class Span(NamedTuple):
    """The shortest stretch of a document that both models cut alike: with one tokenizer, a token."""

    document: int
    left: range
    """Its tokens in the first reading."""
    right: range
    left_nats: float | None
    """Log-probability of the stretch under the first model; None where one of the two did not foretell all of it."""
    right_nats: float | None

    @property
    def difference(self) -> float | None:
        """Nats by which the first model foretells it better."""
        return None if self.left_nats is None or self.right_nats is None else self.left_nats - self.right_nats


class Difference(NamedTuple):
    """Two readings of one text."""

    spans: list[Span]
    unit: str
    """What a span is: "token", or "stretch" where tokenizers differ."""
    summary: dict[str, float]
    """Over all spans that both foretold: nats (their sum), bits_per_byte of the left and of the right, better, worse and equal
    (shares of spans), spans and bytes."""
    context: str = ""
    """How far back both looked, where one of them alone would have looked further."""

    def largest(self, count: int) -> tuple[list[Span], list[Span]]:
        """Return the spans that the first model foretells better by most, and those that it foretells worse by most."""
        counted = sorted((span for span in self.spans if span.difference is not None), key=lambda span: span.difference)
        gains = [span for span in reversed(counted[-count:]) if span.difference > 0]
        return gains, [span for span in counted[:count] if span.difference < 0]


def compare(left: Reading, right: Reading, context: str = "") -> Difference:
    """Return how two readings of the same documents differ.

    Where their tokens differ, log-probabilities are added up between the offsets, in bytes, where both have a token's end.
    Raises DataError where a tokenizer does not give the bytes of a text back: then there is nothing to align.
    """
    found: list[Span] = []
    same = True
    for number, pair in enumerate(zip(left.documents, right.documents, strict=True)):
        ids = [[token.id for token in document.tokens] for document in pair]
        if ids[0] == ids[1]:
            aligned = [(range(place, place + 1), range(place, place + 1)) for place in range(len(ids[0]))]
        else:
            aligned, same = _aligned(*pair, left, right), False
        for here, there in aligned:
            nats = _nats(pair[0], here), _nats(pair[1], there)
            found.append(Span(number, here, there, *((None, None) if None in nats else nats)))
    return Difference(found, "token" if same else "stretch", _summary(found, left), context)


def _aligned(one: Document, other: Document, left: Reading, right: Reading) -> list[tuple[range, range]]:
    try:
        return spans([token.content for token in one.tokens], [token.content for token in other.tokens])
    except ValueError as fault:
        raise DataError(
            f"{one.name} cannot be compared: the tokens of {left.folder} and of {right.folder} are not of the same bytes, for "
            "one of the tokenizers changes the text it reads (its case, its spaces or its accents, say)"
        ) from fault


def _nats(document: Document, tokens: range) -> float | None:
    """Return the log-probability of a stretch; None where one of its tokens was not foretold (unless it has no bytes)."""
    values = [document.tokens[place].log_prob for place in tokens]
    contents = [document.tokens[place].content for place in tokens]
    # What stands before a text alone, such as bos, goes with its first token.
    skipped = [value is None and not content for value, content in zip(values, contents, strict=True)]
    if all(skipped) or any(value is None and not skip for value, skip in zip(values, skipped, strict=True)):
        return None
    return math.fsum(value for value in values if value is not None)


def _summary(found: list[Span], left: Reading) -> dict[str, float]:
    counted = [span for span in found if span.difference is not None]
    differences = [span.difference for span in counted]
    count = max(1, len(counted))
    size = sum(len(left.documents[span.document].tokens[place].content) for span in counted for place in span.left)
    per_byte = 1 / math.log(2) / size if size else math.nan
    return {
        "nats": math.fsum(differences),
        "nats_per_span": math.fsum(differences) / count,
        "bits_per_byte": -math.fsum(span.left_nats for span in counted) * per_byte,
        "against_bits_per_byte": -math.fsum(span.right_nats for span in counted) * per_byte,
        "better": sum(d > 0 for d in differences) / count,
        "worse": sum(d < 0 for d in differences) / count,
        "equal": sum(d == 0 for d in differences) / count,
        "spans": len(counted),
        "bytes": size,
    }
