"""The order of training rows as arithmetic: which row stands at a place is computed, so seeking there costs nothing."""

import hashlib

import numpy as np

_ROUNDS = 6
_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], np.uint64)  # odd; the first is 2^64 / golden ratio
_RESOLUTION = 1 << 24  # of weights; places up to 2^39 then multiply without overflow


def shuffled(places: np.ndarray, size: int, seed: str) -> np.ndarray:
    """Return the item at each of `places` (int64) of an endless sequence, each `size` of which hold 0..size-1 in another order.

    A Feistel network permutes the numbers of as many bits as `size` - 1 has, and one that falls at or above `size` is put
    through it again (cycle walking: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
    """
    epochs, places = np.divmod(places, size)
    keys = np.frombuffer(hashlib.blake2b(seed.encode(), digest_size=8 * _ROUNDS).digest(), "<u8")[:, None]
    keys = keys + epochs.astype(np.uint64) * _MULTIPLIERS[0]
    low_bits = max((size - 1).bit_length(), 2) // 2
    high_bits = max((size - 1).bit_length(), 2) - low_bits
    items, outside = places.astype(np.uint64), np.arange(len(places))
    while outside.size:
        items[outside] = _permuted(items[outside], keys[:, outside], low_bits, high_bits)
        outside = outside[items[outside] >= size]
    return items.astype(np.int64)


def _permuted(items: np.ndarray, keys: np.ndarray, low_bits: int, high_bits: int) -> np.ndarray:
    low, high = items & np.uint64((1 << low_bits) - 1), items >> np.uint64(low_bits)
    for number, key in enumerate(keys):
        if number % 2:
            low = low ^ (_mixed(high + key) >> np.uint64(64 - low_bits))
        else:
            high = high ^ (_mixed(low + key) >> np.uint64(64 - high_bits))
    return high << np.uint64(low_bits) | low


def _mixed(values: np.ndarray) -> np.ndarray:
    values = values * _MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(32))) * _MULTIPLIERS[1]
    return (values ^ (values >> np.uint64(32))) * _MULTIPLIERS[0]


def interleaved(places: np.ndarray, weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each of `places` in a mixture, its source and which of that source's items it takes.

    Every stretch from the start holds the sources in proportion to their weights, to within a few items. The scheme is Grain's
    (`MapDataset.mix`), over arrays.
    """
    scale = _RESOLUTION / sum(weights)
    proportions = [max(1, round(weight * scale)) for weight in weights]
    sources = np.full(places.shape, -1)
    items = np.zeros_like(places)
    now, after, remaining = places, places + 1, sum(proportions)
    for source, proportion in enumerate(proportions):
        left_now, left_after = now * (remaining - proportion) // remaining, after * (remaining - proportion) // remaining
        taken = after - left_after
        here = (sources < 0) & (now - left_now != taken)
        sources[here], items[here] = source, taken[here] - 1
        now, after, remaining = left_now, left_after, remaining - proportion
    return sources, items
