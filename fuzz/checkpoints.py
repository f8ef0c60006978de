"""Checkpoints: what Orbax keeps, and what we keep beside it."""

import json
from pathlib import Path
from random import Random

from fuzz.mutate import Files, by_name, dump, mutated, odd
from fuzz.target import Target, folder_files
from jaxlm.train import checkpoint, checksums
from jaxlm.train.checkpoint_writer import CheckpointWriter
from jaxlm.train.saved import saved_steps


def _checkpoint_seeds(folder: Path) -> list[Files]:
    """Return a checkpoint of one small array, with its description, as training writes it."""
    import jax
    import numpy as np

    from jaxlm.layout import make_mesh

    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        writer = CheckpointWriter(folder / "checkpoints", keep=1)
        writer.save_params({"w": jax.device_put(np.arange(4.0, dtype=np.float32))}, 3, {"jaxlm": "0", "model": {"a": 1}})
        writer.close()
    return [folder_files(folder)]


def _checkpoint(rng: Random, seeds: list[Files]) -> Files:
    files = dict(seeds[0])
    name = rng.choice([name for name in files if not name.endswith("/")])
    is_json = files[name][:1] in (b"{", b"[")
    files[name] = by_name(rng, "x.json", files[name]) if is_json else mutated(rng, files[name])
    if rng.random() < 0.3:
        sums = json.loads(files["checkpoints/3/checksums.json"]) if name != "checkpoints/3/checksums.json" else {}
        if not isinstance(sums, dict) or rng.random() < 0.2:
            files.pop("checkpoints/3/checksums.json")
        else:
            files["checkpoints/3/checksums.json"] = dump(sums | {name: [rng.choice((0, 2**63, -1)), odd(rng)]})
    return files


def _read_checkpoint(folder: Path) -> None:
    """Read what a checkpoint says of itself, and hold it against what a model asks for; no array is read."""
    import jax
    import numpy as np

    saves = folder / "checkpoints"
    saved_steps(saves)
    checksums.damage(saves / "3")
    checkpoint.fingerprint(saves, 3)
    checkpoint.description(saves, 3)
    checkpoint.compare(saves, 3, {"params": {"w": jax.ShapeDtypeStruct((4,), np.float32)}})


def _arrays(rng: Random, seeds: list[Files]) -> Files:
    """Change one file of the arrays, which checksums no longer speak of: else they would tell."""
    files = {name: content for name, content in seeds[0].items() if not name.endswith("checksums.json")}
    name = rng.choice([name for name in files if not name.endswith("/") and "/params/" in name])
    files[name] = mutated(rng, files[name])
    return files


def _restore(folder: Path) -> None:
    """Read an array, as whoever continues a run does."""
    import jax

    from jaxlm.layout import make_mesh

    mesh = make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        asked = jax.ShapeDtypeStruct((4,), "float32", sharding=place)
        checkpoint.read(folder / "checkpoints", 3, {"params": {"w": asked}})


TARGETS = (
    Target("checkpoint", "what a checkpoint says of itself", _checkpoint_seeds, _checkpoint, _read_checkpoint),
    Target("checkpoint-arrays", "the arrays of a checkpoint whose checksums are gone", _checkpoint_seeds, _arrays, _restore),
)
