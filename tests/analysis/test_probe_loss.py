"""Losses by group, the lens and the residual stream, where the answers are known."""

import dataclasses

import numpy as np
import pytest
from mixtures import draw
from models import batch_of, tiny
from planted import BEFORE, GUESS, PLACE, V, config, induction_head, nothing, rows

from jaxlm.analysis.probes import logit_lens, loss, residual, samples
from jaxlm.analysis.view import View
from jaxlm.data.byte_tokenizer import BYTE_VOCAB_SIZE, ByteTokenizer
from jaxlm.data.packing import Batch


def test_tokens_are_cut_into_tenths_of_the_text():
    counts = np.array([50, 20, 10, 10, 10, 0])
    assert loss.frequency_tenths(counts).tolist() == [0, 5, 7, 8, 9, 10]
    place, labels = loss.by_doubling(np.array([1, 2, 3, 4, 7, 8]))
    assert place.tolist() == [0, 1, 1, 2, 2, 3] and labels == ["1", "2-3", "4-7", "8-15"]


def test_calibration_of_known_confidence():
    error, accuracy = loss.calibration(np.array([0.25, 0.25, 0.95, 0.95]), np.array([0.0, 1.0, 1.0, 1.0]), 10)
    assert error == pytest.approx((2 * 0.25 + 2 * 0.05) / 4)
    assert accuracy.values[[2, 9]].tolist() == [0.5, 1.0] and np.isnan(accuracy.values[0])


def test_groups_hold_every_target_and_their_own_losses():
    model = tiny(vocab_size=BYTE_VOCAB_SIZE)
    batch = batch_of(rows=4, vocab=200)
    # Training text of token 65 ("b" less 3 special ones) alone: every other target is unseen.
    text = Batch(*(np.full_like(batch.tokens, value) for value in (65, 65, 1, 1, 1)))
    view = View.of(
        {0: draw(model)}, model, batch, tokenizer=ByteTokenizer(), sources=("a", "a", "b", "b"), training=text
    )  # fmt: skip
    found = loss.probe(view, loss.LossSettings())
    losses, weights = view.losses(), batch.weights
    total = losses.sum()
    assert found["loss"].values == pytest.approx(view.mean_loss(), rel=1e-5)
    for axis in ("frequency", "position", "class", "source"):
        means, counts = found[f"loss_by_{axis}"].values, found[f"targets_by_{axis}"].values
        assert counts.sum() == weights.sum()
        assert np.nansum(means * counts) == pytest.approx(total, rel=1e-5)
    assert found["targets_by_frequency"].values[10] == weights.sum() - (batch.targets[weights > 0] == 65).sum()
    assert found["loss_by_source"].values[1] == pytest.approx(losses[2:].sum() / weights[2:].sum(), rel=1e-5)
    first = (batch.positions == 0) & (weights > 0)
    assert found["loss_by_position"].values[0] == pytest.approx(losses[first].mean(), rel=1e-5)
    digits = (batch.targets >= 3 + ord("0")) & (batch.targets <= 3 + ord("9")) & (weights > 0)
    place = found["loss_by_class"].labels["class"].index("digit")
    assert found["loss_by_class"].values[place] == pytest.approx(losses[digits].mean(), rel=1e-5)
    scores = view.scores()
    bins = np.minimum((scores.confidence[weights > 0] * 10).astype(int), 9)
    gaps = [np.sum((scores.correct - scores.confidence)[weights > 0][bins == place]) for place in range(10)]
    assert found["calibration_error"].values == pytest.approx(np.abs(gaps).sum() / weights.sum(), rel=1e-5)
    without = loss.probe(View.of({0: view.params}, model, batch), loss.LossSettings(training_rows=0))
    assert "loss_by_class" not in without and "loss_by_source" not in without
    assert without["targets_by_frequency"].values[10] < weights.sum()


@pytest.fixture(scope="module")
def planted():
    import jax

    from jaxlm.layout import make_mesh

    model = config()
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        view = View.of({0: nothing(model), 1: induction_head(model)}, model, rows())
        steps = [view.at(0), view]
        return [logit_lens.probe(at) for at in steps], [residual.probe(at, residual.SETTINGS) for at in steps], view.mean_loss()


