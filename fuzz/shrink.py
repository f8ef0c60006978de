"""An input that fails, made smaller for as long as it fails in the same way."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from fuzz.mutate import Files


def shrunk(files: Files, fails: Callable[[Files], bool], seconds: float = 8.0) -> Files:
    """Return the smallest input found within `seconds` for which `fails` holds, as it does for `files`."""
    until = time.monotonic() + seconds
    smaller = True
    while smaller:
        smaller = False
        for candidate in _candidates(files):
            if time.monotonic() > until:
                return files
            if fails(candidate):
                files, smaller = candidate, True
                break
    return files


def _candidates(files: Files) -> Iterator[Files]:
    """Yield smaller inputs: without a file, without a part of its JSON, without a stretch of its bytes, the greatest first."""
    for name in files:
        if len(files) > 1:
            yield {other: content for other, content in files.items() if other != name}
    for name, content in sorted(files.items(), key=lambda item: -len(item[1])):
        for value in _smaller_values(content):
            made = json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")
            if len(made) < len(content):
                yield files | {name: made}
    for name, content in sorted(files.items(), key=lambda item: -len(item[1])):
        size = len(content) // 2
        while size >= 1 and (size > 8 or len(content) <= 600):
            for start in range(0, len(content), size):
                yield files | {name: content[:start] + content[start + size :]}
            size //= 2


def _smaller_values(content: bytes) -> Iterator[Any]:
    """Yield a JSON file's value without one thing in it; nothing where it is no JSON that Python spells as it is."""
    try:
        value = json.loads(content)
        whole = json.dumps(value)
    except (ValueError, RecursionError):
        return
    if not isinstance(value, dict | list):
        return
    count = _number_of_places(value)
    for place in range(count):
        copy = json.loads(whole)
        _without(copy, place)
        yield copy


def _number_of_places(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(1 + _number_of_places(each) for each in inner)


def _without(value: Any, place: int) -> int:
    """Remove the thing at a place, counted from the outside in; return how many places are left to count."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in keys:
        if place == 0:
            del value[key]
            return -1
        place = _without(value[key], place - 1)
        if place < 0:
            return -1
    return place
