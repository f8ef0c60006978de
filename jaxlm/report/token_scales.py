"""From numbers to a few levels, and from levels to colours that the colour-blind can tell apart."""

import math
from bisect import bisect_right

PROBABILITY = ((0.9, "> 90 %"), (0.5, "50"), (0.2, "20"), (0.05, "5"), (0.01, "1"), (0.001, "0.1"), (0.0, "less"))
"""The least probability of each level, and its name."""
RANKS = (1, 2, 5, 20, 100, 1000)
"""The greatest rank of each level but the last."""
ENTROPIES = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
"""The greatest entropy of each level but the last, nats."""
DIFFERENCES = (-2.0, -1.0, -0.5, -0.1, 0.1, 0.5, 1.0, 2.0)
"""Where levels of a difference in nats meet."""

Colours = tuple[tuple[str, str], ...]
"""(background, foreground) by level."""

# Sequential: from nothing to dark purple, lightness falling evenly (ColorBrewer's BuPu);
# diverging: orange for worse, blue for better.
SEQUENTIAL: Colours = (
    ("#f7fcfd", "#000000"), ("#e0ecf4", "#000000"), ("#bfd3e6", "#000000"), ("#9ebcda", "#000000"), ("#8c96c6", "#000000"),
    ("#88419d", "#ffffff"), ("#4d004b", "#ffffff"),
)  # fmt: skip
DIVERGING: Colours = (
    ("#8c3a00", "#ffffff"), ("#d9700a", "#000000"), ("#f5ae5f", "#000000"), ("#fcdcb4", "#000000"), ("#f7f7f7", "#000000"),
    ("#cfe3f2", "#000000"), ("#92c0e0", "#000000"), ("#4a90c4", "#000000"), ("#0b4a82", "#ffffff"),
)  # fmt: skip

# The same on a dark page: nothing is dark there, and much is light.
DARK_SEQUENTIAL: Colours = (
    ("#12161d", "#e6edf3"), ("#1d2a3a", "#e6edf3"), ("#2b3f60", "#e6edf3"), ("#465292", "#ffffff"), ("#7a62b8", "#ffffff"),
    ("#b780d2", "#000000"), ("#f0b6ea", "#000000"),
)  # fmt: skip
DARK_DIVERGING: Colours = (
    ("#ffb870", "#000000"), ("#d0761f", "#000000"), ("#8f4d10", "#ffffff"), ("#4b2e14", "#ffffff"), ("#1c2128", "#e6edf3"),
    ("#14314c", "#ffffff"), ("#1d5888", "#ffffff"), ("#4593d3", "#000000"), ("#a6d4ff", "#000000"),
)  # fmt: skip


def level_of_log_prob(log_prob: float) -> int:
    """Return 0 (likely) to 6."""
    chance = math.exp(log_prob)
    return next((level for level, (least, _) in enumerate(PROBABILITY) if chance >= least), len(PROBABILITY) - 1)


def level_of_rank(rank: int) -> int:
    """Return 0 (the likeliest token) to 6."""
    return sum(rank > greatest for greatest in RANKS)


def level_of_entropy(entropy: float) -> int:
    """Return 0 (certain) to 6."""
    return sum(entropy > greatest for greatest in ENTROPIES)


def level_of_difference(nats: float) -> int:
    """Return 0 (worse by far) to 8 (better by far); 4 is no difference to speak of."""
    return bisect_right(DIFFERENCES, nats)


def probability(log_prob: float) -> str:
    """Return a probability in a few characters."""
    percent = 100 * math.exp(log_prob)
    return f"{percent:.1f}%" if percent >= 0.1 else f"{percent:.0e}%"
