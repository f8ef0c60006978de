"""Random changes of valid files: of bytes, of the values in JSON, and texts made from a grammar."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

Files = dict[str, bytes]
"""The files of one input by their names; a name that ends in a slash is a folder."""

# What lengths, counts and places are set to: the ends of every width, and what overflows when it is multiplied.
NUMBERS = (
    0, 1, 2, 3, 7, 127, 128, 255, 256, 32767, 65535, 1 << 20, 1 << 24, 2**31 - 1, 2**31, 2**32 - 1, 1 << 32, 1 << 40, 1 << 53,
    1 << 60, 2**63 - 1, 1 << 63, 2**64 - 1,
)  # fmt: skip
_PIECES = (b"\xff" * 8, bytes(8), b"\xed\xa0\x80", b"\xc0\xaf", b"\xef\xbb\xbf", b"\r\n", b"\0", b"{", b"]", b'"', b"\\u", b"-")
TEXTS = (
    "", " ", "\0", "\n", "a\r\nb", "\u2028", "\ufeff", "\U0010ffff", "\u202e", "e\u0301", "\ufdfa", "../../x", "/dev/zero",
    "a" * 300, "{}", "%s%n", "-1", "1e400", "NaN", "<script>", "[bold]", "[/]", "true", "null", "none", "0x10",
)  # fmt: skip
# JSON that Python's own values cannot spell; they go in by their place.
_RAW = (
    "NaN", "Infinity", "-Infinity", "1e999", "-0", "-0.0", "1" + "0" * 400, "-" + "9" * 30, "9" * 5000, "1e-400", '"\\ud800"',
    '"\\udfff\\ud800"', "[" * 90 + "]" * 90, "[" * 900 + "]" * 900, "[" * 200_000, '{"a":' * 300 + "1" + "}" * 300,
    '{"a":' * 150_000 + "1" + "}" * 150_000, "1.0e+", "tru", '{"a": 1, "a": 2}',
)  # fmt: skip
_MARK = "\uf8ff"  # of private use: no seed has it
_PLACE = re.compile(f'"{_MARK}(\\d+)"')


def odd(rng: Random) -> Any:
    """Return a JSON value of any type that is seldom what is expected; some are marks that `dump` replaces by raw text."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice(NUMBERS) * rng.choice((1, 1, -1))
    if kind == 2:
        return rng.choice((0.0, -0.5, 1.5, 1e-300, 1e300, 1e15, 0.1, 2.0))
    if kind in (3, 4):
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice(([], {}, [[]], [1], ["a", "b"], {"a": 1}, [None], {"": {}}, [[1, 2], [3]], {"self": 1}))
    if kind == 6:
        return rng.randrange(-3, 70)
    return f"{_MARK}{rng.randrange(len(_RAW))}"


def dump(value: Any) -> bytes:
    """Return JSON, with raw text where `odd` left a mark."""
    text = json.dumps(value, ensure_ascii=False)
    if _MARK in text:
        text = _PLACE.sub(lambda found: _RAW[int(found[1])], text).replace(_MARK, "")  # of some only a part is left
    return text.encode(errors="surrogatepass")


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value inside, of a long list only the first and the last."""
    found: list[tuple[Any, Any]] = []
    left = [value] if isinstance(value, dict | list) else []
    while left:
        inside = left.pop()
        keys: Any = list(inside) if isinstance(inside, dict) else range(len(inside))
        if isinstance(inside, list) and len(inside) > 12:
            keys = [*range(6), *range(len(inside) - 2, len(inside))]
        for key in keys:
            found.append((inside, key))
            if isinstance(inside[key], dict | list):
                left.append(inside[key])
    return found


def changed(rng: Random, value: Any, places: list[tuple[Any, Any]] | None = None) -> Any:
    """Change one thing in `value`: gone, odd, another's, renamed, wrapped, scaled; return it, or what took its place."""
    places = _places(value) if places is None else places
    if not places or rng.random() < 0.01:
        return odd(rng)
    inside, key = rng.choice(places)
    if (isinstance(inside, list) and not -len(inside) <= key < len(inside)) or (isinstance(inside, dict) and key not in inside):
        return value  # an earlier change took it away
    kind, old = rng.randrange(10), inside[key]
    if kind == 0:
        del inside[key]
    elif kind == 1:
        other, place = rng.choice(places)
        inside[key] = json.loads(json.dumps(other[place])) if _there(other, place) else None
    elif kind == 2 and isinstance(inside, dict):
        del inside[key]
        inside[rng.choice((key + "s", key.upper(), key[:-1], *TEXTS))] = old
    elif kind == 3:
        inside[key] = rng.choice(([old], {"value": old}, [old, old]))
    elif kind == 4 and type(old) in (int, float):
        small = abs(old) < 1e300  # of others there is no half as a float
        inside[key] = rng.choice((-old, old + 1, old - 1, old * 2, old * 10**6, old / 2 if small else 0, str(old), bool(old)))
    elif kind == 5 and isinstance(old, str):
        at = rng.randrange(len(old) + 1)
        inside[key] = rng.choice((old[:at], old[:at] + rng.choice(TEXTS) + old[at:], old * 2, old[::-1]))
    elif kind == 6 and isinstance(old, list) and old:
        inside[key] = rng.choice((old[:-1], old + old, old[::-1], [*old, odd(rng)]))
    else:
        inside[key] = odd(rng)
    return value


