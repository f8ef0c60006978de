"""Killed at random moments, during steps and during saves, a run ends with the very rows of an uninterrupted one."""

import os
import random
import subprocess
import sys
import time

from records import facts, kill_when

from jaxlm.run.metrics import read_rows

STEPS = 120


def start(experiment_file, folder, **environment):
    command = [sys.executable, "-m", "jaxlm", "train", str(experiment_file), "--run-dir", str(folder)]
    command += ["--steps", str(STEPS), "--mesh.cpu-devices", "2", "--sample.tokens", "0", "--log.no-tensorboard"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"XLA_FLAGS": ""} | environment
    )


def test_killed_at_random_the_rows_are_the_same_to_the_bit(experiment_file, tmp_path):
    whole = start(experiment_file, tmp_path / "whole")
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    expected = facts(tmp_path / "whole")
    assert len(expected) == STEPS + STEPS // 10

    seed = int(os.environ.get("JAXLM_KILL_SEED", time.time_ns() % 10_000))
    rng, folder, kills = random.Random(seed), tmp_path / "killed", 0
    saves = folder / "checkpoints"
    for attempt in range(4):
        process = start(experiment_file, folder)
        if attempt % 2:  # while a checkpoint is being written
            at_save = rng.randrange(1, 4)
            seen: set[str] = set()

            def saving(at_save=at_save, seen=seen):
                seen |= {p.name for p in saves.glob("*tmp*")} if saves.is_dir() else set()
                return len(seen) >= at_save

            kills += kill_when(process, saving)
        else:
            target = len(facts(folder)) + rng.randrange(5, 25)
            kills += kill_when(process, lambda target=target: len(read_rows(folder / "metrics.jsonl")) >= target)
    # The others share one compilation; a program that is compiled anew must give the same bits.
    last = start(experiment_file, folder, JAX_ENABLE_COMPILATION_CACHE="false")
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    assert kills >= 3, f"seed {seed}: the run ended before it could be killed"
    assert facts(folder) == expected, f"differs after kills with JAXLM_KILL_SEED={seed}"
    assert not list(saves.glob("*tmp*")), "what a killed save left behind was not cleared"
