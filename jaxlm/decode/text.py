"""Text from tokens as they come: whole characters only, and nothing that may turn out to begin a stop string."""

import codecs
from collections.abc import Sequence

from jaxlm.data.damage import check_unicode
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.errors import DataError


class TextStream:
    """The text of one continuation, token by token.

    `text` is what can no longer change. A stop string is found wherever it ends, across tokens too; the text ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        """Begin with no text; empty stop strings are ignored."""
        self.text, self.stopped = "", False
        self._tokenizer, self._stop = tokenizer, [string for string in stop if string]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, token: int) -> None:
        """Add one token."""
        self._take(self._decoder.decode(self._tokenizer.decode_bytes([token])))

    def finish(self) -> None:
        """Add what was held back: no more tokens come."""
        self._take(self._decoder.decode(b"", final=True))
        self.text, self._held = self.text + self._held, ""

    def _take(self, new: str) -> None:
        if self.stopped:
            return
        self._held += new
        found = [at for at in (self._held.find(string) for string in self._stop) if at >= 0]
        if found:
            self.text, self._held, self.stopped = self.text + self._held[: min(found)], "", True
            return
        kept = max((_overlap(self._held, string) for string in self._stop), default=0)
        free = len(self._held) - kept
        self.text, self._held = self.text + self._held[:free], self._held[free:]


def check_text(text: str, where: str) -> None:
    """Raise DataError, which begins with `where`, if text from a command line or JSON holds half a character."""
    try:
        check_unicode(text)
    except DataError as fault:
        raise DataError(f"{where}: {fault}") from fault


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest end of `text` that begins `string`."""
    longest = min(len(text), len(string) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(string[:size])), 0)
