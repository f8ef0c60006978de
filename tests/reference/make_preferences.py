"""Losses of preference optimisation by TRL and by the official DPO code, stored for tests/objective.

    pip install trl==1.16.0 transformers==5.23.0 torch==2.13.0 datasets accelerate
    git clone https://github.com/eric-mitchell/direct-preference-optimization
    python tests/reference/make_preferences.py direct-preference-optimization/trainers.py

preferences.npz holds, float32 but for `cases` and `batches`:
    policy, reference [P, 2]  summed log-probabilities of P chosen and rejected responses, multiples of 1 / 256, so that
                              differences are exact;   lengths [P, 2]  their tokens;   labels [P]  1 or 0 (for kto)
    mismatched [P, 2]         of kto's mismatched responses, policy and reference; its baseline is measured on them
    cases                     JSON: a list of {"source", "config": fields of PreferenceConfig}
    losses [cases, P], gradients [cases, P, 2]   of each pair and for both policy log-probabilities, by pairs alone
    tokens/NAME [2 Q, L]      a batch of Q pairs in turn: weights (1 on responses), real (1 on all real tokens), log_probs
                              (0 where not real), entropy, correct;   tokens/reference [2 Q]
    batches                   JSON: a list of {"source", "config", "metrics"} of that whole batch
    batch_gradients [batches, 2 Q, L]  of the batch's loss for `log_probs`

"trl" executes DPOTrainer, CPOTrainer, ORPOTrainer and KTOTrainer, unbound, on these numbers; "official" the function
`preference_loss` of the file given (sigmoid with label smoothing, and ipo without lengths), lifted from it by name.
"""

import ast
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

P, Q, L = 12, 3, 9
OF_SCORES = ("sigmoid", "hinge", "ipo", "sigmoid_norm", "discopop")
DIVERGENCES = {"reverse_kl": "reverse_kl", "forward_kl": "forward_kl", "js": "js_divergence", "alpha": "alpha_divergence"}
CASES = [
    *({"loss": loss, "beta": beta} for loss in (
        *OF_SCORES, "bco_pair", "sppo_hard", "apo_zero", "apo_down", "nca_pair", "robust", "orpo", "simpo", "cpo", "kto"
    ) for beta in (0.05, 0.1, 0.5)),
    *({"loss": loss, "beta": 0.1, "divergence": d} for loss in OF_SCORES for d in ("forward_kl", "js", "alpha")),
    *({"loss": loss, "beta": beta, "label_smoothing": e} for loss, e in (
        ("exo_pair", 1e-3), ("exo_pair", 0.3), ("robust", 0.1), ("robust", 0.4), ("simpo", 0.2), ("cpo", 0.1)
    ) for beta in (0.1, 0.7)),
    {"loss": "exo_pair", "beta": 0.2, "label_smoothing": 0.1, "divergence": "js"},
    {"loss": "robust", "beta": 0.2, "label_smoothing": 0.1, "divergence": "forward_kl"},
    {"loss": "sigmoid", "beta": 0.1, "divergence": "alpha", "alpha": 1.0},
    {"loss": "sigmoid", "beta": 0.1, "divergence": "alpha", "alpha": 1.4},
    {"loss": "simpo", "beta": 2.0, "margin": 1.2},
    {"loss": "discopop", "beta": 0.1, "temperature": 0.2},
    {"loss": "kto", "beta": 0.1, "desirable_weight": 1.3, "undesirable_weight": 0.6},
]  # fmt: skip
OFFICIAL = [
    *({"loss": "sigmoid", "beta": beta, "label_smoothing": e} for beta in (0.05, 0.1, 0.5) for e in (0.0, 0.1, 0.4)),
    *({"loss": "ipo_sum", "beta": beta} for beta in (0.05, 0.1, 0.5)),
]
BATCHES = [
    {"loss": "sigmoid"}, {"loss": "sigmoid", "sft_weight": 0.7}, {"loss": "ipo", "beta": 0.3}, {"loss": "apo_down"},
    {"loss": "cpo", "sft_weight": 1.0}, {"loss": "simpo", "beta": 2.0, "sft_weight": 0.5}, {"loss": "simpo", "beta": 2.0},
    {"loss": "orpo"},
]  # fmt: skip


