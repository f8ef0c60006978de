"""Folders of runs and sweeps: whatever lies there, a listing, a report and a continued run say so in words."""

import contextlib
import json
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutate import Files, by_name, one_of
from fuzz.target import Target, folder_files, made_in_a_folder
from jaxlm.analysis.findings import findings
from jaxlm.analysis.measure import Measure
from jaxlm.analysis.store import left_out, read_all, read_faults
from jaxlm.data.building import read_manifest
from jaxlm.errors import JaxlmError
from jaxlm.launch.job import read_job
from jaxlm.report.gather import gather
from jaxlm.report.page import content
from jaxlm.run.directory import imported_from, load_config, read_starts
from jaxlm.run.goodput import settle_earlier
from jaxlm.run.metrics import keep_rows_before, read_rows
from jaxlm.run.standing import sentence, standing
from jaxlm.run.status import show_run
from jaxlm.sweep.index import INDEX, find_runs
from jaxlm.sweep.listing import Columns, cell, differing, rows_of, sort_by, to_csv, to_json
from jaxlm.sweep.read import RECORD, read_record
from jaxlm.sweep.trials import RUNS
from jaxlm.train import checkpoint, checksums

_KINDS = {
    "finished", "running", "stopped", "failed", "empty", "imported", "broken", "foreign"
}  # fmt: skip


def _run(folder: Path, **given: Any) -> Path:
    from run_folders import make_run

    made = make_run(folder, **given)
    (made / "lock").unlink()
    failure = {"time": "2027-01-02T03:09:00+00:00", "kind": "DataError", "message": "the disk is full", "step": 12}
    (made / "failure.json").write_text(json.dumps(failure | {"traceback": ["a", "b"], "steps": 30}))
    start = json.loads((made / "run.json").read_text())
    start["starts"][0] |= {
        "command": ["jaxlm", "train"], "versions": {"jax": "0.10.2"}, "mesh": {"data": 2}, "processes": 1, "git_dirty": True
    }  # fmt: skip
    (made / "run.json").write_text(json.dumps(start))
    return made


