"""Files of others that are not what they should be, named as faults of the file."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxlm.errors import DataError


@contextmanager
def damage_named(origin: str) -> Iterator[None]:
    """Turn whatever goes wrong while values of a stranger's file are read into a DataError that names the file.

    A value of another type than the format's shows as one of Python's errors wherever it is first used. The library
    `tokenizers` raises plain Exceptions, and panics, which are none.
    """
    try:
        yield
    except DataError:
        raise
    except BaseException as error:
        lookup = isinstance(error, ArithmeticError | AttributeError | LookupError | RecursionError | TypeError | ValueError)
        if not lookup and type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{origin} is damaged, a value in it is not what it should be: {error}") from error


def check_unicode(text: str) -> str:
    """Return the text, or raise DataError where it holds a lone surrogate, which has no bytes: a bad byte of a command line."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20].encode(errors="replace").decode()
        raise DataError(f"the text {around!r} is no valid Unicode at character {error.start}: give it as UTF-8") from error
    return text
