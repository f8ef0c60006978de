"""The other side of `paired.py`'s protocol, for programs that are measured in turn; it needs nothing but Python."""

import json
import sys
from collections.abc import Callable
from typing import Any


def serve(measure: Callable[[float], dict[str, Any]]) -> None:
    """Say `ready`, then answer each line `measure SECONDS` with one line of JSON, until `quit` or the end of input."""
    print("ready", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["measure", seconds]:
                print(json.dumps(measure(float(seconds))), flush=True)
            case ["quit"]:
                return
            case _:
                sys.exit(f"expected `measure SECONDS` or `quit`, got: {line.strip()}")
