"""A sweep's file, its record, and the names of its runs."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

from jaxlm.errors import ConfigError
from jaxlm.model.moe_config import MoeConfig
from jaxlm.run import sources
from jaxlm.sweep import read as reading
from jaxlm.sweep import trials as naming
from jaxlm.sweep.asked import check_metrics, validated
from jaxlm.sweep.read import folder_of, load_sweep, read_record, settle, write_record


@pytest.fixture
def sweep(sweep_file):
    return load_sweep(sweep_file())


def test_a_file_gives_its_trials(sweep_file):
    file = sweep_file()
    found = load_sweep(file)
    assert (found.name, found.control, found.about.splitlines()[0]) == ("width", "intermediate_size=64", "Does width help?")
    assert [(t.arm, t.experiment.seed) for t in found.trials] == [
        (f"intermediate_size={width}", seed) for seed in (0, 1) for width in (64, 96)
    ]
    file.write_text(file.read_text().replace("def sweep():\n    return", "def other():\n    yield from"))
    assert load_sweep(Path(f"{file}:other")).name == "width:other"
    assert folder_of(Path("runs"), "width:other") == Path("runs/width-other")


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("3", "returned a int, not trials"),
        ("[experiment()]", "gave a Experiment where a trial belongs"),
        ("[]", "no trial is marked as the control"),
        (
            '[*trials(experiment(), [{"arm": "a"}]), *trials(experiment(), [{"arm": "b", "steps": 9}])]',
            "'a', 'b' are marked as the control",
        ),
        ('trials(experiment(), [{"step": 3}])', r"no field 'step'. Did you mean 'steps'\? \(.*width.py, line 3[0-9]\)"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(.*width.py, line 3[0-9]\)"),
        ("(1 / 0 for _ in (1,))", r"ZeroDivisionError: division by zero \(.*width.py, line 3[0-9]\)"),
    ],
)
def test_faults_of_a_file_have_their_place(sweep_file, sweep, words):
    with pytest.raises(ConfigError, match=words):
        load_sweep(sweep_file(sweep))


def test_a_file_without_a_sweep_says_so(sweep_file):
    file = sweep_file()
    file.write_text(file.read_text().replace("def sweep", "def sweeps"))
    with pytest.raises(ConfigError, match=r"defines no function sweep\(\) that returns trials. Did you mean 'sweeps'"):
        load_sweep(file)


def test_a_record_is_written_once_and_read_back(sweep, tmp_path):
    record = write_record(settle(sweep, tmp_path / "runs"))
    content = (record.folder / "sweep.json").read_bytes()
    assert read_record(record.folder) == record
    assert all(entry.run == tmp_path / "runs" / "trials" / entry.digest for entry in record.trials)
    later = dataclasses.replace(settle(sweep, tmp_path / "runs"), time="2100-01-01T00:00:00+00:00")
    assert write_record(later).time == record.time
    assert (record.folder / "sweep.json").read_bytes() == content, "nothing had changed"
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    assert read_record(tmp_path / "moved" / "width").trials[0].run.parent == tmp_path / "moved" / "trials"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"name": "x"}', '{"trials": 3}', "\0\0"])
def test_what_is_no_record_is_refused_in_words(content, tmp_path):
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(
        ConfigError, match="is not a sweep's folder" if content is None else "cannot be read as a sweep's record"
    ):
        read_record(tmp_path)


def test_a_run_is_named_after_what_decides_its_result(sweep):
    experiment = sweep.trials[0].experiment
    name = naming.digest(experiment)

    def named(**changes):
        return naming.digest(dataclasses.replace(experiment, **changes))

    assert len(name) == 16 and int(name, 16) >= 0
    assert named(name="other", checkpoint=dataclasses.replace(experiment.checkpoint, every=1)) == name
    assert named(sample=dataclasses.replace(experiment.sample, tokens=3)) == name
    assert len({name, named(seed=9), named(steps=21), named(z_loss=1e-4)}) == 4


def test_data_count_by_their_content(sweep, tmp_path):
    experiment = sweep.trials[0].experiment
    before = naming.recipe(experiment)
    text = next((tmp_path / "text").iterdir())
    known = {}
    assert naming.recipe(experiment, known) == before
    text.write_text(text.read_text() + " and one more")
    assert naming.recipe(experiment) != before == naming.recipe(experiment, known)


def test_runs_that_are_begun_from_count_by_their_content(sweep, tmp_path):
    experiment = dataclasses.replace(sweep.trials[0].experiment, init_from=str(tmp_path / "base"))
    before = naming.recipe(experiment)
    save = tmp_path / "base" / "checkpoints" / "7"
    save.mkdir(parents=True)
    (save / "checksums.json").write_text("{}")
    assert naming.recipe(experiment) != before


def test_code_that_training_runs_through_counts_and_no_other(tmp_path):
    package = tmp_path / "jaxlm"
    for file, text in {
        "run/loop.py": "from jaxlm.run import rows, display\nfrom jaxlm.ops.masks import (\n    causal,\n)\n",
        "run/rows.py": "def f():\n    import jaxlm.config\n", "run/display.py": "", "ops/masks.py": "", "config.py": "",
        "run/show.py": "from jaxlm.run.loop import train\n",
    }.items():  # fmt: skip
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(text)
    (package / "run" / "display.py").write_text("from jaxlm.decode import text\n")
    (package / "decode").mkdir()
    (package / "decode" / "text.py").write_text("")
    found = sources.training_files(package)
    assert set(found) == {"run/loop.py", "run/rows.py", "ops/masks.py", "config.py"}
    (package / "decode" / "text.py").write_text("1")
    (package / "run" / "display.py").write_text("2")
    assert sources.training_files(package) == found
    (package / "run" / "rows.py").write_text("3")
    assert {name for name, value in sources.training_files(package).items() if found[name] != value} == {"run/rows.py"}


def test_no_module_that_training_loads_is_left_out():
    import jaxlm.run.loop

    root = Path(jaxlm.run.loop.__file__).parents[1]
    counted = sources.imported_files(root, root / "run" / "loop.py")
    seen, left = set(), [sys.modules["jaxlm.run.loop"]]
    while left:  # the modules whose names its modules hold, directly or not
        module = left.pop()
        if module not in seen:
            seen.add(module)
            homes = {getattr(value, "__module__", None) or getattr(value, "__name__", None) for value in vars(module).values()}
            left += [sys.modules[name] for name in homes if str(name).startswith("jaxlm.") and name in sys.modules]
    assert len(seen) > 50
    assert {Path(module.__file__) for module in seen if Path(module.__file__).name != "__init__.py"} <= counted
    decisive = sources.training_files()
    assert {"train/step.py", "data/packing.py", "train/checkpoint.py", "run/metrics.py", "run/decisions.py"} <= set(decisive)
    assert not [name for name in decisive if name.startswith("decode/") or name in sources.TELLING]
    assert all((root / name).is_file() for name in sources.TELLING)


def test_runs_of_another_version_of_the_code_are_taken_where_asked(sweep, tmp_path, monkeypatch):
    from jaxlm.config import to_dict

    runs = tmp_path / "runs"
    old = settle(sweep, runs).trials[0].run
    (old / "checkpoints" / "20").mkdir(parents=True)
    (old / "config.json").write_text(json.dumps(to_dict(sweep.trials[0].experiment)))
    (old / "metrics.jsonl").write_text("")
    monkeypatch.setattr(reading, "code_digest", lambda: "f" * 16)
    assert not any(entry.other_code for entry in settle(sweep, runs).trials)
    found = settle(sweep, runs, any_code=True).trials
    assert [entry.other_code for entry in found] == [True, False, False, False] and found[0].run == old
    assert found[0].digest != old.name and found[0].digest[:10] == old.name[:10]


def test_a_sweep_that_would_lie_among_the_runs_is_refused(sweep_file, tmp_path):
    with pytest.raises(ConfigError, match="cannot be called 'trials'"):
        settle(load_sweep(sweep_file(name="trials.py")), tmp_path)


def test_another_files_record_is_not_written_over(sweep_file, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    first, second = sweep_file(), sweep_file(name="elsewhere/width.py")
    record = write_record(settle(load_sweep(first), tmp_path / "runs"))
    with pytest.raises(ConfigError, match=f"records the sweep of {first}, and this is {second}: .* --name"):
        write_record(settle(load_sweep(second), tmp_path / "runs"))
    other = write_record(settle(load_sweep(second, "other"), tmp_path / "runs"))
    assert (other.name, other.folder.name) == ("other", "other") and other.trials == record.trials
    first.unlink()  # it was moved
    write_record(settle(load_sweep(second), tmp_path / "runs"))
    for path, name, words in (
        (tmp_path / "runs/x.json", "", "the configuration of one run, which `jaxlm train` takes"),
        (record.folder, "", "is a folder: a sweep is a .py file"),
        (second, "a/b", "--name a/b names no folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_sweep(path, name)


def test_what_a_validation_measures_is_known_before(sweep):
    base = sweep.trials[0].experiment
    mixture = dataclasses.replace(base, model=dataclasses.replace(base.model, moe=MoeConfig(num_experts=4)))
    check_metrics(("loss", "bits_per_byte", "tokens"), [base])
    check_metrics(("router_dropped", "router_load"), [base, mixture])
    with pytest.raises(ConfigError, match="--metrics router_droped: no validation has it. Did you mean 'router_dropped'"):
        check_metrics(("router_droped",), [mixture])
    for metric in ("router_dropped", "rewards/margins"):
        with pytest.raises(ConfigError, match=f"--metrics {metric}: no validation has it"):
            check_metrics((metric,), [base])
    assert {"rewards/margins", "kl", "kto_kl"} <= validated(True, False) and "perplexity" not in validated(True, True)
