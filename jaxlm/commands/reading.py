"""Commands that read a run: evaluation, scores, text."""

from __future__ import annotations  # configurations are resolved when a command that takes them is parsed

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from jaxlm.commands.arguments import Fields, RunFolder, Step, check_least
from jaxlm.commands.start import start_jax
from jaxlm.errors import ConfigError

if TYPE_CHECKING:
    from jaxlm.eval.probe_config import Probes
    from jaxlm.model.extension import Extension
    from jaxlm.model.intervention import RouterIntervention

Temperature = Annotated[float, arg(help="Divides the logits; 0 takes the likeliest token.")]
TopK = Annotated[int, arg(help="Sample from this many likeliest tokens; 0: all.")]
TopP = Annotated[float, arg(help="Sample from the smallest set of tokens with this probability; ties with the last stay.")]
MinP = Annotated[float, arg(help="Sample from tokens at least this many times as probable as the likeliest.")]
RepetitionPenalty = Annotated[float, arg(help="Makes what was said before, in the prompt too, less likely where above 1.")]
FrequencyPenalty = Annotated[float, arg(help="Taken from a token's logit for every time it was written, -2 to 2.")]
PresencePenalty = Annotated[float, arg(help="Taken from a token's logit once it was written, -2 to 2.")]
MinTokens = Annotated[int, arg(help="No stop token before this many tokens.")]
Stop = Annotated[tuple[str, ...], arg(help="Texts to stop before.")]


def evaluate(
    run: RunFolder,
    step: Step = None,
    source: Annotated[
        tuple[str, ...], arg(help="What to evaluate on, for example text:book.txt; the run's own data by default.")
    ] = (),
    split: Annotated[
        Literal["train", "validation"] | None, arg(help="Of the run's own data; None: validation. A source is read whole.")
    ] = None,
    batches: Annotated[int, arg(help="How many batches; 0: all.")] = 0,
    batch_size: Annotated[int, arg(help="Rows (or pairs of rows) a batch; 0: the run's, of probes a few.")] = 0,
    form: Annotated[
        Literal["text", "conversations", "preferences", "labels"] | None,
        arg(help="What the source holds; None: text for text: and stdlib, else what the run was trained on."),
    ] = None,
    reference: Annotated[
        Path | None, arg(metavar="RUN", help="What preferences are measured against; None: the run's own reference.")
    ] = None,
    *,
    probes: Annotated[Probes, Fields],
    router: RouterIntervention,
    extend: Extension,
) -> None:
    """Print a checkpoint's loss on any text, conversations or preferences, or what probes of a long context find, as JSON."""
    check_least(0, batches=batches, batch_size=batch_size)
    others = {"--batches": batches, "--form": form, "--reference": reference, "--router": router != type(router)()}
    if source and split:
        raise ConfigError(f"--split {split} is of the run's own data, and --source is read whole: give one of them")
    if probes.probe:
        probes.check_alone(others)
    start_jax(1)
    from jaxlm.run.evaluate import evaluate_run
    from jaxlm.run.probe import probe_run

    if probes.probe:
        probe_run(run, step, probes, extend, source, split or "validation", batch_size)
    else:
        evaluate_run(run, step, source, split or "validation", batches, batch_size, router, form, reference, extend)


def score(
    run: RunFolder,
    tokens: Annotated[Path, arg(metavar="ROWS.npy", help="Token rows, integers [rows, length].")],
    logits: Annotated[
        Path | None, arg(metavar="OUT.npy", help="Write all logits there, float32 [rows, length, vocabulary].")
    ] = None,
    step: Step = None,
    batch_size: Annotated[int, arg(help="Rows at a time.")] = 8,
    *,
    extend: Extension,
) -> None:
    """Print the log-probability of each token of given rows after those before it: one JSON object a row."""
    start_jax(1)
    from jaxlm.run.score import score_rows

    score_rows(run, tokens, logits, step, batch_size, extend)