def test_the_lens_sees_where_a_prediction_is_made(planted):
    (nothing_at_all, found), _, mean_loss = planted
    np.testing.assert_allclose(nothing_at_all["loss_by_layer"].values, np.log(V), rtol=1e-5)
    np.testing.assert_allclose(nothing_at_all["kl_by_layer"].values, 0, atol=1e-5)
    # The guess is written by the last layer alone.
    np.testing.assert_allclose(found["loss_by_layer"].values[:2], np.log(V), rtol=1e-5)
    assert found["loss_by_layer"].values[2] == pytest.approx(mean_loss, rel=1e-5)
    assert found["kl_by_layer"].values[1] > 1 > 1e-5 > abs(found["kl_by_layer"].values[2])
    assert found["agreement_by_layer"].values[2] == 1 > found["agreement_by_layer"].values[1]
    assert found["settled_depth"].values == 1 and nothing_at_all["settled_depth"].values == 0
    assert found["last_kl"].values == found["kl_by_layer"].values[1]


def test_a_layer_that_does_nothing_leaves_the_residual_stream(planted):
    _, (nothing_at_all, found), _ = planted
    np.testing.assert_allclose(nothing_at_all["cosine_by_layer"].values, 1, rtol=1e-6)
    np.testing.assert_allclose(nothing_at_all["norm_by_layer"].values, 2**0.5, rtol=1e-6)  # a token and its place
    assert nothing_at_all["growth"].values == pytest.approx(1)
    assert not nothing_at_all["attention_share_by_layer"].values.any() and found["attention_share_by_layer"].values.all()
    assert found["cosine_by_layer"].values.max() < 0.999 and not found["feed_forward_share_by_layer"].values.any()
    assert found["massive"].values == 0 and found["massive_where"].values == "none"


def test_a_feed_forward_layer_is_held_against_what_attention_left():
    model = tiny(num_layers=1, attention_kernel="plain")
    params = draw(model)
    attention = params.blocks[0].attention
    loud = attention.replace(o=100 * attention.o)  # what it writes is far above what the layer reads
    params = params.replace(blocks=(params.blocks[0].replace(attention=loud),))
    for parallel in (False, True):
        config = dataclasses.replace(model, parallel_residual=parallel)
        view = View.of({0: params}, config, batch_of(rows=2))
        seen, real = view.activations("layer_in", "attn_out", "ffn_out"), view.rows.segments != 0
        read, written, added = (seen[site][0] for site in ("layer_in", "attn_out", "ffn_out"))
        found = residual.probe(view, residual.SETTINGS)["feed_forward_share_by_layer"].values[0]
        finds = np.linalg.norm(read if parallel else read + written, axis=-1)
        assert found == pytest.approx((np.linalg.norm(added, axis=-1) / finds)[real].mean(), rel=1e-4)


def test_a_massive_activation_is_counted_and_named():
    model = dataclasses.replace(config(), num_layers=1)
    params = nothing(model)
    place = np.array(params.position_embed)
    place[0, GUESS], place[3, BEFORE] = 5000.0, -200.0
    place[:, PLACE - V : PLACE] += 0.01  # so that medians are not 0
    place[:, PLACE:] += 0.01
    view = View.of({0: params.replace(position_embed=place)}, model, rows())
    found = residual.probe(view, residual.ResidualSettings(listed=1))
    length = view.rows.tokens.shape[1]
    np.testing.assert_allclose(found["massive_by_layer"].values, 2 / length)
    both = residual.probe(view, residual.ResidualSettings(magnitude=1000.0))
    np.testing.assert_allclose(both["massive_by_layer"].values, 1 / length)
    assert both["massive_where"].values == f"dimensions {GUESS} (100%), positions 0 (100%)"
    assert found["largest_by_layer"].values[0] == pytest.approx(5000, rel=1e-3)


def test_samples_are_the_same_again_and_begin_with_their_prompt():
    model = tiny(vocab_size=BYTE_VOCAB_SIZE)
    view = View.of({0: draw(model)}, model, batch_of(rows=2), tokenizer=ByteTokenizer())
    asked = samples.SampleSettings(prompts=("def ", "x"), tokens=6)
    found, again = samples.probe(view, asked), samples.probe(view, asked)
    assert found["greedy"].values.tolist() == again["greedy"].values.tolist()
    assert found["sampled"].values.tolist() == again["sampled"].values.tolist() != found["greedy"].values.tolist()
    assert all(text.startswith(prompt) for prompt, text in zip(asked.prompts, found["greedy"].values, strict=True))
    assert 0 < found["greedy_variety"].values <= 1 and found["greedy"].labels == {"prompt": ("def ", "x")}
    with pytest.raises(samples.NotSuited, match="without a tokenizer"):
        samples.probe(View.of({0: view.params}, model, view.rows), asked)
