"""A sweep as jaxlm leaves it, with invented numbers: mixtures of experts, seeds x arms, probes at several checkpoints."""

import json

import numpy as np

from jaxlm.config import digest, to_dict
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.experiment import CheckpointConfig, EvaluationConfig, Experiment
from jaxlm.model.config import ModelConfig
from jaxlm.model.moe_config import MoeConfig
from jaxlm.run.goodput import KINDS
from jaxlm.train.optimizer import OptimizerConfig

ARMS = {"4 experts": 4, "8 experts": 8, "8 experts, dropless": 8, "16 experts": 16}
GAIN = {"4 experts": 0.0, "8 experts": -0.03, "8 experts, dropless": -0.05, "16 experts": -0.034}
# What a model may write, and a user may name an arm.
NASTY = '</script><img src=x onerror=alert(1)> \u2028 "quoted", a, b\nsecond line & <b>bold</b>'


def experiment_of(experts, seed, steps, sequence=64):
    """Return the experiment of a run."""
    return Experiment(
        name="moe_sweep", steps=steps, batch_size=16, seed=seed,
        model=ModelConfig(
            vocab_size=259, num_layers=4, hidden_size=64, num_heads=4, intermediate_size=128, max_length=sequence,
            moe=MoeConfig(num_experts=experts, every=2, capacity_factor=1.25),
        ),
        data=DataConfig(
            sources=("text:book.txt",), validation_fraction=0.1, sequence_length=sequence,
            tokenizer=TokenizerConfig(kind="byte", vocab_size=259),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=max(1, steps // 20)),
        evaluation=EvaluationConfig(every=steps // 10), checkpoint=CheckpointConfig(every=steps // 10, keep=10),
    )  # fmt: skip


def write_run(folder, experts=8, seed=0, steps=500, gain=0.0, done=None, probes=True, checkpoints=5, every_probe=False):
    """Write the directory of one run that took `done` (None: all) of its steps; return its metrics rows."""
    experiment, done = experiment_of(experts, seed, steps), steps if done is None else done
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, experts, round(1000 * -gain)])
    noise = np.random.default_rng(seed).normal(0, 0.02)  # a seed's luck, common to its arms
    (folder / "config.json").write_text(json.dumps(to_dict(experiment)))
    start = {
        "time": "2026-03-01T10:00:00+00:00", "command": ["jaxlm", "sweep", "moe_sweep.py"], "config_digest": digest(experiment),
        "git_commit": "0123456789abcdef", "git_dirty": seed == 2, "python": "3.11.7",
        "versions": {"jaxlm": "0.1.0", "jax": "0.10.2"},
        "devices": "1 x cpu", "mesh": {"data": 1}, "data": "9cb476208c5e974f", "processes": 1,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({"starts": [start] * (2 if seed == 1 else 1)}))
    rows = list(_rows(rng, experiment, done, gain + noise))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in range(steps // 10, done + 1, steps // 10):
        saved = folder / "checkpoints" / str(step)
        saved.mkdir(parents=True)
        for name in ("checksums.json", "_CHECKPOINT_METADATA"):
            (saved / name).write_text("{}")
    if probes:
        for step in [int(s) for s in np.linspace(0, steps, checkpoints) if s <= done]:
            _write_probes(folder / "analysis", rng, step / steps, step, every_probe, experts)
    return rows


def _rows(rng, experiment, done, gain):
    steps, experts, layers = experiment.steps, experiment.model.moe.num_experts, 2
    seconds = dict.fromkeys(KINDS, 0.0) | {
        "compiling": 21.5,
        "starting": 2.0,
        "preparing": 1.5,
        "evaluating": 4.0,
        "saving": 3.0,
    }

    def loss(step):
        return 2.0 + 3.5 * np.exp(-6 * step / steps) + gain * step / steps

    def routers(step):
        loads = rng.dirichlet(np.full(experts, 1 + 40 * step / steps), layers)
        per_layer = {
            "router_load_cv": loads.std(1) * experts,
            "router_dropped": 0.3 * np.exp(-4 * step / steps) + rng.random(layers) / 50,
            "router_dead": np.round(2 * np.exp(-9 * step / steps) * np.ones(layers)), "router_load_max": loads.max(1) * experts,
            "router_entropy": np.log(experts) * (1 - 0.3 * step / steps) + np.zeros(layers),
            "router_gate": 0.3 + np.zeros(layers),
            "router_balance_loss": 1 + loads.std(1), "router_z_loss": 2 + np.zeros(layers),
        }  # fmt: skip
        return {name: np.asarray(v).tolist() for name, v in per_layer.items()}, loads

    for step in range(done):
        if step % (steps // 10) == 0 and step:
            yield _validation(step, loss(step), routers(step), rng)
        value = float(loss(step) + rng.normal(0, 0.06) + (2.0 if step == 3 * steps // 5 else 0.0))
        per_second = float(50_000 + rng.normal(0, 1500))
        seconds["stepping"] += 1024 / per_second
        yield {
            "step": step, "split": "train", "loss": value, "accuracy": float(0.6 - value / 10),
            "gradient_norm": float(np.exp(rng.normal(0, 0.2)) * (1 + 3 * np.exp(-9 * step / steps))),
            "learning_rate": 1e-3 * min(1, (step + 1) / (steps / 20)) * (0.55 + 0.45 * np.cos(np.pi * step / steps)),
            "skipped": 0.0, "skipped_in_a_row": 0.0, "skipped_total": 0.0, "tokens": 1008.0, "real_tokens": 1024,
            "update_ratio": float(1e-3 * np.exp(rng.normal(0, 0.1))), "z": float(30 + rng.normal()),
            "bits_per_byte": value * 1.4427, "perplexity": float(np.exp(value)),
            "tokens_per_second": per_second, "mfu": per_second * 1e-6,
            "step_seconds": 1024 / per_second, "data_wait_seconds": 0.001, "batch_hash": f"{experiment.seed:08x}{step:08x}",
        } | routers(step)[0]  # fmt: skip
    if done == steps:
        yield _validation(steps, loss(steps), routers(steps), rng)
    yield {
        "step": done, "split": "goodput", "start": 0, "seconds": seconds, "all_seconds": seconds,
        "goodput": seconds["stepping"] / sum(seconds.values()),
    }  # fmt: skip


def _validation(step, loss, routers, rng):
    value = float(loss + rng.normal(0, 0.004))
    row = {"step": step, "split": "validation", "loss": value, "accuracy": 0.6 - value / 10, "bits_per_byte": value * 1.4427}
    row |= {"perplexity": float(np.exp(value)), "tokens": 20480.0, "bytes": 20480}
    return row | routers[0] | {"router_load": routers[1].round(5).tolist()}


def _more_probes(rng, experts):
    """Return measures of the size that the other probes of jaxlm leave for a small model."""
    matrices = [f"blocks.{kind}.{name}" for kind in ("attention", "mlp") for name in ("q", "k", "v", "out", "up", "down")]
    shapes = {
        "weights": {"rank": ("layer", "matrix"), "spectrum": ("matrix", "index"), "update": ()},
        "residual": {"norm": ("layer", "position"), "growth": ("layer",)}, "logit_lens": {"loss": ("layer", "position")},
        "cka": {"between": ("layer", "with"), "to_last": ("layer",)}, "connectivity": {"loss": ("share",), "barrier": ()},
        "patching": {"recovered": ("layer", "position")}, "noise_scale": {"noise_scale": (), "by_layer": ("layer",)},
        "routers": {"by_class": ("layer", "class", "expert"), "information": ("layer",)},
        "memorization": {"gap": (), "planted": ()},
    }  # fmt: skip
    sizes = {"layer": 4, "with": 4, "position": 64, "matrix": 12, "index": 64, "share": 11, "class": 8, "expert": experts}
    return {
        probe: {
            name: _measure(rng.random([sizes[axis] for axis in axes]), axes, {"matrix": matrices} if "matrix" in axes else {})
            for name, axes in measures.items()
        }
        for probe, measures in shapes.items()
    }


def _write_probes(folder, rng, share, step, every_probe, experts):
    heads = rng.random((4, 4)) * 0.2 + share * np.eye(4)
    positions = 3 - share + 1 / (1 + np.arange(64))
    distances = rng.random((4, 4, 64)).cumsum(-1) / 40 - share / 2
    probes = {
        "loss": {
            "loss": _measure(3 - share, unit="nats", about="Mean loss of a predicted token."),
            "by_position": _measure(positions, ("position",), unit="nats"),
            "by_class": _measure(2 + rng.random(4), ("class",), {"class": ["word", "number", "space", "<b>other</b>"]}, "nats"),
        },
        "attention": {
            "induction": _measure(heads, ("layer", "head"), about="Weight on the token after the same one before."),
            "distance": _measure(distances, ("layer", "head", "position")),
        },
        "samples": {
            "texts": _measure([f"def f{step}(x):\n    return x", NASTY], ("prompt",), {"prompt": ["def ", "</script>"]}),
        },
    }  # fmt: skip
    for probe, measures in (probes | (_more_probes(rng, experts) if every_probe else {})).items():
        (folder / probe).mkdir(parents=True, exist_ok=True)
        result = {
            "probe": probe, "title": f"What {probe} says", "step": step, "reads": {}, "settings": {}, "code": "0", "rows": "0",
            "seconds": 1.0, "version": "0", "relations": {}, "steps": [], "training": None, "measures": measures,
        }  # fmt: skip
        (folder / probe / f"{step}.json").write_text(json.dumps(result))


def _measure(values, axes=(), labels=None, unit="", about=""):
    values = values.tolist() if isinstance(values, np.ndarray) else values
    return {"values": values, "axes": list(axes), "labels": labels or {}, "unit": unit, "about": about}


def write_sweep(root, arms=ARMS, seeds=3, steps=500, unfinished=True, **how):
    """Write a sweep below `root`, one run of it failed and one not begun where `unfinished`; return the sweep's folder."""
    sweep, trials = root / "moe_sweep", []
    sweep.mkdir(parents=True)
    for arm, experts in arms.items():
        for seed in range(seeds):
            name = f"{len(trials):016x}"
            last = arm == list(arms)[-1] and unfinished
            if not (last and seed == seeds - 1):
                failed = last and seed == seeds - 2
                write_run(
                    root / "trials" / name, experts, seed, steps, GAIN.get(arm, 0.0), steps // 2 if failed else None, **how
                )
                if failed:
                    lines = [
                        "Traceback (most recent call last):",
                        "JaxlmError: 10 steps in a row <had> a loss that is not finite",
                    ]
                    fault = {
                        "time": "2026-03-01T11:00:00+00:00",
                        "kind": "JaxlmError",
                        "message": "10 steps in a row",
                        "step": steps // 2,
                    }
                    (root / "trials" / name / "failure.json").write_text(json.dumps(fault | {"traceback": lines}))
            control = arm == next(iter(arms))
            changes = {"model.moe.num_experts": experts}
            trials.append(
                {"arm": arm, "seed": seed, "changes": changes, "control": control, "run": f"../trials/{name}", "digest": name}
            )
    about = "At equal active parameters and equal steps, loss falls with the number of experts.\n\nEvery arm runs three seeds."
    record = {"name": "moe_sweep", "about": about, "file": "moe_sweep.py", "control": next(iter(arms)), "trials": trials}
    (sweep / "sweep.json").write_text(json.dumps(record | {"code": "ab" * 8, "time": "2026-03-01T10:00:00+00:00"}))
    return sweep
