"""Batches are a pure function of (seed, step): the same from anywhere, each row once an epoch, weights honoured."""

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.building import Job
from jaxlm.data.mixture import Batches, combine_hashes, hash_rows, prefetch, show_rows
from jaxlm.data.order import interleaved, shuffled
from jaxlm.data.prepare import prepare
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import ConfigError, DataError


@given(st.integers(1, 3000), st.integers(0, 2**40), st.text(max_size=5))
def test_each_epoch_is_a_permutation(size, epoch, seed):
    order = shuffled(np.arange(size) + epoch * size, size, seed)
    assert sorted(order) == list(range(size))


def test_orders_differ_by_seed_and_epoch_and_look_random():
    size = 1000
    orders = [shuffled(np.arange(size) + epoch * size, size, seed) for epoch in range(20) for seed in ("0", "1")]
    for a, b in itertools.combinations([np.arange(size), *orders], 2):
        assert np.mean(a == b) < 0.01
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15
    counts = np.histogram2d(np.tile(np.arange(size), 40), np.concatenate(orders), bins=10)[0]
    assert np.sum((counts - 400) ** 2 / 400) < 150  # 99 cells, of which the 81 free ones give 81 +- 13
    first = [shuffled(np.array([0]), 4, str(seed))[0] for seed in range(4000)]
    assert abs(np.bincount(first) - 1000).max() < 130


def test_seeking_is_reading_along():
    order = shuffled(np.arange(5000), 700, "s")
    assert np.array_equal(order[4321:4325], shuffled(np.arange(4321, 4325), 700, "s"))


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.integers(0, 2**37))
def test_weights_are_honoured_at_every_place(weights, start):
    sources, items = interleaved(np.arange(start, start + 400), tuple(weights))
    total = sum(weights)
    for source, weight in enumerate(weights):
        taken = items[sources == source]
        assert np.array_equal(taken, np.arange(taken[0], taken[0] + len(taken)) if len(taken) else taken)
        assert abs(len(taken) - 400 * weight / total) < len(weights) + 1


@pytest.fixture
def prepared(byte_config):
    return prepare(byte_config())


@pytest.fixture
def two_sources(books, byte_config):
    (books / "numbers.num").write_text("0123456789\n" * 400)
    sources = (f"text:{books}/*.txt", f"text:{books}/*.num#100")
    return prepare(byte_config(sources=sources, weights=(1.0, 3.0)))


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_at_is_pure(prepared):
    batches = Batches(prepared, "train", 4, 7)
    forward = [batches.at(step) for step in range(30)]
    for step in (29, 0, 13):
        batch, content_hash = Batches(prepared, "train", 4, 7).at(step)
        assert same(batch, forward[step][0]) and content_hash == forward[step][1]
    assert len({content_hash for _, content_hash in forward}) == 30
    assert Batches(prepared, "train", 4, 8).at(0)[1] != forward[0][1]
    assert batches.at(10**9)[0].tokens.shape == (4, 64)


def test_an_epoch_shows_each_row_once(prepared):
    rows = prepared.train.rows
    batches = Batches(prepared, "train", rows, 0)
    assert batches.num_batches == 1
    first, second = (batches.at(step)[0] for step in (0, 1))
    assert not same(first, second)
    assert sorted(map(bytes, first.tokens)) == sorted(map(bytes, second.tokens))
    assert first.weights.sum() == prepared.train.bytes + prepared.train.documents


def test_targets_stand_for_every_byte_of_text(books, byte_config):
    prepared = prepare(byte_config(tokenizer=TokenizerConfig(vocab_size=300)))
    batch, _ = Batches(prepared, "train", prepared.train.rows, 0).at(0)
    assert np.sum(prepared.tokenizer.token_bytes()[batch.targets] * batch.weights) == prepared.train.bytes


def test_batch_larger_than_the_data(prepared):
    rows = prepared.train.rows
    batch, _ = Batches(prepared, "train", 3 * rows, 0).at(2)
    assert len(set(map(bytes, batch.tokens))) <= rows < len(batch.tokens) == 3 * rows


def test_rows_are_parts_of_the_same_batch(prepared):
    for split in ("train", "validation"):
        whole, whole_hash = Batches(prepared, split, 6, 1).at(1)
        parts = [Batches(prepared, split, 6, 1, rows=rows).batch(1) for rows in ([0], range(1, 4), [4, 5])]
        assert same(whole, [np.concatenate(arrays) for arrays in zip(*parts, strict=True)])
        assert combine_hashes(itertools.chain.from_iterable(map(hash_rows, parts))) == whole_hash
        assert same(Batches(prepared, split, 6, 1, rows=[0, 2, 5]).batch(1), [array[[0, 2, 5]] for array in whole])
    with pytest.raises(ConfigError, match="less than a row"):
        Batches(prepared, "train", 0, 1)


