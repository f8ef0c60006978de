"""The record: exact numbers, and no row too many or too few after a crash."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.errors import CheckpointError
from jaxlm.run.metrics import MetricsLog, keep_rows_before, read_rows


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@given(st.floats(width=32))
def test_numbers_come_back_to_the_bit(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("m") / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.write(0, "train", {"loss": value})
    log.close()
    found = read_rows(path)[0]["loss"]
    assert found == value if math.isfinite(value) else found is None


def test_rows_of_lost_steps_are_dropped_and_the_rest_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    train = [{"step": s, "split": "train"} for s in range(6)]
    held_out = [{"step": s, "split": "validation"} for s in (2, 4)]
    write(path, *train[:2], held_out[0], *train[2:4], held_out[1], *train[4:])
    assert keep_rows_before(path, 4) == [*train[:2], held_out[0], *train[2:4], held_out[1]]
    assert keep_rows_before(path, 2) == [*train[:2], held_out[0]]
    assert read_rows(path) == [*train[:2], held_out[0]]
    assert keep_rows_before(tmp_path / "none.jsonl", 3) == []


def test_a_line_cut_short_is_dropped_and_a_broken_one_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, {"step": 0, "split": "train"}, {"step": 1, "split": "train"})
    for tail in ('{"step": 2, "sp', '{"step": 2, "split": "train"}', "\x00\x00"):
        path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:2]) + tail)
        assert [r["step"] for r in read_rows(path)] == [0, 1]
        assert [r["step"] for r in keep_rows_before(path, 2)] == [0, 1]
    path.write_text('{"step": 0, "split": "train"}\nrubbish\n{"step": 1, "split": "train"}\n')
    with pytest.raises(CheckpointError, match="line 2"):
        read_rows(path)


def test_a_validation_row_is_written_once(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    for _ in range(2):
        log.write(3, "validation", {"loss": 1.0})
    log.write(3, "train", {"loss": 1.0}, keep=False)
    log.close()
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1
