"""A whole model read with Self-Extend against the official code in a Llama of transformers (reference/make_self_extend.py)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import REFERENCE, opened, placed

from jaxlm.layout import Layout
from jaxlm.model import transformer
from jaxlm.model.extension import Extension
from jaxlm.model.rope import log_length_scale
from jaxlm.model.rope_config import SelfExtend
from jaxlm.ops import attention_kernels
from jaxlm.ops.masks import Tokens

with np.load(REFERENCE / "self_extend.npz") as arrays:
    STORED = dict(arrays)
LENGTH, TRAINED = STORED["tokens"].shape[1], 48


def logits(params, model, rows, at):
    def run(params, rows, at):
        hidden, _ = transformer.forward(params, rows, at, model, Layout())
        return transformer.unembed(params, hidden, model, Layout())

    return np.asarray(jax.jit(run)(params, jnp.asarray(rows), jax.tree.map(jnp.asarray, at)))


@pytest.mark.parametrize("kernel", ["plain", "blocked"])
@pytest.mark.parametrize("settings", [key.removeprefix("logits/") for key in STORED if key.startswith("logits/")])
def test_logits_equal_those_of_the_official_code(settings, kernel, monkeypatch):
    monkeypatch.setattr(attention_kernels, "QUERY_BLOCK", 32)
    group, window, base = map(int, settings.split(","))
    trained, _, table, tensors = opened("llama")
    trained = dataclasses.replace(trained, max_length=TRAINED, attention_kernel=kernel)
    way = SelfExtend(group_size=group, window_size=window, scale_base=float(base))
    model = Extension(self_extend=way).applied(trained)
    params, tokens, expected = placed(trained, table, tensors), STORED["tokens"], STORED[f"logits/{settings}"]
    # The second row again, its first tokens after padding on the left: the official code cannot have that.
    rows, at = np.concatenate([tokens, tokens[1:]]), np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (3, LENGTH)).copy()
    segments = np.ones_like(at)
    rows[2, 11:], at[2, 11:], at[2, :11], segments[2, :11] = tokens[1, :-11], np.arange(LENGTH - 11), 0, 0
    found = logits(params, model, rows, Tokens(at, segments))
    np.testing.assert_allclose(found[:2], expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found[2, 11:], expected[1, :-11], atol=1e-4, rtol=0)
    if kernel == "plain":
        plain = logits(params, dataclasses.replace(trained, max_length=LENGTH), tokens, Tokens(at[:2], segments[:2]))
        first = window if not base else min(window, base - 1)
        np.testing.assert_array_equal(found[:2, :first], plain[:, :first])
        assert np.abs(found[:2, -1] - plain[:, -1]).max() > 0.01


def test_queries_grow_with_the_logarithm_of_their_place():
    trained, _, _, _ = opened("llama")
    way = SelfExtend(group_size=2, window_size=8, scale_base=16.0)
    found = log_length_scale(Tokens(jnp.array([[0, 14, 15, 16, 63, 255]])), Extension(self_extend=way).applied(trained))
    np.testing.assert_allclose(found[0], [1, 1, 1, np.log(17) / np.log(16), 1.5, 2.0], rtol=1e-6)
    assert log_length_scale(Tokens(jnp.zeros((1, 1))), trained) is None