def test_the_hash_covers_every_array(prepared):
    batch, content_hash = Batches(prepared, "train", 2, 0).at(0)
    for name, array in batch._asdict().items():
        changed = array.copy()
        changed[1, 5] += 1
        assert combine_hashes(hash_rows(batch._replace(**{name: changed}))) != content_hash
    assert len(content_hash) == 16


def test_validation_comes_in_order_and_is_filled_up(prepared):
    rows = prepared.validation.rows
    batches = Batches(prepared, "validation", 5, 0)
    read = [batches.at(step)[0] for step in range(batches.num_batches)]
    assert batches.num_batches == -(-rows // 5) and rows % 5
    assert sum(batch.weights.sum() for batch in read) == prepared.validation.bytes + prepared.validation.documents
    filling = slice(rows % 5, None)
    assert not read[-1].weights[filling].any() and not read[-1].segments[filling].any()
    shown = [text for row in show_rows(prepared, "validation", range(4)) for _, text in row]
    assert "".join(shown)[:40] == prepared.tokenizer.decode(read[0].tokens[0])[:40]
    with pytest.raises(IndexError):
        batches.at(batches.num_batches)


def test_weights_decide_the_mixture(two_sources):
    def share_of_numbers(**options):
        batches = Batches(two_sources, "train", 50, 0, **options)
        tokens = np.concatenate([batches.at(step)[0].tokens[:, 1:20].max(axis=1) for step in range(8)])
        return np.mean(tokens < 3 + ord("a"))

    assert share_of_numbers() == pytest.approx(0.75, abs=0.01)
    assert share_of_numbers(weights=(9, 1)) == pytest.approx(0.1, abs=0.01)
    with pytest.raises(ConfigError, match="3 weights for 2 sources"):
        share_of_numbers(weights=(1, 1, 1))


def test_a_weight_needs_rows(books, byte_config):
    name = next(name for name in map("{}.x".format, range(99)) if Job(None, 0.5).split(name) == "validation")
    (books / name).write_text("just one")
    prepared = prepare(byte_config(sources=(f"text:{books}/*.txt", f"text:{books}/{name}"), validation_fraction=0.5))
    with pytest.raises(DataError, match="has a weight but no train rows"):
        Batches(prepared, "train", 2, 0, weights=(1, 1))


def test_no_rows(byte_config):
    with pytest.raises(DataError, match="has no validation rows"):
        Batches(prepare(byte_config(validation_fraction=0.0)), "validation", 2, 0)


def test_prefetch_reads_ahead_and_stops(prepared):
    batches = Batches(prepared, "train", 2, 0)
    assert [content_hash for _, content_hash in prefetch(batches.at, 3, 9)] == [batches.at(step)[1] for step in range(3, 9)]
    ahead = prefetch(batches.at, 0, 10**9)
    next(ahead)
    assert any(thread.name == "jaxlm-data" for thread in threading.enumerate())
    started = time.monotonic()
    ahead.close()
    assert time.monotonic() - started < 2
    assert not any(thread.name == "jaxlm-data" for thread in threading.enumerate())


def test_prefetch_hands_on_what_fails_at_its_step(prepared):
    batches = Batches(prepared, "validation", 2, 0)
    ahead = prefetch(batches.at, batches.num_batches - 1, batches.num_batches + 1)
    next(ahead)
    with pytest.raises(IndexError):
        next(ahead)


def test_show_rows(prepared):
    (row,) = show_rows(prepared, "train", [0])
    assert [segment for segment, _ in row] == list(range(1, len(row) + 1))
    assert sum(len(text) for _, text in row) in range(65 - 2 * len(row) - 1, 66)
    with pytest.raises(DataError, match="there is no row 100000"):
        next(show_rows(prepared, "train", [100_000]))


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_damaged_shards_are_named(prepared, damage):
    ((path, _),) = prepared.train.sources[0].shards
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        half = len(content) // 2
        rest = bytes(1000) + content[half + 1000 :] if damage == "flipped" else b""
        path.write_bytes(content[:half] + rest)
    with pytest.raises(DataError, match=rf"{path} is missing, truncated or damaged .*Delete the folder {prepared.folder}"):
        Batches(prepared, "train", prepared.train.rows, 0).at(0)
