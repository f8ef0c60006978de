"""What the imported SmolLM2 makes of the stored prompts and text, written to a file; run by test_smollm2.py in a process of
its own, where XLA optimizes: `python smollm2_outputs.py RUN STORED.npz OUT.npz`."""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from jaxlm.decode.generate import Request, generate
from jaxlm.decode.sampling import Sampling
from jaxlm.run.open import opened
from jaxlm.run.score import row_logits, token_log_probs


def main(folder: Path, stored_file: Path, out: Path) -> None:
    stored, made = np.load(stored_file), {}
    with opened(folder) as run:
        text = stored["text"]
        logits = np.asarray(row_logits(run.params, text[None], run.model, run.experiment.layout))[0]
        made["log_probs"] = token_log_probs(logits[:-1], text[1:])
        made["logits"] = logits[stored["positions"]][:, ::64]
        layout = dataclasses.replace(run.experiment.layout, batch=None)
        greedy = Sampling(temperature=0.0)
        requests = [Request(prompt=stored[f"prompt_{number}"].tolist(), sampling=greedy) for number in range(4)]
        longest = max(len(stored[f"greedy_{number}"]) for number in range(4))
        for number, done in enumerate(generate(run.params, run.model, layout, requests, longest, tokenizer=run.tokenizer)):
            made |= {f"greedy_{number}": np.int32(done.tokens), f"greedy_log_probs_{number}": np.float64(done.log_probs)}
    np.savez(out, **made)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
