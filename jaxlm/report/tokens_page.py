"""Tokens as one HTML file without a network: text in colours, numbers by mouse, finger or keyboard; to search and to print."""

import html
import itertools
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jaxlm.report.token_difference import Difference, Span
from jaxlm.report.token_reading import Document, Reading, Token
from jaxlm.report.token_scales import (
    DARK_DIVERGING,
    DARK_SEQUENTIAL,
    DIFFERENCES,
    DIVERGING,
    ENTROPIES,
    PROBABILITY,
    RANKS,
    SEQUENTIAL,
    Colours,
    level_of_difference,
    level_of_entropy,
    level_of_log_prob,
    level_of_rank,
    probability,
)
from jaxlm.report.token_text import Piece, pieces
from jaxlm.report.tokens_terminal import before, described, difference_described, first_foretold, least_likely, shown, span_text

LISTED = 25
KINDS = {"probability": "p", "rank": "k", "entropy": "e", "difference": "d"}
"""What tokens are coloured by, and the letter of its levels' classes."""
MARKS = {
    "space": '<i class="s"> </i>', "newline": '<i class="n">\n</i>', "tab": '<i class="b">\t</i>', "rest": '<i class="r"></i>',
}  # fmt: skip
# Nothing is fetched, and no script runs but the page's own.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(left: Reading, right: Reading | None = None, difference: Difference | None = None) -> str:
    """Return a page of documents, tokens coloured by what the model made of them or by how much better than another it was."""
    spans = _spans_of_tokens(difference)
    mode = "probability" if difference is None else "difference"
    title = f"{left.name}, step {left.step}" + (f" against {right.name}, step {right.step}" if right else "")
    facts = [described(reading) for reading in (left, right) if reading is not None]
    if difference is not None:
        facts.append(difference_described(left, difference))
    notes = dict.fromkeys((*left.notes, *(right.notes if right else ())))
    parts = [
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">', f"<title>{_text(title)}: tokens</title>",
        f"<style>{_template('tokens.css')}{_colours()}</style></head>", f'<body class="marks" data-mode="{mode}">',
        f"<h1>{_text(title)}</h1>", *(f"<p>{_text(fact)}</p>" for fact in facts),
        *(f'<p class="soft">{_text(note)}</p>' for note in notes),
        "<noscript><p>Without JavaScript there are the colours and the tables, but not each token's numbers.</p></noscript>",
        _controls(mode, difference), _legends(difference),
    ]  # fmt: skip
    starts = list(itertools.accumulate((len(document.tokens) for document in left.documents), initial=0))
    for place, (document, start) in enumerate(zip(left.documents, starts, strict=False)):
        parts += [f"<h2>{_text(document.name)}</h2>", f'<div class="text">{_document(document, place, start, spans)}</div>']
    if right is None or difference is None:
        parts.append(_least_likely(left, starts))
    else:
        for heading, largest in zip(("Better by most", "Worse by most"), difference.largest(LISTED), strict=True):
            parts.append(_largest(heading, largest, left, right, starts))
    values = json.dumps(_data(left, right, difference, spans), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    values = values.replace("<", "\\u003c")  # no text can end the script
    parts += [
        '<div id="panel" role="region" aria-label="Numbers of the chosen token" aria-live="polite">'
        '<p class="soft">Point at a token, tap it, or move with the tab and arrow keys.</p></div>',
        f'<script type="application/json" id="data">{values}</script>', f"<script>{_template('tokens.js')}</script>",
        "</body></html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _template(name: str) -> str:
    return resources.files("jaxlm.report").joinpath("templates", name).read_text(encoding="utf-8")


def _colours() -> str:
    """Return the rules that give levels their colours, for light and dark."""

    def rules(prefix: str, sequential: Colours, diverging: Colours) -> str:
        return "".join(
            f"{prefix} [data-mode={mode}] .{letter}{level},{prefix} .legend .{letter}{level}"
            f"{{background:{background};color:{foreground}}}"
            for mode, letter in KINDS.items()
            for level, (background, foreground) in enumerate(diverging if mode == "difference" else sequential)
        )

    shown = "".join(f"[data-mode={mode}] .legend.{mode}{{display:flex}}" for mode in KINDS)
    light, dark = rules(":root", SEQUENTIAL, DIVERGING), rules(":root[data-theme=dark]", DARK_SEQUENTIAL, DARK_DIVERGING)
    unset = rules(":root:not([data-theme=light])", DARK_SEQUENTIAL, DARK_DIVERGING)
    return f"{shown}{light}@media screen and (prefers-color-scheme:dark){{{unset}}}@media screen{{{dark}}}"


def _controls(mode: str, difference: Difference | None) -> str:
    modes = ["probability", "rank", "entropy", *(["difference"] if difference is not None else [])]
    radios = "".join(
        f'<label><input type="radio" name="mode" value="{name}"{" checked" if name == mode else ""}> {name}</label>'
        for name in modes
    )
    return (
        f'<div class="controls"><fieldset><legend>colour by</legend>{radios}</fieldset>'
        '<label><input type="checkbox" id="marks" checked> show spaces and line ends</label>'
        '<button id="theme" type="button">light or dark</button><button id="csv" type="button">numbers as CSV</button></div>'
    )


def _legends(difference: Difference | None) -> str:
    ranks = ["1", "2", *(f"to {rank:,}" for rank in RANKS[2:]), f"over {RANKS[-1]:,}"]
    scales = {
        "probability": ("p", "probability, %", [name.removesuffix(" %") for _, name in PROBABILITY]),
        "rank": ("k", "rank", ranks),
        "entropy": ("e", "entropy, nats", [*(f"to {greatest:g}" for greatest in ENTROPIES), f"over {ENTROPIES[-1]:g}"]),
    }
    if difference is not None:
        # Each level by its end further from 0.
        inner = [*(f"{value:+g}" for value in DIFFERENCES[:3]), "0", *(f"{value:+g}" for value in DIFFERENCES[5:])]
        names = [f"under {DIFFERENCES[0]:g}", *inner, f"over {DIFFERENCES[-1]:g}"]
        scales["difference"] = ("d", f"nats better than the other, a {difference.unit}: orange worse, blue better", names)
    return "".join(
        f'<div class="legend {mode}"><b>{title}</b>'
        + "".join(f'<span class="{letter}{level}">{_text(name)}</span>' for level, name in enumerate(names))
        + '<span class="soft">not foretold</span></div>'
        for mode, (letter, title, names) in scales.items()
    )


Spans = dict[tuple[int, int], tuple[int, Span]]
"""The span that a token is in, and its number, by document and place."""


def _spans_of_tokens(difference: Difference | None) -> Spans:
    spans = difference.spans if difference is not None else []
    return {(span.document, place): (number, span) for number, span in enumerate(spans) for place in span.left}


def _document(document: Document, number: int, first: int, spans: Spans) -> str:
    """Return a document as elements, one a token; those of the page are counted, `first` is that of its first."""
    elements = []
    for place, (token, parts) in enumerate(
        zip(document.tokens, pieces([token.content for token in document.tokens]), strict=True)
    ):
        _, span = spans.get((number, place), (0, None))
        levels = _levels(token)
        if span is not None and span.difference is not None and (token.content or token.log_prob is not None):
            levels += f" d{level_of_difference(span.difference)}"
        elements.append(f'<span class="t {levels}" id="t{first + place}" tabindex="-1">{_token(token, parts)}</span>')
    return "".join(elements)


def _levels(token: Token) -> str:
    if token.log_prob is None:
        return "none"
    return f"p{level_of_log_prob(token.log_prob)} k{level_of_rank(token.rank)} e{level_of_entropy(token.entropy)}"


def _token(token: Token, parts: Sequence[Piece]) -> str:
    if token.name:
        return f'<i class="special">{_text(token.name)}</i>'
    return "".join(
        MARKS.get(part.kind) or (_text(part.text) if part.kind in ("text", "cut") else f'<i class="odd">{_text(part.text)}</i>')
        for part in parts
    )


def _table(heading: str, columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> str:
    """Return a table under a heading; a column is its name and whether it holds numbers."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col"{" class=num" if number else ""}>{name}</th>' for name, number in columns)
    kinds = ["num" if number else "tok" for _, number in columns]
    body = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<h2>{heading}</h2><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _likeliest(token: Token, reading: Reading) -> str:
    pairs = ((_text(reading.spelling(number)), probability(log_prob)) for number, log_prob in token.top)
    return " ".join(f'<span class="alt">{name} <small>{chance}</small></span>' for name, chance in pairs)


def _link(text: str, number: int) -> str:
    return f'<a href="#t{number}"><strong>{_text(text)}</strong></a>'


def _least_likely(reading: Reading, starts: Sequence[int]) -> str:
    rows = []
    for number, place in least_likely(reading, LISTED):
        document = reading.documents[number]
        token = document.tokens[place]
        numbers = f"{token.log_prob:.3f}", f"{token.rank:,}", f"{token.entropy:.3f}"
        rows.append(
            (_text(before(document, place)), _link(shown(token), starts[number] + place), *numbers, _likeliest(token, reading))
        )
    columns = ("after", False), ("token", False), ("nats", True), ("rank", True), ("entropy", True), ("likeliest", False)
    return _table("Least likely", columns, rows)


def _largest(heading: str, spans: Sequence[Span], left: Reading, right: Reading, starts: Sequence[int]) -> str:
    rows = []
    for span in spans:
        one, other = left.documents[span.document], right.documents[span.document]
        text = span_text(one, span.left)
        numbers = f"{span.difference:+.3f}", f"{span.left_nats:.3f}", f"{span.right_nats:.3f}"
        likeliest = _likeliest(first_foretold(one, span.left), left), _likeliest(first_foretold(other, span.right), right)
        link = _link(text, starts[span.document] + span.left.start)
        rows.append((_text(before(one, span.left.start)), link, *numbers, *likeliest))
    columns = (
        ("after", False), ("text", False), ("difference, nats", True), ("log-probability", True), ("against", True),
        ("likeliest", False), ("likeliest of the other", False),
    )  # fmt: skip
    return _table(heading, columns, rows)


def _data(left: Reading, right: Reading | None, difference: Difference | None, spans: Spans) -> dict[str, Any]:
    """Return what the page's script shows of the token that is pointed at."""
    names: dict[str, str] = {}

    def values(token: Token, reading: Reading, span: int | None = None) -> list[Any]:
        top = []
        for number, log_prob in token.top:
            name = names.setdefault(reading.spelling(number), str(len(names)))
            top.append([int(name), round(log_prob, 5)])
        log_prob = None if token.log_prob is None else round(token.log_prob, 6)
        return [shown(token), token.id, log_prob, token.rank, round(token.entropy, 5), top, token.experts, span]

    tokens = [
        values(token, left, spans[number, place][0] if (number, place) in spans else None)
        for number, document in enumerate(left.documents)
        for place, token in enumerate(document.tokens)
    ]
    found = {"title": f"{left.name}, step {left.step}", "tokens": tokens, "layers": left.moe_layers}
    if right is not None and difference is not None:
        found["against"] = f"{right.name}, step {right.step}"
        found["spans"] = [
            [
                span.left_nats, span.right_nats,
                span_text(left.documents[span.document], span.left),
                [values(right.documents[span.document].tokens[place], right) for place in span.right],
            ]
            for span in difference.spans
        ]  # fmt: skip
    return found | {"names": list(names)}
