"""What a model without a finite number gives: nothing that looks like a finding, and no fault."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import draw, sparse
from models import batch_of

from jaxlm.analysis.measure import as_measure
from jaxlm.analysis.probe_files import known_probes, load_probes
from jaxlm.analysis.probes.logit_lens import settled
from jaxlm.analysis.probes.loss import calibration
from jaxlm.analysis.probes.memorization import exposure
from jaxlm.analysis.spectra import spectrum, tail_exponent
from jaxlm.analysis.view import View
from jaxlm.data.byte_tokenizer import BYTE_VOCAB_SIZE, ByteTokenizer

SETTINGS = [
    "memorization.prefix=4",
    "memorization.suffix=4",
    "patching.repetitions=1",
    "patching.length=3",
    "samples.tokens=2",
]
# Losses and what is made of them, and of weights: the rest counts choices that even NaN decides.
UNKNOWN = {
    "loss": ("loss", "accuracy", "entropy", "calibration_error"), "weights": ("mean_stable_rank", "mean_effective_rank"),
    "attention": ("best_induction", "mean_entropy", "copying_accuracy", "copying_gain"), "cka": ("mean_neighbours",),
    "residual": ("growth", "massive"), "logit_lens": ("settled_depth", "last_kl"), "connectivity": ("barrier_to_last",),
    "noise_scale": ("noise_scale", "signal"), "memorization": ("gap",), "patching": ("effect",),
}  # fmt: skip


@pytest.fixture(scope="module")
def diverged():
    from jaxlm.layout import make_mesh

    config, rows = sparse(model={"vocab_size": BYTE_VOCAB_SIZE, "max_length": 24}), batch_of(rows=3, vocab=100)
    params = draw(config)
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        nothing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
        yield View.of({0: params, 1: nothing}, config, rows, tokenizer=ByteTokenizer(), training=rows)


@pytest.mark.parametrize("name", known_probes())
def test_a_probe_says_that_it_does_not_know(diverged, name):
    (probe,) = load_probes([name], [each for each in SETTINGS if each.startswith(f"{name}.")])
    with np.errstate(all="ignore"):
        found = {name: as_measure(value).to_dict() for name, value in probe(diverged).items()}
    assert {measure: found[measure]["values"] for measure in UNKNOWN.get(name, ())} == dict.fromkeys(UNKNOWN.get(name, ()))


def test_parts_that_are_not_finite():
    assert np.isnan(exposure(np.nan, [-1.0])) and np.isnan(exposure(-1.0, [-np.inf]))
    found = spectrum(np.stack([np.eye(3), np.full((3, 3), np.nan), np.diag([1, np.inf, 1])]))
    for values in found:
        assert np.isfinite(values).tolist() == [True, False, False]
    assert np.isnan(tail_exponent(np.array([np.nan] * 30)))
    assert np.isnan(spectrum(np.full((3, 3), np.nan), largest=2).spectral)
    error, accuracy = calibration(np.array([0.5, np.nan]), np.array([1.0, np.nan]), 2)
    assert error == 0.5 and accuracy.values[1] == 1
    assert np.isnan(calibration(np.array([np.nan]), np.array([np.nan]), 2)[0])


def test_predictions_settle_where_they_stay():
    assert settled(np.array([0.1, 0.9, 0.2, 0.6, 1.0])) == 0.75  # not where they first agree
    assert settled(np.array([0.5, 0.5, 1.0])) == 0 and settled(np.array([0.1, 0.1, 1.0])) == 1
    assert np.isnan(settled(np.array([np.nan, 1.0])))
