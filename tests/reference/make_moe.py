"""Write the stored outputs of independent mixture-of-experts parts that the tests of our own layer are held to.

The test run needs no torch: it reads the `.npz` files beside this script, which were made once, with

    pip install torch==2.13.0 transformers==5.23.0 --extra-index-url https://download.pytorch.org/whl/cpu
    python tests/reference/make_moe.py [--only moe_switch moe_noisy] [--out DIRECTORY]

Stored are float32, int32, bool and `config`, JSON text of the settings; weights and inputs have bfloat16's eight bits.
B = 2 rows of T = 12 tokens, D = 16, F hidden units, E experts, k choices. Linear weights are [out, in], as in torch.

moe_switch, moe_mixtral, moe_deepseek: one layer of Hugging Face's Switch, Mixtral or DeepSeek-V3, without the residual.
    w/NAME, g/NAME  weight under its Hugging Face name, and the gradient of sum(output * probe) for it
        switch      router.classifier.weight [E, D], experts.expert_I.wi.weight [F, D], experts.expert_I.wo.weight [D, F]
        the others  gate.weight [E, D], experts.gate_up_proj [E, 2F, D], whose first F rows are the activated gate and last
                    F rows the linear half, experts.down_proj [E, D, F]
        deepseek    shared_experts.{gate,up,down}_proj.weight [F, D] or [D, F]; w/gate.e_score_correction_bias [E], no gradient
    x, probe, g/x, output [B, T, D]: a token that Switch drops has exactly 0 in the output and in g/x
    router_logits, router_probs [B, T, E]: logits and their softmax, for DeepSeek their sigmoid without the bias
    experts, weights [B, T, k]: choices and gates, best first, for DeepSeek in no order (its top-k does not sort); Switch
                    keeps a dropped token's probability in weights
    combine [B, T, E]: the gates by expert, 0 where not chosen or dropped; dropped [B, T], Switch only, capacity is per row
moe_losses: of one layer, since Hugging Face pools layers, which hides imbalance. f is constant in the gradients.
    logits, g/LOSS [B, T, 4], experts_top1 [B, T, 1], experts_top2 [B, T, 2], mask [B, T], False on each row's padded end
    switch_top{1,2} E * sum_e f_e P_e of each row, averaged over rows; no mask;   z: mean of logsumexp(logits)^2; no mask
    mixtral_top{1,2}[_masked] the same product over both rows at once (not the mean of the rows'), masked or not
moe_noisy: noisy top-k gates of arXiv:1701.06538, restated here in float64; N = 40 tokens, E = 6, k = 2.
    clean, noise_logits (before softplus), noise (standard normal), H = clean + noise * softplus(noise_logits): [N, E]
    gates [N, E], importance [E]: softmax over the k largest of H, others 0; their sum over tokens
    probability [N, E], load [E]: Phi((clean - threshold) / softplus(noise_logits)); its sum over tokens
    threshold [N, E], g/LOSS/{clean,noise_logits} [N, E]: k-th largest of H without e, differentiated too
    {importance,load}_{cv2,loss}: variance (divided by E) over (mean^2 + 1e-10), and 0.1 of it; loss is both losses' sum
moe_slots: serial loops over C = 40 cases, padded to [C, 20 tokens, 3 choices]; read [:tokens, :k] of a case.
    tokens, num_experts, k, capacity [C]; probs [C, 20, 6], 0 beyond num_experts; experts [C, 20, 3], -1 beyond k
    mask [C, 20]: False on padding, which takes no slot;   kept/PRIORITY [C, 20, 3]: slot < capacity, on real tokens
    slot/PRIORITY [C, 20, 3]: position in the expert's queue over all earlier choices, kept or not; -1 on padding
    PRIORITY is token_major (all of a token's choices, then the next token's), choice_major (all first choices in token
    order, then the second ones) or batch_prioritised (choice_major by falling largest probability, ties by position).
"""

import argparse
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.switch_transformers import modeling_switch_transformers as switch

VISIBLE = 1e-3  # the smallest change of an output that counts: far above float32 rounding
SWITCH = dict(d_model=16, d_ff=24, num_experts=4, expert_capacity=3, dense_act_fn="relu", router_jitter_noise=0.0)
MIXTRAL = dict(hidden_size=16, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2, hidden_act="silu")
WIDTHS = dict(hidden_size=16, moe_intermediate_size=12, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3)
DEEPSEEK = WIDTHS | dict(n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5, hidden_act="silu")
LAYERS = {
    "moe_switch": (switch.SwitchTransformersSparseMLP, switch.SwitchTransformersConfig, SWITCH),
    "moe_mixtral": (mixtral.MixtralSparseMoeBlock, mixtral.MixtralConfig, MIXTRAL),
    "moe_deepseek": (deepseek.DeepseekV3MoE, deepseek.DeepseekV3Config, DEEPSEEK),
}
CHANGES = {
    "moe_switch": dict(expert_capacity=[2, 4], dense_act_fn=["gelu"]),
    "moe_mixtral": dict(num_experts_per_tok=[1, 3], hidden_act=["gelu"]),
    "moe_deepseek": dict(topk_group=[3, 4], num_experts_per_tok=[2], norm_topk_prob=[False], routed_scaling_factor=[1.0]),
}