def _there(inside: Any, key: Any) -> bool:
    return key < len(inside) if isinstance(inside, list) else key in inside


def json_bytes(rng: Random, content: bytes) -> bytes:
    """Return a JSON file with one to three values changed, now and then with a name twice or bytes changed besides."""
    try:
        value = json.loads(content)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            value = changed(rng, value) if isinstance(value, dict | list) else odd(rng)
        out = dump(value)
    except (ValueError, RecursionError):  # an earlier change left no JSON, or nothing that Python reads
        return mutated(rng, content)
    if rng.random() < 0.04 and isinstance(value, dict) and value:
        out = b"{" + dump(rng.choice(list(value))) + b": " + dump(odd(rng)) + b", " + out[1:]
    return mutated(rng, out) if rng.random() < 0.1 else out


def lines_bytes(rng: Random, content: bytes) -> bytes:
    """Return a file of JSON lines with some of them changed, twice, swapped or gone, and other line ends."""
    lines = content.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(8)
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines.insert(at, rng.choice(lines))
        elif kind == 2:
            lines[at] = rng.choice((b"", b" ", b"\r", b"null", b"[]", b"{}", b'"', b"\xff", dump(odd(rng))))
        elif lines[at].strip():
            lines[at] = json_bytes(rng, lines[at])
    return mutated(rng, b"\n".join(lines)) if rng.random() < 0.1 else b"\n".join(lines)


def mutated(rng: Random, content: bytes, others: Sequence[bytes] = (), head: int = 400) -> bytes:
    """Return bytes with one to four changes: bits, numbers of any width, pieces cut, doubled or taken from `others`, an end.

    Half of the changes lie in the first `head` bytes, where formats keep what they say of themselves.
    """
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        size = len(out)
        at = rng.randrange(min(size, head) if rng.random() < 0.5 else size) if size else 0
        kind = rng.randrange(9)
        if kind == 0 and size:
            out[at] ^= 1 << rng.randrange(8)
        elif kind in (1, 2):
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice((*NUMBERS, size, size - at, rng.randrange(1 << 16))) % (1 << 8 * width)
            out[at : at + width] = number.to_bytes(width, rng.choice(("little", "little", "big")))
        elif kind == 3:
            del out[at : at + rng.choice((1, 2, 8, 64))]
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((1, 4, 16, 64))]
        elif kind == 5:
            out[at:at] = rng.choice(_PIECES) if rng.random() < 0.7 else rng.randbytes(rng.randrange(1, 9))
        elif kind == 6 and rng.random() < 0.5:
            del out[at:]
        elif kind == 7 and others:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            piece = other[start : start + rng.choice((4, 32, 256))]
            out[at : at + len(piece)] = piece
        elif size:
            out[at] = rng.randrange(256)
    return bytes(out)


def grown(rng: Random, grammar: Mapping[str, Sequence[str]], symbol: str = "start", depth: int = 12) -> str:
    """Return a text of a grammar: `<name>` in a rule stands for one of that name's rules, beyond `depth` for its first."""
    rules = grammar[symbol]
    rule = rules[0] if depth <= 0 else rng.choice(rules)
    return re.sub(r"<(\w+)>", lambda found: grown(rng, grammar, found[1], depth - 1) if found[1] in grammar else found[0], rule)


def one_of(rng: Random, seeds: Sequence[Files], change: Callable[[Random, str, bytes], bytes]) -> Files:
    """Return a seed with one of its files changed, now and then two, one missing, or one empty."""
    files = dict(rng.choice(seeds))
    names = [name for name in files if not name.endswith("/")]
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2)))):
        if rng.random() < 0.02:
            files.pop(name)
        else:
            files[name] = b"" if rng.random() < 0.01 else change(rng, name, files[name])
    return files


def by_name(rng: Random, name: str, content: bytes) -> bytes:
    """Return a file changed as its name says what it holds."""
    if name.endswith(".json"):
        return json_bytes(rng, content)
    return lines_bytes(rng, content) if name.endswith(".jsonl") else mutated(rng, content)
