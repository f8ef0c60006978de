"""Write what Hugging Face transformers makes of sampling controls and beam search, for the tests of `jaxlm.decode`.

    pip install torch==2.13.0 transformers==5.23.0 --extra-index-url https://download.pytorch.org/whl/cpu
    python tests/reference/make_generation.py

`generation.json`, beside this script, then holds

    samplers   a list of cases: logits [V], the ids seen (prompt and generated), controls, and the logits that transformers'
               processors make of them in its order (null for minus infinity)
    beams      a list of cases: prompts, settings and, for each prompt, the returned sequences and their scores, by the model
               whose weights are in `llama.npz` (make_hugging_face.py), padded on the left
    greedy     continuations of the same prompts with and without a repetition penalty
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.generation import logits_process

HERE = Path(__file__).parent
PROMPTS = [[5, 9, 11, 23], [7, 8, 9, 10, 11, 12, 13], [4]]
PAD = 0


def sampler_cases() -> list[dict]:
    """Return every control by itself and some together, on random logits and on some with ties."""
    rng = np.random.default_rng(0)
    random, ties = rng.normal(0, 2, 12).round(3).tolist(), [1.0, 3.0, 3.0, 2.0, 2.0, -1.0, 0.0, 3.0]
    together = {"repetition_penalty": 1.3, "temperature": 0.7, "top_k": 6, "top_p": 0.8, "min_p": 0.05}
    alone = [
        {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 3}, {"top_k": 100}, {"top_p": 0.3}, {"top_p": 0.9},
        {"min_p": 0.1}, {"min_p": 1.0}, {"repetition_penalty": 1.7}, {"repetition_penalty": 0.6},
    ]  # fmt: skip
    pairs = [{"top_k": 2, "top_p": 0.6}, {"top_p": 0.7, "min_p": 0.3}, together]
    cases = [(random, controls) for controls in alone + pairs]
    # Which of several equal tokens top-p keeps depends on how they were sorted.
    cases += [(ties, controls) for controls in alone if "top_p" not in controls]
    half = np.log([0.5, 0.3, 0.2]).tolist()
    cases += [(half, {"top_p": p}) for p in (0.49, 0.5, 0.79, 0.8, 0.81)]
    return [processed(logits, [1, 2, 2, 0], controls) for logits, controls in cases]


def processed(logits: list[float], seen: list[int], controls: dict) -> dict:
    """Return a case with the logits after transformers' processors, in the order in which `generate` builds them."""
    classes = {
        "repetition_penalty": logits_process.RepetitionPenaltyLogitsProcessor,
        "temperature": logits_process.TemperatureLogitsWarper,
        "top_k": logits_process.TopKLogitsWarper,
        "top_p": logits_process.TopPLogitsWarper,
        "min_p": logits_process.MinPLogitsWarper,
    }
    scores = torch.tensor([logits])
    for name, make in classes.items():
        if name in controls:
            scores = make(controls[name])(torch.tensor([seen]), scores)
    out = [x if np.isfinite(x) else None for x in scores[0].tolist()]
    return {"logits": logits, "seen": seen, "controls": controls, "out": out}


def the_model() -> transformers.PreTrainedModel:
    """Return the small Llama of `llama.npz`."""
    with np.load(HERE / "llama.npz") as arrays:
        config = transformers.LlamaConfig(**json.loads(str(arrays["base/config"])))
        weights = {name[2:]: torch.tensor(arrays[name].astype(np.float32)) for name in arrays if name.startswith("w/")}
    model = transformers.LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return model


def generated(model: transformers.PreTrainedModel, **settings) -> transformers.utils.ModelOutput:
    """Return what `generate` makes of the prompts as one batch."""
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    asked = {"do_sample": False, "pad_token_id": PAD, "return_dict_in_generate": True, "output_scores": True}
    return model.generate(ids, attention_mask=mask, **asked, **settings)


def beam_cases(model: transformers.PreTrainedModel) -> list[dict]:
    """Return beam searches with several widths, penalties, stop ids and rules for stopping."""
    settings = [
        {"num_beams": beams, "length_penalty": penalty, "early_stopping": early, "eos_token_id": stops}
        for beams, penalty, early, stops in (
            (3, 1.0, False, [17]), (3, 1.0, True, [17]), (4, 0.0, "never", [17]), (4, 2.0, "never", [17, 40]),
            (4, -1.0, False, [17, 40]), (3, 0.6, True, list(range(20, 30))),
        )
    ]  # fmt: skip
    cases = []
    for chosen in settings:
        beams = chosen["num_beams"]
        out = generated(model, max_new_tokens=8, num_return_sequences=beams, **chosen)
        width = max(map(len, PROMPTS))
        rows = [trimmed(row[width:].tolist(), chosen["eos_token_id"]) for row in out.sequences]
        scores = out.sequences_scores.tolist()
        found = [[rows[i : i + beams], scores[i : i + beams]] for i in range(0, len(rows), beams)]
        cases.append({"settings": chosen, "found": found})
    return cases


def trimmed(tokens: list[int], stops: list[int]) -> list[int]:
    """Return tokens up to the first that stops, which stays."""
    ends = [place for place, token in enumerate(tokens) if token in stops]
    return tokens[: ends[0] + 1] if ends else tokens


def main() -> None:
    """Write the file."""
    model = the_model()
    greedy = []
    for penalty in (1.0, 1.8):
        out = generated(model, max_new_tokens=12, eos_token_id=None, repetition_penalty=penalty)
        greedy.append({"repetition_penalty": penalty, "found": out.sequences[:, max(map(len, PROMPTS)) :].tolist()})
    stored = {"samplers": sampler_cases(), "prompts": PROMPTS, "beams": beam_cases(model), "greedy": greedy}
    (HERE / "generation.json").write_text(json.dumps(stored) + "\n")


if __name__ == "__main__":
    main()
