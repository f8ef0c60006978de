"""Three answers, a table of probabilities and preferences without noise: where losses lead when nothing else is in the way.

The world of arXiv:2310.12036 (section 5.4): y1 is always preferred to y2 and to y3, and y2 to y3, each pair as often, and the
reference is uniform. DPO has no optimum there: whatever beta is, the probability of y3 falls to nothing. IPO has one, in which
neighbours' log-ratios differ by 1 / (3 beta): the least squares of h12 = h23 = h13 = 1 / (2 beta), which cannot all hold.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.objective.preference_config import PreferenceConfig
from jaxlm.objective.preference_losses import Pair, pair_losses

BETTER, WORSE = np.array([0, 0, 1]), np.array([1, 2, 2])
OPTIMIZER = optax.adam(0.01, eps=1e-6)  # by default it makes whole steps of gradients that are rounding alone


def optimise(preference: PreferenceConfig, after: Sequence[int] = (1000, 4000, 16_000)) -> np.ndarray:
    """Return log-probabilities of the three answers after so many steps of Adam at 0.01, [len(after), 3]."""

    @functools.partial(jax.jit, static_argnames="steps")
    def run(state: tuple, steps: int) -> tuple:
        return jax.lax.scan(lambda state, _: (_step(preference, *state), None), state, length=steps)[0]

    logits = jnp.zeros(3)
    state, found = (logits, OPTIMIZER.init(logits)), []
    for steps in np.diff([0, *after]):
        state = run(state, int(steps))
        found.append(np.asarray(jax.nn.log_softmax(state[0]), np.float64))
    return np.stack(found)


def _step(preference: PreferenceConfig, logits: jax.Array, moments: optax.OptState) -> tuple[jax.Array, optax.OptState]:
    # Products with constants in the place of indices, so that any mesh may be current.
    chosen, rejected = np.eye(3, dtype=np.float32)[BETTER], np.eye(3, dtype=np.float32)[WORSE]
    uniform = jnp.full(3, -np.log(3.0), jnp.float32)
    ones = jnp.ones(3)

    def loss(logits: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(logits)
        policy = Pair(chosen @ log_probs, rejected @ log_probs)
        return jnp.mean(pair_losses(preference, policy, Pair(uniform, uniform), Pair(ones, ones)))

    updates, moments = OPTIMIZER.update(jax.grad(loss)(logits), moments)
    return optax.apply_updates(logits, updates), moments


def tabulate(betas: Sequence[float]) -> list[list[str]]:
    """Return the table's lines, the heading first: how far y2 is above y3 in log-ratio, and how probable y3 is."""
    lines = [["loss", "beta", "h of y2 over y3: 1000 steps", "4000", "16000", "IPO's optimum", "probability of y3 at the end"]]
    for loss in ("sigmoid", "ipo_sum"):
        for beta in betas:
            log_probs = optimise(PreferenceConfig(loss=loss, beta=beta))
            optimum = f"{1 / (3 * beta):.3f}" if loss == "ipo_sum" else "-"
            gaps = [f"{gap:.3f}" for gap in log_probs[:, 1] - log_probs[:, 2]]
            lines.append([loss, f"{beta:g}", *gaps, optimum, f"{np.exp(log_probs[-1, 2]):.2e}"])
    return lines