def accelerator() -> SimpleNamespace:
    return SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)


def trainer(config: dict, **more) -> SimpleNamespace:
    """Return what TRL's methods read of `self`."""
    values = {
        "model": SimpleNamespace(training=True), "accelerator": accelerator(), "aux_loss_enabled": False, "ld_alpha": None,
        "precompute_ref_logps": True, "use_weighting": False, "_tp_size": 1, "_total_train_tokens": 0, "calculate_KL": True,
        "_metrics": {"train": defaultdict(list)}, "loss_types": [config["loss"]], "loss_weights": [1.0],
        "beta": config.get("beta", 0.1), "label_smoothing": config.get("label_smoothing", 0.0),
        "f_divergence_type": DIVERGENCES[config.get("divergence", "reverse_kl")],
        "f_alpha_divergence_coef": config.get("alpha", 0.5), "alpha": 0.0, "simpo_gamma": config.get("margin", 0.5),
        "args": SimpleNamespace(discopop_tau=config.get("temperature", 0.05)), "cpo_alpha": config.get("sft_weight", 0.0),
        "loss_type": {"cpo": "sigmoid"}.get(config["loss"], config["loss"]), "is_encoder_decoder": False,
        "desirable_weight": config.get("desirable_weight", 1.0), "undesirable_weight": config.get("undesirable_weight", 1.0),
    }  # fmt: skip
    return SimpleNamespace(**(values | more))


def outputs(log_probs: torch.Tensor, entropy=None, correct=None) -> SimpleNamespace:
    """Return what a model with TRL's fused head does."""
    zeros = torch.zeros_like(log_probs)
    return SimpleNamespace(
        log_probs=log_probs, entropy=zeros if entropy is None else entropy, mean_logits=zeros,
        is_top1=zeros.bool() if correct is None else correct.bool(),
    )  # fmt: skip


def one_pair(config: dict, policy: torch.Tensor, reference: torch.Tensor, lengths: np.ndarray) -> torch.Tensor:
    """Return TRL's loss of one pair; a response's whole log-probability stands at its first token."""
    if config["loss"] in ("simpo", "cpo"):
        averaged = policy / torch.tensor(lengths) if config["loss"] == "simpo" else policy
        return CPOTrainer.cpo_loss(trainer(config), averaged[:1], averaged[1:])[0].sum()
    if config["loss"] == "orpo":
        averaged = policy / torch.tensor(lengths)
        return -ORPOTrainer.odds_ratio_loss(trainer(config), averaged[:1], averaged[1:])[0].sum()
    width = int(lengths.max()) + 2
    mask = (torch.arange(width)[None] > 0) & (torch.arange(width)[None] <= torch.tensor(lengths)[:, None])
    log_probs = torch.nn.functional.pad(policy[:, None], (0, width - 2))
    inputs = {
        "input_ids": torch.zeros(2, width, dtype=torch.long), "attention_mask": torch.ones(2, width),
        "completion_mask": mask.long(), "ref_chosen_logps": reference[:1], "ref_rejected_logps": reference[1:],
    }  # fmt: skip
    return DPOTrainer._compute_loss(trainer(config), lambda **_: outputs(log_probs), inputs, False)


def one_example(config: dict, policy: torch.Tensor, reference: torch.Tensor, label: float, mismatched: torch.Tensor):
    """Return TRL's KTO loss of one example, the baseline being that of all mismatched responses."""
    inputs = {
        "input_ids": torch.zeros(1, 2, dtype=torch.long), "attention_mask": torch.ones(1, 2), "label": torch.tensor([label]),
        "completion_mask": torch.tensor([[0, 1]]), "ref_logps": reference[None], "ref_KL_logps": mismatched[:, 1],
    }  # fmt: skip
    stub = trainer(config, _compute_kl_logps=lambda model, batch: mismatched[:, 0])
    return KTOTrainer._compute_loss(stub, lambda **_: outputs(policy[None, None]), inputs, False)


