"""Results that make one table: of one training, of the same rows, settings and code."""

import json
import shutil

from written_run import SIZES, add_checkpoints, measured, walk

from jaxlm.analysis import store
from jaxlm.analysis.findings import findings
from jaxlm.analysis.probe_files import load_probes
from jaxlm.analysis.walk import analyze


def test_other_rows_and_settings_stand_apart(run, sizes, written):
    with_rows = "sizes.with_rows=true"
    assert walk(run, sizes, with_rows).made == 3
    assert walk(run, sizes, with_rows, steps=[10], sources=[f"text:{written[1]}/3.txt"]).made == 1
    assert set(store.read_all(run)["sizes"]) == {10} and findings(run, ["sizes"]).columns[-1].header == "step 10"
    assert store.left_out(run) == {"sizes": dict.fromkeys((0, 20), "other rows or sources")}
    assert walk(run, sizes, with_rows).kept == 3  # nothing was overwritten, and what is asked for last is shown
    assert set(store.read_all(run)["sizes"]) == {0, 10, 20} and store.left_out(run) == {}
    assert walk(run, sizes, "sizes.scale=2", steps=[0]).made == 1
    assert store.left_out(run)["sizes"] == dict.fromkeys((10, 20), "other settings")


def test_a_former_training_is_not_shown(run, sizes, written):
    assert walk(run, sizes).made == 3
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"steps": 500, "name": "other"}))
    assert walk(run, sizes).kept == 3  # trained on: the same training
    (run / "config.json").write_text(json.dumps(config | {"seed": 7}))
    assert store.read_all(run) == {} and set(store.left_out(run)["sizes"].values()) == {"a former training"}
    shutil.rmtree(run / "checkpoints")
    add_checkpoints(run, written[2], (10,))
    assert walk(run, sizes).made == 1
    assert set(store.read_all(run)["sizes"]) == {10} and set(store.left_out(run)["sizes"]) == {0, 20}


def test_what_a_probe_asks_of_the_experiment_decides(run, sizes):
    looks = sizes.with_name("looks.py")
    looks.write_text(SIZES.replace("found = {", 'found = {"tokens": view.experiment.sample.tokens, '))
    assert (walk(run, sizes).made, walk(run, looks).made) == (3, 3)
    config = json.loads((run / "config.json").read_text())
    config["sample"]["tokens"] = 9  # a field that does not make it another run
    (run / "config.json").write_text(json.dumps(config))
    assert (walk(run, sizes).made, walk(run, looks).made) == (0, 3)
    assert measured(run, 0, "looks")["tokens"] == 9


def test_files_and_folders_that_settings_name_decide(run, sizes, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    sizes.write_text(SIZES.replace('texts: str = ""', "texts: tuple[str, ...] = ()"))
    for name in (folder / "a.txt", folder):
        setting = f'sizes.texts=["{name}"]'
        assert [walk(run, sizes, setting).made for _ in range(2)] == [3, 0]
        (folder / "a.txt").write_text(f"two of {name}")
        assert walk(run, sizes, setting).made == 3


def test_other_arithmetic_decides(run, sizes, monkeypatch):
    assert walk(run, sizes).made == 3
    monkeypatch.setattr("jax.__version__", "99.0")
    assert walk(run, sizes, steps=[10]).made == 1
    assert store.left_out(run)["sizes"][0].startswith("another platform")


def test_tables_without_a_number_are_left_out(run, sizes):
    of_axes = 'from jaxlm.analysis.measure import Measure\ndef probe(view):\n    return {"x": Measure([1.0], ("a",))}'
    sizes.write_text(f'"""T."""\n{of_axes}')
    assert walk(run, sizes).made == 3 and findings(run, ["sizes"]) is None
    sizes.write_text('"""T."""\ndef probe(view):\n    return {"x[/]": 1.0}')
    assert walk(run, sizes).made == 3
    assert findings(run, ["sizes"]).columns[1]._cells == ["x\\[/]"]


def test_our_numbers_of_matrices_and_likeness(run):
    analyze([run], load_probes(["weights", "cka"], ["cka.tokens=64"]), rows=2)
    shown = {name for name in measured(run, 20, "weights") if name.startswith("mean")}
    assert shown == {"mean_stable_rank", "mean_effective_rank", "mean_update_relative", "mean_update_since_first_relative"}
    assert {"mean_neighbours", "mean_previous", "mean_last"} <= set(measured(run, 20, "cka"))
