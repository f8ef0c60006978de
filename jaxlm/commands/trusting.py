"""The command that lets code of a file be run."""

from typing import Annotated

from tyro.conf import Positional, arg


def trust(
    function: Positional[
        Annotated[str, arg(metavar="FILE.py:NAME", help="A function that a run computes with; read it first.")]
    ],
) -> None:
    """Let runs that you did not make compute with a function of a file, which runs what the file holds."""
    from jaxlm.function_file import trusted

    print("\n".join(trusted(function)))
