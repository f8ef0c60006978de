"""What each head is worth: the rise of the loss without it."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.measure import Measure, NotSuited


def without(site, layer, x, which, head):
    """Silence one head of one layer; as `edit` it is called at every site of every layer."""
    if site != "heads":
        return x
    there = (jnp.arange(x.shape[2]) == head)[None, None, :, None] & (layer == which)
    return jnp.where(there, jnp.zeros_like(x), x)


def probe(view):
    if view.model.num_layers * view.model.num_heads > 256:
        raise NotSuited("there are more heads than anyone wants to wait for")
    rise = np.zeros((view.model.num_layers, view.model.num_heads))
    for layer, head in np.ndindex(*rise.shape):
        edit = jax.tree_util.Partial(without, which=np.int32(layer), head=np.int32(head))
        rise[layer, head] = view.mean_loss(edit=edit) - view.mean_loss()
    by_head = Measure(rise, ("layer", "head"), unit="nats", about="loss without the head, less the loss with it")
    return {"worth_by_head": by_head, "greatest": float(rise.max())}