def by_trl(config: dict, data: dict) -> tuple[np.ndarray, np.ndarray]:
    losses, gradients = [], []
    for i in range(P):
        policy = torch.tensor(data["policy"][i], requires_grad=True)
        reference = torch.tensor(data["reference"][i])
        if config["loss"] == "kto":
            mismatched = torch.tensor(data["mismatched"])
            loss = one_example(config, policy[0], reference[0], float(data["labels"][i]), mismatched)
        else:
            loss = one_pair(config, policy, reference, data["lengths"][i])
        loss.backward()
        losses.append(loss.detach().numpy())
        gradients.append(policy.grad.numpy())
    return np.array(losses, np.float32), np.stack(gradients)


def by_official(preference_loss, config: dict, data: dict) -> tuple[np.ndarray, np.ndarray]:
    policy, reference = torch.tensor(data["policy"], requires_grad=True), torch.tensor(data["reference"])
    losses, *_ = preference_loss(
        *policy.T, *reference.T, config["beta"], config.get("label_smoothing", 0.0), config["loss"] == "ipo_sum"
    )
    losses.sum().backward()
    return losses.detach().numpy(), policy.grad.numpy()


def lifted(path: str):
    """Return `preference_loss` of the official trainers.py, without what else that file imports."""
    tree = ast.parse(Path(path).read_text())
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "preference_loss")
    found.returns, found.decorator_list = None, []
    for argument in found.args.args:
        argument.annotation = None
    space = {"torch": torch, "F": torch.nn.functional}
    exec(compile(ast.Module([found], []), path, "exec"), space)
    return space["preference_loss"]


def token_batch(rng: np.random.Generator) -> dict:
    """Return Q pairs of one prompt length each, with the shift already made: place t is of token t + 1."""
    prompts = np.repeat(rng.integers(1, 4, Q), 2)
    ends = prompts + rng.integers(1, L - 3, 2 * Q)
    place = np.arange(L)[None]
    real = place < ends[:, None]
    weights = real & (place >= prompts[:, None])
    log_probs = np.where(real, -rng.exponential(1.2, real.shape), 0)
    return {
        name: np.asarray(value, np.float32)
        for name, value in {
            "weights": weights, "real": real, "log_probs": log_probs, "entropy": rng.uniform(0, 2, real.shape),
            "correct": rng.integers(0, 2, real.shape), "reference": (log_probs * weights).sum(1) + rng.normal(0, 1.5, 2 * Q),
        }.items()
    }  # fmt: skip


def whole_batch(config: dict, tokens: dict) -> tuple[dict, np.ndarray]:
    """Return TRL's loss and metrics of the batch, which it lays out as all chosen, then all rejected."""
    order = np.r_[0 : 2 * Q : 2, 1 : 2 * Q : 2]
    weights, real, entropy, correct, reference = (
        torch.tensor(tokens[name][order]) for name in ("weights", "real", "entropy", "correct", "reference")
    )
    log_probs = torch.tensor(tokens["log_probs"][order], requires_grad=True)
    stub = trainer(config)
    if config["loss"] in ("cpo", "simpo", "orpo"):
        loss, metrics = without_reference(config, stub, log_probs, weights, real)
    else:
        if config.get("sft_weight"):
            stub.loss_types, stub.loss_weights = [config["loss"], "sft"], [1.0, config["sft_weight"]]
        masked = log_probs * weights
        inputs = {
            "input_ids": torch.zeros(2 * Q, L + 1, dtype=torch.long), "attention_mask": torch.ones(2 * Q, L + 1),
            "completion_mask": torch.nn.functional.pad(weights, (1, 0)).long(),
            "ref_chosen_logps": reference[:Q], "ref_rejected_logps": reference[Q:],
        }  # fmt: skip
        loss = DPOTrainer._compute_loss(stub, lambda **_: outputs(masked, entropy, correct), inputs, False)
        metrics = {name: values[-1] for name, values in stub._metrics["train"].items()}
        metrics = {name: value for name, value in metrics.items() if "/" in name and "logits" not in name} | {
            name: metrics[name] for name in ("entropy", "mean_token_accuracy")
        }
    loss.backward()
    gradient = np.zeros((2 * Q, L), np.float32)
    gradient[order] = log_probs.grad.numpy()
    return {"loss": loss.item()} | metrics, gradient


