"""Tokens in a terminal: text on the colour of its probability, tables of what stands out, and the same as JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxlm.report.token_difference import Difference, Span
from jaxlm.report.token_reading import Document, Reading, Token
from jaxlm.report.token_scales import DIVERGING, PROBABILITY, SEQUENTIAL, level_of_difference, level_of_log_prob, probability
from jaxlm.report.token_text import pieces, visible

SHOWN = 10
"""Rows of a table of what stands out."""


def shown(token: Token) -> str:
    """Return a token as text in which everything is visible."""
    return token.name or visible(token.content)


def show(left: Reading, right: Reading | None, difference: Difference | None, out: Console | None = None) -> None:
    """Print documents on colours, and the tokens that stand out; where there is no terminal, a line a token."""
    out = out or Console(highlight=False)
    for reading in (left, right):
        if reading is not None:
            out.print(described(reading), markup=False, soft_wrap=True)
    if difference is not None:
        out.print(difference_described(left, difference), markup=False, soft_wrap=True)
    if not out.is_terminal:
        out.width = max(out.width, 200)
        for number, document in enumerate(left.documents):
            out.print(f"\n{document.name}", markup=False)
            out.print(_every_token(left, document, _by_token(number, difference)))
        return
    out.print(_legend(difference))
    for number, document in enumerate(left.documents):
        out.rule(Text(document.name), style="dim", align="left")
        out.print(coloured(document, None if difference is None else _by_token(number, difference)), soft_wrap=False)
    out.rule(style="dim")
    if difference is None or right is None:
        out.print(_least_likely(left))
        return
    for title, spans in zip(("better", "worse"), difference.largest(SHOWN), strict=True):
        if spans:
            out.print(_largest(f"{title} by most", spans, left, right))


def described(reading: Reading) -> str:
    """Return a reading's loss and its kin in a line."""
    means = reading.summary
    return (
        f"{reading.name} in {reading.folder}, step {reading.step}: {means['tokens']:,.0f} tokens, "
        f"loss {means['loss']:.4f} nats, perplexity {means['perplexity']:.2f}, {means['bits_per_byte']:.4f} bits/byte, "
        f"accuracy {100 * means['accuracy']:.1f} %"
    )


def difference_described(left: Reading, difference: Difference) -> str:
    """Return how much better the first model is, in a line."""
    means, unit = difference.summary, difference.unit
    plural = f"{unit}s" if unit == "token" else "stretches"
    better = "better" if means["nats"] >= 0 else "worse"
    return (
        f"{left.name}, step {left.step}, is {better} by {abs(means['nats']):.3f} nats in all, "
        f"{abs(means['nats_per_span']):.4f} a {unit} ({means['bits_per_byte']:.4f} bits/byte against "
        f"{means['against_bits_per_byte']:.4f}): better on "
        f"{100 * means['better']:.1f} %, worse on {100 * means['worse']:.1f} % of {means['spans']:,} {plural}"
        + (f"; {difference.context}" if difference.context else "")
    )


def coloured(document: Document, differences: dict[int, float | None] | None = None) -> Text:
    """Return a document's text, each token on the colour of its probability, or of its difference where there are any."""
    text = Text()
    for place, (token, parts) in enumerate(
        zip(document.tokens, pieces([token.content for token in document.tokens]), strict=True)
    ):
        foretold = token.content or token.log_prob is not None  # bos is in the stretch of what follows it
        value = token.log_prob if differences is None else differences.get(place) if foretold else None
        style = "dim"
        if value is not None:
            colours = SEQUENTIAL if differences is None else DIVERGING
            level = level_of_log_prob(value) if differences is None else level_of_difference(value)
            background, foreground = colours[level]
            style = f"{foreground} on {background}"
        if token.name:
            text.append(token.name, style=f"italic {style}")
        for part in parts:
            marked = {"newline": "↵\n", "tab": "→", "rest": "‥"}.get(part.kind, part.text)
            text.append(marked, style=f"underline {style}" if part.kind in ("byte", "escape", "cut") else style)
    return text


def _legend(difference: Difference | None) -> Text:
    """Return what the colours mean."""
    if difference is None:
        text, names, colours = Text("probability  "), [name for _, name in PROBABILITY], SEQUENTIAL
    else:
        text, colours = Text("nats better than the other  "), DIVERGING
        names = ["< -2", "-2", "-1", "-½", "0", "½", "1", "2", "> 2"]
    for name, (background, foreground) in zip(names, colours, strict=True):
        text.append(f" {name} ", style=f"{foreground} on {background}")
    return text.append("   ↵ → ‥ are a line's end, a tab, the rest of a character; grey is not foretold", style="dim")


def _by_token(document: int, difference: Difference | None) -> dict[int, float | None]:
    """Return the difference of the span that each token of a document is in."""
    spans = difference.spans if difference is not None else []
    return {place: span.difference for span in spans if span.document == document for place in span.left}


def _likeliest(token: Token, reading: Reading) -> str:
    return "  ".join(f"{reading.spelling(number)} {probability(log_prob)}" for number, log_prob in token.top)


