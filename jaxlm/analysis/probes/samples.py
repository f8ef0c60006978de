"""Text that the model writes.

Continuations of the experiment's own prompts at each checkpoint, by the likeliest token and drawn at its temperature with the
same seed each time, so that what changes is the model.
"""

from typing import Annotated

import numpy as np

from jaxlm.analysis.measure import Measure, NotSuited
from jaxlm.analysis.view import View
from jaxlm.config import Range, config
from jaxlm.decode.generate import Request, encode_prompt, generate
from jaxlm.decode.sampling import Sampling


@config
class SampleSettings:
    """What is written."""

    prompts: tuple[str, ...] = ()
    """Texts to continue; none: those of the experiment."""
    tokens: Annotated[int, Range(0)] = 0
    """Tokens to write for each; 0: as many as the experiment writes at its end, 60 where that is none."""
    seed: int = 0
    """Of what is drawn."""


SETTINGS = SampleSettings()
UNSET = 60


def probe(view: View, settings: SampleSettings) -> dict[str, Measure | float]:
    """Return the text of each prompt with its continuation, and how many different tokens there are among a hundred."""
    if view.tokenizer is None:
        raise NotSuited("the model was imported without a tokenizer: there is no text")
    if view.model.moe_layers and view.model.moe.router == "expert_choice":
        raise NotSuited("in expert choice the experts choose from whole rows: text cannot be written token by token")
    asked = view.experiment.sample
    prompts = settings.prompts or asked.prompts or ("",)
    drawn = Sampling(temperature=asked.temperature, top_p=asked.top_p)
    ids = [encode_prompt(view.tokenizer, prompt) for prompt in prompts]
    ways = {"greedy": Sampling(temperature=0.0), "sampled": drawn}
    requests = [
        Request(prompt=prompt, sampling=way, seed=settings.seed, sample=place)
        for way in ways.values()
        for place, prompt in enumerate(ids)
    ]
    room = view.model.max_length - max(map(len, ids))
    tokens = min(settings.tokens or asked.tokens or UNSET, room)
    if tokens < 1:
        raise NotSuited(f"the prompts leave no room below the model's {view.model.max_length} tokens: settings.prompts")
    made = generate(view.params, view.model, view.layout, requests, tokens, tokenizer=view.tokenizer)
    labels, found = {"prompt": [prompt or "(nothing)" for prompt in prompts]}, {}
    for place, way in enumerate(ways):
        part = made[place * len(ids) : (place + 1) * len(ids)]
        about = "likeliest tokens" if way == "greedy" else f"drawn at temperature {asked.temperature:g}, top_p {asked.top_p:g}"
        texts = [prompt + completion.text for prompt, completion in zip(prompts, part, strict=True)]
        found[way] = Measure(texts, ("prompt",), labels, about=f"the prompt and what the model writes: {about}")
        written = [token for completion in part for token in completion.tokens]
        different = len(set(written)) / len(written) if written else np.nan
        found[f"{way}_variety"] = Measure(different, about="different tokens over tokens written: low where it repeats itself")
    return found