def decided(values: torch.Tensor, k: int) -> None:
    """Require that no token's k-th largest value is so close to its next that rounding could swap them."""
    top = values.topk(k + 1).values
    assert (top[..., k - 1] - top[..., k]).min() > 1e-4, "a choice is too close to a tie"


def rounded(label: str, shape: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
    """A tensor drawn from its own name, in bfloat16's eight bits."""
    draw = np.random.default_rng(zlib.crc32(label.encode())).standard_normal(shape) * scale
    return torch.from_numpy(draw.astype(np.float32)).to(torch.bfloat16).to(torch.float32)


def build(name: str, weights: dict[str, torch.Tensor], **changes) -> torch.nn.Module:
    """The layer under its settings with `changes`, holding `weights`, drawn here where they are missing."""
    config = LAYERS[name][1](**(LAYERS[name][2] | changes))
    config._experts_implementation = "eager"
    module = LAYERS[name][0](config).to(torch.float32).eval()
    for key, value in [*module.named_parameters(), *module.named_buffers()]:
        scale = 0.1 if key.endswith("bias") else 1.3 / value.shape[-1] ** 0.5
        value.data.copy_(weights.setdefault(key, rounded(f"{name}/{key}", tuple(value.shape), scale)))
    return module


def dense(name: str, w: dict[str, torch.Tensor], x: torch.Tensor, combine: torch.Tensor) -> torch.Tensor:
    """The layer's output once more, every expert over every token, by the layouts that the docstring states."""
    if name == "moe_switch":
        wi, wo = (torch.stack([w[f"experts.expert_{e}.{part}.weight"] for e in range(4)]) for part in ("wi", "wo"))
        return torch.einsum("bte,btef,edf->btd", combine, torch.einsum("btd,efd->btef", x, wi).relu(), wo)
    gate, up = torch.einsum("btd,efd->btef", x, w["experts.gate_up_proj"]).chunk(2, -1)
    total = torch.einsum("bte,btef,edf->btd", combine, gate * gate.sigmoid() * up, w["experts.down_proj"])
    if name == "moe_deepseek":
        gate, up = (x @ w[f"shared_experts.{part}_proj.weight"].T for part in ("gate", "up"))
        total = total + (gate * gate.sigmoid() * up) @ w["shared_experts.down_proj.weight"].T
    return total


def make_layer(name: str) -> dict:
    """One Hugging Face layer: its output, its routing and its gradients."""
    module = build(name, weights := {})
    x, probe = rounded(f"{name}/x", (2, 12, 16)).requires_grad_(), rounded(f"{name}/probe", (2, 12, 16))
    ((output := module(x)) * probe).sum().backward()
    gradients = {"x": x.grad, **{key: parameter.grad for key, parameter in module.named_parameters()}}
    for key, slope in gradients.items():
        # Rows of Switch's first matrices may be dead under their ReLU; every other row must count.
        least = slope.abs().max() if "wi" in key else slope.flatten(1).abs().amax(1).min()
        assert least > 1e-5, f"{name}: {key}, or one row of it, has no influence"
    arrays = {"config": json.dumps(LAYERS[name][2]), "x": x, "probe": probe, "output": output}
    with torch.no_grad():
        if name == "moe_switch":
            kept, gates, logits = module.router(x)
            probs, combine, dropped = logits.softmax(-1), kept * gates, kept.sum(-1) == 0
            experts, arrays["dropped"] = logits.argmax(-1, keepdim=True), dropped
            assert dropped.any(1).all() and (kept.sum(1) < 3).any(), "each row must drop some, and one expert have room"
            assert (output[dropped] == 0).all() and (x.grad[dropped] == 0).all(), "a dropped token must give exactly 0"
            assert kept.sum() != experts.flatten().bincount().clamp(max=6).sum(), "capacity over both rows must drop others"
        else:
            logits, gates, experts = (part.reshape(2, 12, -1) for part in module.gate(x))
            probs = logits.sigmoid() if name == "moe_deepseek" else logits.softmax(-1)
            combine = torch.zeros_like(probs).scatter(-1, experts, gates)
        ranked = probs
        if name == "moe_deepseek":
            ranked = probs + weights["gate.e_score_correction_bias"]
            groups = ranked.reshape(2, 12, 4, 2).sum(-1)
            decided(groups, 2)
            ranked = ranked.masked_fill((groups < groups.topk(2).values[..., -1:]).repeat_interleave(2, -1), -1e9)
            other = build(name, weights | {"gate.e_score_correction_bias": torch.zeros(8)}).gate(x)[2].reshape(2, 12, 3)
            moved = (other.sort(-1).values != experts.sort(-1).values).any(-1).sum().item()
            assert 4 <= moved < 20, "the bias must change several choices and leave others"
        decided(ranked, experts.shape[-1])
        assert (dense(name, weights, x, combine) - output).abs().max() < 1e-5, f"{name}: the stated layouts are wrong"
        for key, value in [(key, value) for key, values in CHANGES[name].items() for value in values]:
            assert (build(name, weights, **{key: value})(x) - output).abs().max() > VISIBLE, f"{key}={value} is not noticed"
    arrays |= {"router_logits": logits, "router_probs": probs, "experts": experts, "weights": gates, "combine": combine}
    return arrays | {f"w/{key}": v for key, v in weights.items()} | {f"g/{key}": v for key, v in gradients.items()}


def make_losses(name: str) -> dict:
    """Hugging Face's load-balancing and z-losses of one layer, with their gradients for the logits."""
    logits = rounded(f"{name}/logits", (2, 12, 4), 1.5) + torch.tensor([0.75, 0.0, -0.5, 0.25])
    mask, losses = torch.arange(12) < torch.tensor([[9], [7]]), {"z": switch.router_z_loss_func}
    arrays = {"config": json.dumps({"num_experts": 4, "layers": 1}), "logits": logits, "mask": mask}
    for k in (1, 2):
        decided(logits, k)
        top = arrays[f"experts_top{k}"] = logits.topk(k).indices
        losses[f"switch_top{k}"] = lambda v, top=top: switch.load_balancing_loss_func(v.softmax(-1), top)
        for key, padding in ((f"mixtral_top{k}", None), (f"mixtral_top{k}_masked", mask.long())):
            losses[key] = lambda v, args=(4, k, padding): mixtral.load_balancing_loss_func((v.flatten(0, 1),), *args)
    for key, loss in losses.items():
        arrays[key] = loss(leaf := logits.clone().requires_grad_())
        arrays[f"g/{key}"] = torch.autograd.grad(arrays[key], leaf)[0]
        assert (arrays[f"g/{key}"][~mask] == 0).all() == key.endswith("masked"), f"{key}: padding counts without a mask only"
    assert np.diff(np.sort([arrays[key].item() for key in losses])).min() > VISIBLE, "two losses cannot be told apart"
    return arrays


def make_noisy(name: str) -> dict:
    """Noisy top-k gates and both balance losses, after redrawing the noise to confirm the probabilities."""
    k, draws, itself = 2, 100_000, torch.eye(6, dtype=torch.bool)
    clean, noise_logits, noise = (rounded(f"{name}/{key}", (40, 6)).double() for key in ("clean", "noise_logits", "noise"))
    clean.requires_grad_(), noise_logits.requires_grad_()
    deviation = torch.log1p(torch.exp(noise_logits))
    noisy = clean + noise * deviation
    decided(noisy, k)
    gates = noisy.masked_fill(noisy < noisy.topk(k).values[:, -1:], -torch.inf).softmax(-1)
    threshold = noisy[:, None, :].masked_fill(itself, -torch.inf).topk(k).values[..., -1]
    probability = 0.5 * (1 + torch.erf((clean - threshold) / deviation / 2**0.5))
    arrays = {"config": json.dumps({"k": k, "num_experts": 6, "loss_weight": 0.1, "ddof": 0, "epsilon": 1e-10})}
    arrays |= dict(clean=clean, noise_logits=noise_logits, noise=noise, H=noisy, gates=gates, threshold=threshold)
    arrays |= dict(probability=probability, importance=gates.sum(0), load=probability.sum(0))
    for key in ("importance", "load"):
        arrays[f"{key}_cv2"] = arrays[key].var(correction=0) / (arrays[key].mean() ** 2 + 1e-10)
        arrays[f"{key}_loss"] = 0.1 * arrays[f"{key}_cv2"]
    arrays["loss"] = arrays["importance_loss"] + arrays["load_loss"]
    for key in ("importance_loss", "load_loss", "loss"):
        slopes = torch.autograd.grad(arrays[key], (clean, noise_logits), retain_graph=True)
        arrays |= {f"g/{key}/clean": slopes[0], f"g/{key}/noise_logits": slopes[1]}
        assert min(slope.abs().amax(0).min() for slope in slopes) > 1e-6, f"{key} must move every expert"
    # Redraw one component's noise at a time, hold the others, and count how often fewer than k of them beat it.
    for token, p in enumerate(probability.detach()):
        fresh = torch.randn(6, 1, draws, generator=torch.Generator().manual_seed(token)) * deviation[token, :, None, None]
        beaten_by = ((noisy[token, :, None] > clean[token, :, None, None] + fresh) & ~itself[:, :, None]).sum(1)
        error = ((beaten_by < k).double().mean(-1) - p).abs() / (p * (1 - p) / draws).sqrt()
        assert (error < 4)[(p > 1e-3) & (p < 1 - 1e-3)].all(), "the probabilities disagree with redrawn noise"
    return arrays


def make_slots(name: str) -> dict:
    """The three orders of priority over random cases, with ties and with padding at the end or anywhere."""
    draw, cases, ties = np.random.default_rng(zlib.crc32(name.encode())), 40, 0
    arrays = {key: np.zeros(cases, np.int32) for key in ("tokens", "num_experts", "k", "capacity")}
    probs, experts = np.zeros((cases, 20, 6), np.float32), np.full((cases, 20, 3), -1, np.int32)
    mask, priorities = np.zeros((cases, 20), bool), ("token_major", "choice_major", "batch_prioritised")
    slots, kept = np.full((3, cases, 20, 3), -1, np.int32), np.zeros((3, cases, 20, 3), bool)
    for case in range(cases):
        tokens, count, capacity = draw.integers([5, 2, 1], [21, 7, 7])
        k = draw.integers(1, min(3, count) + 1)
        for key, value in zip(arrays, (tokens, count, k, capacity), strict=True):
            arrays[key][case] = value
        # Every other case has probabilities in sixteenths, so that they tie.
        p = draw.multinomial(16, np.full(count, 1 / count), tokens) if case % 2 else draw.exponential(size=(tokens, count))
        p = probs[case, :tokens, :count] = (p / p.sum(1, keepdims=True)).astype(np.float32)
        experts[case, :tokens, :k] = np.argsort(-p, axis=1, kind="stable")[:, :k]
        real = draw.random(tokens) < 0.7 if case % 3 == 2 else np.arange(tokens) < tokens - 3 * (case % 3)
        mask[case, :tokens] = real
        ties += len(set(p.max(1)[real].tolist())) < real.sum()
        confident = sorted(range(tokens), key=lambda t: (-p[t].max(), t))
        by_choice, by_confidence = ([(t, r) for r in range(k) for t in ranked] for ranked in (range(tokens), confident))
        for priority, order in enumerate((sorted(by_choice), by_choice, by_confidence)):
            queue, fill = [0] * count, [0] * count
            for t, r in (pair for pair in order if real[pair[0]]):
                expert = experts[case, t, r]
                fits = queue[expert] < capacity
                assert fits == (fill[expert] < capacity), "counting only kept assignments must keep the same ones"
                slots[priority, case, t, r], kept[priority, case, t, r] = queue[expert], fits
                queue[expert], fill[expert] = queue[expert] + 1, fill[expert] + int(fits)
    differing = (kept != np.roll(kept, 1, axis=0)).any((2, 3)).sum(1)
    full = (kept[0].sum((1, 2)) == mask.sum(1) * arrays["k"]).sum()
    assert differing.min() >= 8 and 3 <= full <= 30 and ties >= 10, "the cases do not tell the priorities apart"
    arrays |= {"config": json.dumps({"cases": cases}), "probs": probs, "experts": experts, "mask": mask}
    arrays |= {f"slot/{key}": slots[i] for i, key in enumerate(priorities)}
    return arrays | {f"kept/{key}": kept[i] for i, key in enumerate(priorities)}


def main() -> None:
    """Write the chosen fixtures and print what they hold."""
    makers = dict.fromkeys(LAYERS, make_layer) | dict(moe_losses=make_losses, moe_noisy=make_noisy, moe_slots=make_slots)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the .npz files go")
    parser.add_argument("--only", nargs="*", choices=list(makers), default=list(makers), help="files to make")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.only:
        arrays = makers[name](name)
        for key, value in arrays.items():
            array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.array(value)
            arrays[key] = array.astype({"f": np.float32, "i": np.int32}.get(array.dtype.kind, array.dtype))
        path = arguments.out / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB, {len(arrays)} arrays")


if __name__ == "__main__":
    main()