def _table(columns: Iterable[str], title: str | None = None) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for column in columns:
        left = column in ("token", "after", "experts", "text") or column.startswith("likeliest")
        table.add_column(column, justify="left" if left else "right", overflow="fold" if left else "ellipsis")
    return table


def _numbers(token: Token) -> list[str]:
    if token.log_prob is None:
        return ["-"] * 4
    return [f"{token.log_prob:.4f}", probability(token.log_prob), f"{token.rank:,}", f"{token.entropy:.3f}"]


def _every_token(reading: Reading, document: Document, differences: dict[int, float | None]) -> Table:
    experts, columns = bool(reading.moe_layers), ["place", "id", "token", "log-prob", "probability", "rank", "entropy"]
    table = _table([*columns, *(["difference"] if differences else []), *(["experts"] if experts else []), "likeliest"])
    for place, token in enumerate(document.tokens):
        cells = [str(place), str(token.id), Text(shown(token)), *_numbers(token)]
        if differences:
            value = differences.get(place) if token.content or token.log_prob is not None else None
            cells.append("-" if value is None else f"{value:+.4f}")
        if experts:
            cells.append(" | ".join(",".join(map(str, layer)) for layer in token.experts or ()) or "-")
        table.add_row(*cells, Text(_likeliest(token, reading)))
    return table


def before(document: Document, place: int, count: int = 24) -> str:
    """Return the end of the text before a token, about so many bytes of whole tokens, everything visible."""
    content = b""
    for token in reversed(document.tokens[:place]):
        if len(content) >= count or token.name:
            break
        content = token.content + content
    return visible(content)


def span_text(document: Document, places: range) -> str:
    """Return a stretch of tokens, everything visible; special ones only where there is nothing else."""
    tokens = document.tokens[places.start : places.stop]
    return visible(b"".join(token.content for token in tokens)) or "".join(token.name for token in tokens)


def first_foretold(document: Document, places: range) -> Token:
    """Return the first token of a stretch of which the model said anything."""
    tokens = document.tokens[places.start : places.stop]
    return next((token for token in tokens if token.log_prob is not None), tokens[0])


def least_likely(reading: Reading, count: int = SHOWN) -> list[tuple[int, int]]:
    """Return where, as document and place, the tokens of the lowest probability stand."""
    places = [
        (token.log_prob, number, place)
        for number, document in enumerate(reading.documents)
        for place, token in enumerate(document.tokens)
        if token.log_prob is not None
    ]
    return [(number, place) for _, number, place in sorted(places)[:count]]


def _least_likely(reading: Reading) -> Table:
    table = _table(("after", "token", "log-prob", "probability", "rank", "entropy", "likeliest"), "least likely")
    for number, place in least_likely(reading):
        document = reading.documents[number]
        token = document.tokens[place]
        table.add_row(
            Text(before(document, place)), Text(shown(token), "bold"), *_numbers(token), Text(_likeliest(token, reading))
        )
    return table


def _largest(title: str, spans: Sequence[Span], left: Reading, right: Reading) -> Table:
    table = _table(("after", "text", "difference", "log-prob", "against", "likeliest", "likeliest of the other"), title)
    for span in spans:
        one, other = left.documents[span.document], right.documents[span.document]
        text = span_text(one, span.left)
        table.add_row(
            Text(before(one, span.left.start)), Text(text, "bold"), f"{span.difference:+.3f}", f"{span.left_nats:.3f}",
            f"{span.right_nats:.3f}", Text(_likeliest(first_foretold(one, span.left), left)),
            Text(_likeliest(first_foretold(other, span.right), right)),
        )  # fmt: skip
    return table


def as_json(left: Reading, right: Reading | None, difference: Difference | None) -> dict[str, Any]:
    """Return all of it as plain values: texts as `visible` spells them, log-probabilities and entropies in nats."""
    found = _reading_as_json(left)
    if right is None or difference is None:
        return found
    spans = [
        {
            "document": span.document, "tokens": [span.left.start, span.left.stop],
            "against_tokens": [span.right.start, span.right.stop],
            "log_prob": span.left_nats, "against_log_prob": span.right_nats, "difference": span.difference,
        }
        for span in difference.spans
    ]  # fmt: skip
    return found | {
        "against": _reading_as_json(right),
        "difference": difference.summary | {"of": spans, "unit": difference.unit, "context": difference.context},
    }


def _reading_as_json(reading: Reading) -> dict[str, Any]:
    def token_as_json(token: Token) -> dict[str, Any]:
        values = {"id": token.id, "text": visible(token.content)} | ({"special": token.name} if token.name else {})
        if token.log_prob is None:
            return values
        top = [{"id": number, "text": reading.spelling(number), "log_prob": log_prob} for number, log_prob in token.top]
        values |= {"log_prob": token.log_prob, "rank": token.rank, "entropy": token.entropy, "top": top}
        return values | ({} if token.experts is None else {"experts": token.experts})

    documents = [{"name": d.name, "tokens": [token_as_json(token) for token in d.tokens]} for d in reading.documents]
    layers = {"mixture_layers": reading.moe_layers} if reading.moe_layers else {}
    about = {"run": str(reading.folder), "name": reading.name, "step": reading.step}
    return about | reading.summary | layers | {"documents": documents}