def without_reference(config, stub, log_probs, weights, real) -> tuple[torch.Tensor, dict]:
    """Run CPOTrainer or ORPOTrainer on logits that give these log-probabilities to token 0 and all else to token 1."""
    logits = torch.stack([log_probs, torch.log(-torch.expm1(log_probs.clamp(max=-1e-6)))], dim=-1)
    logits = torch.nn.functional.pad(logits, (0, 0, 0, 1))
    labels = torch.nn.functional.pad(torch.where(weights > 0, 0, -100), (1, 0), value=-100)
    attention = torch.nn.functional.pad(real, (1, 0), value=1).long()
    inputs = {
        "concatenated_input_ids": torch.zeros(2 * Q, L + 1, dtype=torch.long), "concatenated_attention_mask": attention,
        "concatenated_labels": labels,
    }  # fmt: skip
    method = ORPOTrainer if config["loss"] == "orpo" else CPOTrainer
    stub.concatenated_inputs, stub.pad_token_id, stub.padding_value = (lambda batch, **_: inputs), 0, 0
    stub.get_batch_logps = method.get_batch_logps
    stub.concatenated_forward = lambda model, batch: method.concatenated_forward(stub, model, batch)
    for name in ("cpo_loss", "odds_ratio_loss"):
        if hasattr(method, name):
            setattr(stub, name, lambda *a, f=getattr(method, name): f(stub, *a))
    model = lambda *_, **__: SimpleNamespace(logits=logits)  # noqa: E731
    loss, metrics = method.get_batch_loss_metrics(stub, model, {"chosen_labels": labels[:Q]})
    return loss, {name: value for name, value in metrics.items() if name.startswith("rewards/")}


def main(official: str) -> None:
    rng = np.random.default_rng(0)
    grid = lambda a: (np.round(a * 256) / 256).astype(np.float32)  # noqa: E731
    policy = grid(-rng.uniform(3, 90, (P, 2)))
    data = {
        "policy": policy, "reference": grid(policy + rng.normal(0, 4, (P, 2))),
        "lengths": rng.integers(2, 40, (P, 2)).astype(np.float32), "labels": (np.arange(P) % 3 > 0).astype(np.float32),
    }  # fmt: skip
    data["mismatched"] = grid(np.stack([rng.uniform(-30, -20, P), rng.uniform(-32, -22, P)], axis=1))
    data["reference"][0] = data["policy"][0]
    preference_loss = lifted(official)
    cases = [("trl", case) for case in CASES] + [("official", case) for case in OFFICIAL]
    found = [by_trl(case, data) if source == "trl" else by_official(preference_loss, case, data) for source, case in cases]
    tokens = token_batch(rng)
    batches = [whole_batch(case, tokens) for case in BATCHES]
    np.savez_compressed(
        Path(__file__).parent / "preferences.npz",
        **data,
        cases=json.dumps([{"source": source, "config": case} for source, case in cases]),
        losses=np.stack([losses for losses, _ in found]),
        gradients=np.stack([gradients for _, gradients in found]),
        **{f"tokens/{name}": value for name, value in tokens.items()},
        batches=json.dumps([{"source": "trl", "config": c, "metrics": m} for c, (m, _) in zip(BATCHES, batches, strict=True)]),
        batch_gradients=np.stack([gradient for _, gradient in batches]),
    )


if __name__ == "__main__":
    main(sys.argv[1])
