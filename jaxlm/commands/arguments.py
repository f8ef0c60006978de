"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxlm.errors import ConfigError

RunFolder = Positional[Annotated[Path, arg(metavar="RUN", help="A run's directory.")]]
File = Positional[
    Annotated[
        Path,
        arg(
            metavar="EXPERIMENT.py",
            help="A file that defines experiment(). `--overrides FILE.json` changes its fields before any other option does.",
        ),
    ]
]
Step = Annotated[int | None, arg(help="Step of the checkpoint; the newest by default.")]
Fields = arg(name="")  # the experiment's fields, without a prefix: --steps 100 --model.num-layers 4


def check_least(least: int, **options: int) -> None:
    """Raise ConfigError for an option, by its name, that is below the least it may be."""
    for name, value in options.items():
        if value < least:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be {least} or more")