def sample(
    run: RunFolder,
    prompt: Annotated[tuple[str, ...], arg(help="Texts to continue; none begins a document.")] = (),
    prompts: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="More of them, one a line, UTF-8; blank lines are skipped. A .jsonl file has JSON strings or objects "
            '{"prompt": TEXT}, {"tokens": IDS} or {"messages": [...]}.',
        ),
    ] = None,
    tokens: Annotated[int | None, arg(help="Tokens to write; None: 200, or what room the model leaves.")] = None,
    temperature: Annotated[float | None, arg(help="Divides the logits; 0 takes the likeliest token; None: 0.8.")] = None,
    top_k: TopK = 0,
    top_p: Annotated[
        float | None,
        arg(help="Sample from the smallest set of tokens with this probability; ties with the last stay. None: 0.95."),
    ] = None,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    presence_penalty: PresencePenalty = 0.0,
    min_tokens: MinTokens = 0,
    stop: Stop = (),
    samples: Annotated[int, arg(help="Continuations of each prompt.")] = 1,
    best_of: Annotated[int, arg(help="Draw this many and keep the `samples` of the greatest log-probability; 0: off.")] = 0,
    best_by: Annotated[
        Literal["mean", "total"] | None, arg(help="Of --best-of: log-probability a token, or in all; None: mean.")
    ] = None,
    beams: Annotated[int, arg(help="Search for the likeliest text with this many beams instead of sampling; 0: off.")] = 0,
    length_penalty: Annotated[float | None, arg(help="Of --beams: compare log-probability / length ** this; None: 1.")] = None,
    early_stopping: Annotated[
        Literal["full", "heuristic", "never"] | None,
        arg(
            help="Of --beams: stop when all are finished, when none seems to get better, or when surely none can; "
            "None: heuristic."
        ),
    ] = None,
    seed: Annotated[int, arg(help="The same seed writes the same text.")] = 0,
    json: Annotated[
        bool, arg(help="Print one JSON object a continuation: prompt, text, tokens, log_probs, log_prob, finish.")
    ] = False,
    chat: Annotated[bool, arg(help="Put each prompt through the chat template, as what a user says.")] = False,
    batch_size: Annotated[int, arg(help="Continuations at a time.")] = 16,
    step: Step = None,
    *,
    extend: Extension,
) -> None:
    """Continue prompts with a run's model; a single continuation is written as it comes."""
    start_jax(1)
    from jaxlm.decode.sampling import Sampling
    from jaxlm.run.sample import Wanted, beams_of, sample_run

    search = beams_of(beams, length_penalty, early_stopping)
    if temperature is None:
        temperature = 1.0 if search else 0.8
    if top_p is None:
        top_p = 1.0 if search else 0.95
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty, presence_penalty=presence_penalty, min_tokens=min_tokens,
    )  # fmt: skip
    wanted = Wanted(
        prompts=prompt, file=prompts, tokens=tokens, sampling=sampling, stop=stop, samples=samples, best_of=best_of,
        best_by=best_by, beams=search, seed=seed, json=json, chat=chat, batch_size=batch_size,
    )  # fmt: skip
    sample_run(run, wanted, step, extend)


def chat(
    run: RunFolder,
    system: Annotated[str, arg(help="Instructions that every conversation begins with.")] = "",
    tokens: Annotated[int, arg(help="The longest answer.")] = 512,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    presence_penalty: PresencePenalty = 0.0,
    min_tokens: MinTokens = 0,
    stop: Stop = (),
    seed: Annotated[int, arg(help="The same seed gives the same answers.")] = 0,
    step: Step = None,
    *,
    extend: Extension,
) -> None:
    """Talk with a run's model through its chat template; Ctrl-C stops an answer, Ctrl-D ends."""
    start_jax(1)
    from jaxlm.decode.sampling import Sampling
    from jaxlm.run.chat import chat_with_run

    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty, presence_penalty=presence_penalty, min_tokens=min_tokens,
    )  # fmt: skip
    chat_with_run(run, step, system=system, tokens=tokens, sampling=sampling, stop=stop, seed=seed, extension=extend)
