"""Losses by position: of one pass, of windows as the protocol has them, and beside another reading of the same model."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from models import draw, tiny

from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.long_rows import long_rows
from jaxlm.errors import ConfigError, DataError
from jaxlm.eval.by_position import by_position, memory, short_context, strided_losses, token_losses
from jaxlm.eval.reach import check_reach
from jaxlm.layout import Layout, make_mesh
from jaxlm.model.extension import Extension
from jaxlm.model.rope_config import RopeScaling, SelfExtend
from jaxlm.run.score import row_logits, token_log_probs

MODEL = tiny(max_length=32, logit_softcap=5.0)
ROWS = np.random.default_rng(0).integers(3, 64, (3, 41))
GROUPED = Extension(self_extend=SelfExtend(group_size=4, window_size=16)).applied(MODEL)


@pytest.fixture(scope="module")
def params():
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        return draw(MODEL, spread=0.3)


def test_one_pass_gives_the_loss_of_every_token(params):
    told = []
    losses = token_losses(params, ROWS, MODEL, Layout(), 2, told.append)
    logits = np.asarray(row_logits(params, ROWS.astype(np.int32), MODEL, Layout()))
    np.testing.assert_allclose(losses, -token_log_probs(logits[:, :-1], ROWS[:, 1:]), atol=1e-5)
    assert losses.dtype == np.float32 and told == [80, 40]


@pytest.mark.parametrize(("length", "stride"), [(16, 5), (16, 16), (16, 1)])
def test_strided_losses_are_those_of_windows_one_by_one(params, length, stride):
    def of_windows(end: int) -> np.ndarray:
        return token_losses(params, ROWS[:, end - length : end + 1], MODEL, Layout(), 3)

    expected = of_windows(length)
    while expected.shape[1] < 40:
        end = min(expected.shape[1] + stride, 40)
        expected = np.concatenate([expected, of_windows(end)[:, expected.shape[1] - end :]], axis=1)
    found = strided_losses(params, ROWS, MODEL, Layout(), length, stride, 3)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - token_losses(params, ROWS, MODEL, Layout(), 3))[:, length:].max() > 1e-3


def test_a_stride_within_the_window(params):
    whole = token_losses(params, ROWS, MODEL, Layout(), 3)
    np.testing.assert_array_equal(strided_losses(params, ROWS, MODEL, Layout(), 64, 3, 3), whole)
    with pytest.raises(ConfigError, match="from 1 to the length of a window, 16"):
        strided_losses(params, ROWS, MODEL, Layout(), 16, 17)


def test_means_between_edges():
    losses, sizes = np.array([[1.0, 2.0, 3.0, 9.0]], np.float32), np.array([[1, 1, 2, 5]])
    first, second = by_position(losses, (0, 2, 3), sizes)
    assert first | {"perplexity": 0} == {
        "from": 0, "to": 2, "loss": 1.5, "perplexity": 0, "bits_per_byte": pytest.approx(1.5 / np.log(2)), "tokens": 2.0
    }  # fmt: skip
    assert second["loss"] == 3.0 and second["perplexity"] == pytest.approx(np.exp(3)) and second["tokens"] == 1.0
    assert second["bits_per_byte"] == pytest.approx(3 / np.log(2) / 2)
    assert "bits_per_byte" not in by_position(losses, (0, 4))[0]


def test_windows_leave_rows_that_fit_them_to_the_bit(params):
    assert not short_context(params, ROWS[:, :17], MODEL, Extension(attention_window=16).applied(MODEL), Layout(), 3).any()
    assert not short_context(params, ROWS[:, :17], MODEL, GROUPED, Layout(), 3).any()
    beyond = short_context(params, ROWS[:, :33], MODEL, GROUPED, Layout(), 3)
    assert np.abs(beyond[:, :16]).max() < 1e-5 and np.abs(beyond[:, 17:]).max() > 1e-3


def test_rows_longer_than_a_model_reads(params):
    assert check_reach(32, MODEL) == ""
    assert "rows have 33 tokens: this model reads at most 32, as it was trained" in check_reach(33, MODEL, trained=MODEL)
    shorter = check_reach(33, Extension(max_length=20).applied(MODEL), trained=MODEL)
    assert "at most 20, for so --extend.max-length has it" in shorter and "as it was trained" not in shorter
    scaled = Extension(rope_scaling=RopeScaling(kind="yarn", factor=2.0)).applied(MODEL)
    assert check_reach(64, scaled) == "" and "raise --extend.rope-scaling.factor above 2" in check_reach(65, scaled)
    assert GROUPED.max_length == 80
    with pytest.raises(
        DataError, match="at most 80 with self_extend.group_size 4 .*take --extend.self-extend.group-size 5 with"
    ) as said:
        token_losses(params, np.zeros((1, 82), np.int32), GROUPED, Layout())
    group, window = map(int, re.findall(r"-size (\d+)", str(said.value)))
    assert Extension(self_extend=SelfExtend(group_size=group, window_size=window)).applied(MODEL).max_length >= 81
    lowered = Extension(self_extend=GROUPED.self_extend, max_length=40).applied(MODEL)
    with pytest.raises(DataError, match="at most 40 .* raise --extend.max-length, 40 now, .* reaches 80 tokens"):
        check_reach(80, lowered)
    with pytest.raises(DataError, match="group-size 5 with .* 15, without --extend.max-length"):
        check_reach(81, lowered)
    with pytest.raises(DataError, match="no groups of Self-Extend reach 9999 tokens"):
        check_reach(9999, GROUPED)
    assert "raise --extend.max-length" in check_reach(60, dataclasses.replace(scaled, max_length=50))
    with pytest.raises(DataError, match="learned positions and none beyond"):
        check_reach(33, tiny(max_length=32, positions="learned"))


def test_memory_is_that_of_the_compiled_program(params):
    short, long = (memory(params, ROWS[:1, :size], MODEL, Layout()) for size in (17, 41))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert size < short.arguments < size + 4096 and long.outputs - short.outputs == 4 * 24
    assert 0 < short.temporary < long.temporary and long.peak == sum(long)


def test_long_rows_of_documents():
    tokenizer, documents = ByteTokenizer(), ["abcd", "efg", "hijklmn"]
    bos, eos = 1, 2
    rows = long_rows(documents, tokenizer, 9, 5)
    text = [*tokenizer.encode("abcd"), eos, bos, *tokenizer.encode("efg"), eos, bos, *tokenizer.encode("hijklmn")]
    assert rows.tolist() == [[bos, *text[:5]], [bos, *text[5:10]], [bos, *text[10:15]]]
    assert long_rows(documents, tokenizer, 2, 5).tolist() == rows[:2].tolist()
    assert long_rows(documents, tokenizer, 9, 4, whole_documents=True).tolist() == [
        [bos, *tokenizer.encode("abcd")], [bos, *tokenizer.encode("hijk")]
    ]  # fmt: skip
    with pytest.raises(DataError, match="the longest has 7 tokens, and a row takes 8. Leave out --whole-documents, lower"):
        long_rows(documents, tokenizer, 9, 8, whole_documents=True)
    with pytest.raises(DataError, match="this split has no documents: .* --split train .* --source"):
        long_rows(iter([]), tokenizer, 9, 5)
    with pytest.raises(DataError, match="too little text: 18 tokens, and a row takes 20. Lower --lengths"):
        long_rows(documents, tokenizer, 9, 20)
