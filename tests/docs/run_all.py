"""Run every command and every piece of Python of the documentation, page after page, small: `.ci/docs`.

Each page's blocks run in order, in a folder as a reader would have it. What a command is given besides, so that it takes
seconds, stands in SMALL; what does not run, and why, in LEFT_OUT (tests/docs/test_commands.py parses those as well).
Outputs that pages mark with `run by .ci/docs` are compared, numbers to a thousandth.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from documents import ROOT, Block, Command, blocks, commands, files

# Tiny models compile far longer than they compute.
QUICK = "--xla_backend_optimization_level=0"
TINY = (
    "--steps 4 --batch-size 8 --optimizer.warmup-steps 0 --evaluation.every 2 --evaluation.batches 1 --checkpoint.every 2 "
    "--sample.tokens 4"
)
SHORTLY = "--steps 2 --optimizer.warmup-steps 0 --evaluation.batches 1 --sample.tokens 4"
NARROW = "--model.num-layers 4 --model.hidden-size 48 --model.num-heads 6 --model.intermediate-size 32"
MOE = f"{TINY} {NARROW} --model.num-kv-heads 0 --data.sequence-length 64"
# What is put behind the experiment's file, so that what the page says wins: by what the command begins with, first come.
SMALL = (
    (r"jaxlm train experiments/quickstart.py", f"{TINY} {NARROW}"),
    (r"jaxlm train experiments/switch_vs_dense.py", MOE),
    (r"jaxlm train experiments/extend_by_tuning.py", f"--batch-size 2 {SHORTLY}"),
    (r"jaxlm train experiments/dpo_smollm2.py", f"--batch-size 1 {SHORTLY}"),
    (r"jaxlm train docs/examples/first.py", "--steps 4 --optimizer.warmup-steps 0 --checkpoint.every 2 --evaluation.every 2"),
    (r"jaxlm train docs/examples/", SHORTLY),
    (r"jaxlm launch experiments/quickstart.py --on local", f"{TINY} {NARROW}"),
)
# What is put at the end, for commands whose length no field of an experiment decides.
SHORT = (
    (r"jaxlm launch .*--on (slurm|tpu-vm|gke|xpk)", "--dry-run"),
    (r"jaxlm sweep .*--on slurm", "--dry-run"),
    (r"jaxlm eval runs/(ipo|dpo)$", "--batches 1"),
    (r"jaxlm eval .*(other|pairs)\.jsonl", "--batches 1"),
    (r"jaxlm eval .*--router", "--batches 1"),
    (r"jaxlm watch", "--once"),
    (r"jaxlm plan ", "--stage schedule"),
)
# What is said otherwise: lengths of minutes, and a step that so short a run does not have.
OTHERWISE = (
    ("--lengths 8192 12288", "--lengths 256"),
    ("--lengths 512 1024", "--lengths 128"),
    (".window-size 1024", ".window-size 64"),
    ("--against-step 500", "--against-step 2"),
    ("--processes 2 --steps 200", "--processes 2 --steps 4"),
)
# What is not run, and why.
LEFT_OUT = (
    (r"pip |python -m venv|source ", "the environment is this one"),
    (r"pytest|bash \.ci|\.ci/|sphinx-build", "CI runs it by itself"),
    (r"docker ", "needs a Docker daemon"),
    (r"python (-m )?(benchmarks|fuzz|experiments)|TORCH|OTHER", "minutes to hours: `--help` instead; tests/ has a small one"),
    (r"jaxlm sweep experiments/\w+\.py( --max-parallel 2| --only dropless.*)?$", "an hour; tests/sweep runs small ones"),
    (r"jaxlm (watch|analyze|report|runs) runs/sweeps", "needs that sweep; tests/report and tests/analysis make one"),
    (r"jaxlm plan .*(--search|70b|mixtral|v5e:4x4$)", "minutes; or says that it does not fit, with status 2"),
    (r"jaxlm train experiments/llama_8b", "a pod's"),
    (r"jaxlm train .*--router.replay", "needs decisions recorded in training; tests/run/test_routers.py does it"),
    (r"jaxlm jobs (tail|cancel)", "needs a job that runs"),
)


def left_out(command: Command) -> str:
    """Return why a command is not run, or nothing."""
    return next((why for pattern, why in LEFT_OUT if re.match(pattern, command.text)), "")


def small(command: Command) -> str:
    """Return the command as it is run."""
    text = command.text
    for pattern, given in SMALL:
        if re.match(pattern, text) and "--help" not in text:
            text = re.sub(r"(\.py(:\w+)?)", rf"\1 {given}", text, count=1)
            break
    for pattern, given in SHORT:
        if re.match(pattern, command.text) and given not in text and "--help" not in text:
            text += f" {given}"
    for page, here in OTHERWISE:
        text = text.replace(page, here)
    return text


def prepare(folder: Path) -> None:
    """Make the folder and the files of a reader's own that the pages name."""
    for name in ("jaxlm", "docs", "experiments", "benchmarks", "launch", "LICENSE", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    text = (ROOT / "LICENSE").read_text()
    (folder / "notes").mkdir()
    for name in ("notes/1.md", "notes/2.md", "notes/3.md", "long.txt", "book.txt", "story.txt"):
        (folder / name).write_text(text[:1500])
    rows = "".join(f'{{"prompt": "What is {n} + 1?", "chosen": "It is {n + 1}.", "rejected": "No."}}\n' for n in range(40))
    for name in ("pairs.jsonl", "other.jsonl"):
        (folder / name).write_text(rows)
    (folder / "prompts.jsonl").write_text('"def add("\n"class "\n')
    import numpy as np

    for name in ("rows.npy", "long.npy"):
        np.save(folder / name, np.arange(3, 67, dtype=np.int32).reshape(2, 32))


# Runs that pages take for granted, made when the page begins that needs them.
GRANTED = {
    "runs/switch": f"jaxlm train experiments/switch_vs_dense.py --run-dir runs/switch {MOE}",
    "runs/dense": f"jaxlm train experiments/switch_vs_dense.py --run-dir runs/dense {MOE} --model.moe.num-experts 0",
    "runs/dpo": "cp -r runs/ipo runs/dpo",
    "runs/tuned": "cp -r runs/smollm2 runs/tuned",
}


# What was imported and exported so far, by which command, which printed what. Imported again it would be another checkpoint to
# a run that began from it.
MADE: dict[str, tuple[str, str]] = {}


def run(text: str, folder: Path, stdin: str = "") -> str:
    """Run one command by a shell and return what it printed; raise where it fails."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    environment |= {} if "smollm2" in text else {"XLA_FLAGS": QUICK}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, input=stdin, env=environment, capture_output=True, text=True,
        timeout=3600,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"failed with status {done.returncode}: {text}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def same(shown: str, printed: str) -> bool:
    """Return whether what a page shows was printed: words in order, `...` for any, numbers to a thousandth.

    Lines after "> " are what a reader types.
    """
    place, said = 0, printed.replace("[...]", "...").split()
    for word in " ".join(line for line in shown.splitlines() if not line.startswith("> ")).split():
        if "..." in word:
            continue
        found = next((at for at in range(place, len(said)) if _alike(word, said[at])), None)
        if found is None:
            print(f"    not printed: {word!r}")
            return False
        place = found + 1
    return True


def _alike(word: str, other: str) -> bool:
    try:
        first, second = (float(re.sub(r"[\[\]{},:\"]", "", text)) for text in (word, other))
        return abs(first - second) <= 1e-3 * max(abs(first), 1e-3)
    except ValueError:
        return word == other


def run_page(file: str, folder: Path) -> tuple[int, int, int]:
    """Run the blocks of a page in order; return how many commands ran, were left out, and outputs were the same."""
    ran = out = compared = 0
    printed = ""
    for block in blocks(file):
        if block.language == "bash":
            printed = ""
            for command in commands(block):
                text = command.text
                for name in re.findall(r"runs/\w+", text):
                    if name in GRANTED and not (folder / name).exists():
                        run(GRANTED[name], folder)
                why = left_out(command)
                made = re.match(r"jaxlm (?:import|export) .*--to (\S+)", text)
                if made and MADE.get(made[1], ("", ""))[0] == text:
                    why, printed = "an earlier page made it, and a reader makes it once", printed + MADE[made[1]][1]
                elif made:  # of an earlier page it is another's
                    shutil.rmtree(folder / made[1], ignore_errors=True)
                if why:
                    out += 1
                    print(f"  left out: {text}   ({why})", flush=True)
                    if re.match(r"python (-m )?\S*(benchmarks|experiments|fuzz)\S+", text):
                        run(f"cd {ROOT} && {re.match(r'python (?:-m )?[^ ]+', text)[0]} --help", folder)
                    continue
                began = time.monotonic()
                if text.startswith("export "):
                    name, _, _ = text.removeprefix("export ").partition("=")
                    assert name in os.environ, f"{command.place}: {name} is not set here"
                    continue
                lines = "Hi! What is the capital of Italy?\nAnd of Spain?\n" if " chat " in f"{text} " else ""
                said = run(small(command), folder, lines)
                printed, ran = printed + said, ran + 1
                if made:
                    MADE[made[1]] = text, said
                print(f"  {time.monotonic() - began:5.1f} s  {small(command)}", flush=True)
        elif block.language == "python" and block.mark == "run by .ci/docs":
            printed = _run_python(block, folder)
            ran += 1
        elif block.language == "text" and block.mark == "run by .ci/docs":
            if not same(block.text, printed):
                raise SystemExit(f"{block.place} shows what was not printed; it was:\n{printed}")
            compared += 1
    return ran, out, compared


def _run_python(block: Block, folder: Path) -> str:
    from test_blocks import IMPORTS

    file = folder / "block.py"
    more = "from jaxlm.analysis.series import opened_series\nfrom jaxlm.analysis.view import View\n"
    file.write_text(IMPORTS + more + block.text + "\n")
    return run(f"{sys.executable} block.py", folder)


def main() -> None:
    """Run all pages, or those that are named."""
    folder = Path(os.environ["DOCS_FOLDER"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prepare(folder)
    counts, began = [0, 0, 0], time.monotonic()
    for file in sys.argv[1:] or files():
        print(file, flush=True)
        counts = [a + b for a, b in zip(counts, run_page(file, folder), strict=True)]
    ran, out, compared = counts
    print(f"{ran} commands ran, {out} were left out, {compared} outputs were as shown, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
