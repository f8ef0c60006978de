"""`jaxlm show` and `jaxlm diff`: an experiment looked at without running it."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxlm import param
from jaxlm.config import difference, digest, flatten
from jaxlm.experiment import Experiment
from jaxlm.experiment_file import load_experiment
from jaxlm.experiment_mesh import settle_mesh, work_of
from jaxlm.hardware import Chip, chip
from jaxlm.layout import ways as layout_ways
from jaxlm.model import flops, lora, transformer
from jaxlm.run.directory import load_config
from jaxlm.run.preflight import check_functions
from jaxlm.run.unread import describe_unread
from jaxlm.train import arrange


def show_experiment(experiment: Experiment, num_devices: int) -> None:
    """Print the resolved fields, parameters by part, FLOPs, bytes, and each weight's place with the reason."""
    check_functions(experiment)
    out = Console(highlight=False)
    out.width = max(out.width, 128)  # names of weights in full
    num_devices = num_devices or jax.device_count()
    kind = chip(jax.devices()[0].device_kind)
    choice = settle_mesh(experiment, num_devices, kind)
    shape = choice.shape
    out.print(f"[bold]{experiment.name}[/]  digest {digest(experiment)}\n")
    fields = _table("field", "value")
    for name, value in flatten(experiment).items():
        fields.add_row(name, str(value))
    out.print(fields)
    for line in describe_unread(experiment):
        out.print("[yellow]warning:[/]", line)
    out.print()
    out.print(_parts(experiment))
    out.print()
    for reason in choice.reasons:
        out.print(f"mesh: {reason}")
    out.print(_costs(experiment, shape, kind))
    out.print()
    out.print(_placement(experiment, shape))


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in ("parameters", "share", "bytes a device") else "left")
    return table


def _parts(experiment: Experiment) -> Table:
    counts: dict[str, int] = defaultdict(int)
    for name, leaf in param.named_leaves(_spec(experiment)).items():
        parts = name.split(".")
        counts[parts[2] if parts[0] == "blocks" else parts[0]] += math.prod(leaf.shape)
    total = sum(counts.values())
    table = _table("part", "parameters", "share")
    for part, count in counts.items():
        table.add_row(part, f"{count:,}", f"{100 * count / total:.1f} %")
    table.add_row("[bold]all[/]", f"[bold]{total:,}[/]", "")
    return table


def _spec(experiment: Experiment) -> Any:
    return lora.adapt(transformer.spec(experiment.model), experiment.lora)


def _costs(experiment: Experiment, shape: dict[str, int], kind: Chip | None) -> Table:
    length, spec = experiment.data.sequence_length, _spec(experiment)
    trained, _ = param.split(spec, spec)
    share = experiment.trained_share
    per_token = flops.train_flops_per_token(experiment.model, length, share)
    live = experiment.reference_beside or experiment.reference_is_base
    if live:
        per_token += flops.forward_flops_per_token(experiment.model, length)
    tokens = experiment.rows * length
    weights, gradients = (param.bytes_per_device(part, experiment.layout, shape) for part in (spec, trained))
    copies = arrange.OPTIMIZER_COPIES[experiment.optimizer.kind]
    kept = arrange.activation_bytes(work_of(experiment, kind), shape)
    rows: dict[str, Any] = {"mesh": " x ".join(f"{name} {size}" for name, size in shape.items())}
    if experiment.model.moe.num_experts:
        rows["active parameters a token"] = f"{flops.active_parameters(experiment.model):,.0f} of {param.count(spec):,}"
    if experiment.lora.rank:
        rows["trained parameters"] = f"{param.count(trained):,} of {param.count(spec):,} ({100 * share:.2g} %)"
    rows |= {
        "training FLOPs a token": f"{per_token:.3e}{' with those of the reference' if live else ''}",
        "training FLOPs a step": f"{per_token * tokens:.3e} ({tokens:,} tokens)",
        "training FLOPs of the run": f"{per_token * tokens * experiment.steps:.3e}",
        "parameters a device": _bytes(weights),
        "optimizer state a device": f"{_bytes(copies * gradients)}{' at most' if experiment.optimizer.kind == 'muon' else ''}",
        "gradients a device": _bytes(gradients),
        **({"reference a device": _bytes(weights)} if experiment.reference_beside else {}),
        "activations a device": f"{_bytes(kept)} (estimate, remat {experiment.remat})",
    }
    table = _table("cost", "value")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _placement(experiment: Experiment, shape: dict[str, int]) -> Table:
    table = _table("weight", "shape", "split", "bytes a device", "why")
    for name, leaf in param.named_leaves(_spec(experiment)).items():
        places, reasons, ways = [], [], 1
        for axis, entry in zip(leaf.axes, experiment.layout.spec(*leaf.axes), strict=True):
            names = (entry,) if isinstance(entry, str) else entry or ()
            names = [n for n in names if shape[n] > 1] or list(names[:1])
            places.append(" x ".join(f"{n} {shape[n]}" for n in names) or "-")
            if axis:
                reasons.append(f"{axis} -> {' x '.join(names) or 'whole'}")
            ways *= layout_ways(entry, shape)
        size = math.prod(leaf.shape) * 4 // ways
        why = ", ".join(reasons) or "small: whole everywhere"
        table.add_row(name, " x ".join(map(str, leaf.shape)), ", ".join(places), _bytes(size), why)
    return table


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def show_difference(left: Path, right: Path) -> None:
    """Print every field in which two experiments (files or runs) differ."""
    a, b = (load_config(path) if path.is_dir() else load_experiment(path) for path in (left, right))
    changes = difference(a, b)
    if not changes:
        print("no difference")
        return
    table = _table("field", str(left), str(right))
    for name, before, now in changes:
        table.add_row(name, str(before), str(now))
    Console(highlight=False).print(table)