def _result(values: Any, axes: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    measures = {"one": Measure(values, axes, unit="nats", about="A number.").to_dict()}
    return {"settings": {}, "code": "a", "version": "b", "probe": "p", "title": "P", "measures": measures, **more}


def _run_seeds(folder: Path) -> list[Files]:
    made = []
    for given in ({"done": 12, "saves": (10,)}, {"done": 30}, {"done": 0, "saves": ()}):
        files = made_in_a_folder(lambda f, g=given: _run(f / "r", **g))
        made.append({name.removeprefix("r/"): content for name, content in files.items()})
    made[1].pop("failure.json")
    made[1]["analysis/loss/10.json"] = json.dumps(_result(2.5)).encode()
    made[1]["analysis/loss/20.json"] = json.dumps(_result(2.25, time=1)).encode()
    made[1]["analysis/maps/20.json"] = json.dumps(_result([[1.0, 2.0], [3.0, None]], ("layer", "head"))).encode()
    made[1]["analysis/maps/10.json"] = json.dumps(_result([["a", "b"]], ("layer", "token"))).encode()
    made[1]["analysis/maps/30.fault.json"] = b'{"fault": "no text", "probe": "maps", "step": 30}'
    made[0]["checkpoints/10/checksums.json"] = b'{"a": [3, "5d2"]}'
    made[0]["checkpoints/10/a"] = b"abc"
    made[0]["run.json"] = made[0]["run.json"].replace(
        b'"mesh"', b'"imported": {"family": "llama", "dtypes": {"F32": 3}}, "mesh"'
    )
    return made


def _one_file(rng: Random, seeds: list[Files]) -> Files:
    files = one_of(rng, seeds, by_name)
    if rng.random() < 0.05:  # a file where a folder belongs, and the other way round
        name = rng.choice(("checkpoints", "analysis", "config.json/", "metrics.jsonl/", "run.json/", "checkpoints/x", "lock/"))
        clash = [other for other in files if other.rstrip("/") == name.rstrip("/") or other.startswith(name.rstrip("/") + "/")]
        for other in clash:
            files.pop(other)
        files[name] = b""
    return files


def _read_run(folder: Path) -> bool:
    """Ask all that reads a run's folder; what never raises must not, and what is shown must be text that can be written."""
    found = standing(folder)
    assert found.kind in _KINDS and sentence(found).encode(errors="surrogatepass")
    read_starts(folder)
    imported_from(folder)
    read_all(folder), left_out(folder), read_faults(folder), findings(folder, ("loss", "maps"))
    good = 0
    for read in (
        load_config, show_run, lambda f: read_rows(f / "metrics.jsonl"), lambda f: keep_rows_before(f / "metrics.jsonl", 7),
        lambda f: settle_earlier(read_rows(f / "metrics.jsonl"), 7), lambda f: checkpoint.fingerprint(f / "checkpoints", 10),
    ):  # fmt: skip
        with contextlib.suppress(JaxlmError):
            read(folder)
            good += 1
    checksums.damage(folder / "checkpoints" / "10")
    return good > 3


def _listed(folder: Path) -> bool:
    """List the runs, with the index and without: the same rows, as a table, as JSON and as CSV."""
    found = find_runs(folder)
    again = find_runs(folder)
    assert [stand.kind for stand in found] == [stand.kind for stand in again]
    rows = rows_of(found, folder)
    columns = Columns(rows)
    for name in ("run", "kind", "step", "loss", "age", "seed", "digest"):
        ordered = sort_by(rows, columns.find(name))
        assert len(ordered) == len(rows)
        for row in ordered:
            cell(row[name], name).encode()
    json.loads(to_json(rows))
    to_csv(rows, ["run", "kind", "loss", *differing(rows)]).encode()
    return any(stand.kind not in ("broken", "foreign", "empty") for stand in found)


def _index_seeds(folder: Path) -> list[Files]:
    """Return folders of two runs, with the index that listing them leaves."""
    runs = folder / "runs"
    _run(runs / "a", done=12, saves=(10,))
    _run(runs / "b", done=30, seed=3)
    find_runs(runs)
    return [folder_files(runs)]


def _indexed(rng: Random, seeds: list[Files]) -> Files:
    """Change the index and give it a checksum that fits, so that what it says is read; or change a run's file."""
    import zlib

    files = dict(rng.choice(seeds))
    if rng.random() < 0.5:
        return _one_file(rng, [files])
    head, _, body = files[INDEX].partition(b"\n")
    body = by_name(rng, "x.json", body)
    files[INDEX] = head.split(b" ")[0] + f" {zlib.crc32(body)}\n".encode() + body
    return files


def _report(folder: Path) -> bool:
    """Gather a report of the folder and make its page; a run that cannot be reported is left out of it, and named."""
    from jaxlm.report.build import _made, embedded

    material = gather([folder / "runs"])
    material, page = _made(material, 50, ("loss",))
    embedded(page["data"])
    return bool(material.runs)


def _report_seeds(folder: Path) -> list[Files]:
    made = _run_seeds(folder)
    return [{f"runs/{number}/{name}": data for number in (0, 1) for name, data in made[number].items()}]


def _sweep_seeds(folder: Path) -> list[Files]:
    """Return the record of a sweep of two arms with the run of one."""
    trials = [
        {"arm": arm, "seed": 0, "changes": {"seed": 1}, "control": arm == "a", "run": f"../{RUNS}/{arm}", "digest": arm}
        for arm in "ab"
    ]
    record = {"name": "s", "about": "x", "file": "s.py", "control": "a", "code": "c", "time": "2026-01-01", "trials": trials}
    run = _run_seeds(folder)[1]
    return [{f"s/{RECORD}": json.dumps(record).encode()} | {f"{RUNS}/a/{name}": data for name, data in run.items()}]


def _swept(folder: Path) -> bool:
    record = read_record(folder / "s")
    assert all(entry.arm in record.arms for entry in record.trials)
    for entry in record.trials:
        standing(entry.run)
    return bool(content(gather([folder / "s"]), 50, ("loss",)))


def _record_seeds(folder: Path) -> list[Files]:
    job = {
        "target": "slurm", "options": {}, "name": "x", "id": "3", "run_dir": "runs/x", "commands": ["sbatch x"],
        "time": "2026-01-01", "ended": "",
    }  # fmt: skip
    manifest = {"complete": True, "sources": [{"source": "x", "done": True, "read": 3, "splits": {}}]}
    hashes = {"/a": [3, 4, "ab"]}
    return [{"launch/job.json": json.dumps(job).encode(), "manifest.json": json.dumps(manifest).encode(),
             "content_hashes.json": json.dumps(hashes).encode()}]  # fmt: skip


def _read_records(folder: Path) -> bool:
    from jaxlm.data.fingerprint import ContentHashes

    read_manifest(folder)
    hashes = ContentHashes(folder)
    for path in folder.iterdir():
        if path.is_file():
            hashes.of(path)
    try:
        read_job(folder)
    except JaxlmError:
        return False
    return True


TARGETS = (
    Target(
        "run-folder", "every file of a run's folder: `show`, the record, results of probes", _run_seeds, _one_file, _read_run
    ),
    Target("runs-index", "folders of runs and their index: `jaxlm runs`", _index_seeds, _indexed, _listed),
    Target("report", "runs, as a report gathers and draws them", _report_seeds, _one_file, _report),
    Target("sweep-record", "sweep.json and the runs it names", _sweep_seeds, _one_file, _swept),
    Target("records", "job.json, manifest.json, content_hashes.json", _record_seeds, _one_file, _read_records),
)
