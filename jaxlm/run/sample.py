"""`jaxlm sample`: continuations on the terminal."""

import dataclasses
from pathlib import Path

import jax

from jaxlm.decode.generate import Sampling, generate, generate_text
from jaxlm.run import display
from jaxlm.run.open import opened


def sample_run(
    folder: Path,
    prompts: tuple[str, ...],
    tokens: int,
    controls: tuple[float, int, float],
    samples: int,
    seed: int,
    step: int | None,
) -> None:
    """Write continuations of each prompt to standard output; a single one appears as it is made."""
    temperature, top_k, top_p = controls
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    with opened(folder, step) as run:
        repeated = [prompt for prompt in prompts for _ in range(samples)]
        layout = dataclasses.replace(run.experiment.layout, batch=None)
        key = jax.random.key(seed)
        if len(repeated) == 1:
            _stream(run, repeated[0], tokens, sampling, layout, key)
            return
        texts = generate_text(run.params, run.model, layout, run.tokenizer, repeated, tokens, sampling, key)
        for index, (prompt, text) in enumerate(zip(repeated, texts, strict=True)):
            print(f"{'' if index == 0 else chr(10)}--- {index + 1} of {len(texts)}\n{prompt}{text}")


def _stream(run, prompt: str, tokens: int, sampling: Sampling, layout, key: jax.Array) -> None:
    ids = [run.tokenizer.bos_id, *run.tokenizer.encode(prompt)]
    display.stream(prompt)
    made: list[int] = []
    shown = ""
    for (token,) in generate(run.params, run.model, layout, [ids], tokens, sampling, key, stop_id=run.tokenizer.eos_id):
        if token < 0:
            break
        made.append(int(token))
        text = run.tokenizer.decode(made)
        if not text.endswith("\ufffd"):  # a character whose bytes have not all come yet
            display.stream(text[len(shown) :])
            shown = text
    display.stream(run.tokenizer.decode(made)[len(shown) :] + "\n")
