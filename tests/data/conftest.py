"""A small text to prepare: forty files of plain words."""

import random

import pytest
from hypothesis import settings

from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig

settings.register_profile("no deadline", deadline=None)  # a busy machine is not a fault
settings.load_profile("no deadline")

WORDS = "the a cat dog bird runs sees sleeps over under big small red green house river and or".split()


@pytest.fixture
def books(tmp_path):
    """Return a folder of forty text files, of one to twelve lines."""
    folder, chance = tmp_path / "books", random.Random(0)
    folder.mkdir()
    for number in range(40):
        lines = (" ".join(chance.choices(WORDS, k=12)) for _ in range(chance.randint(1, 12)))
        (folder / f"{number:02d}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def byte_config(books, tmp_path):
    """Return a function that makes the configuration of `books` at byte level, with some fields changed."""

    def make(**changes) -> DataConfig:
        fields = {
            "sources": (f"text:{books}/*.txt",),
            "validation_fraction": 0.2,
            "tokenizer": TokenizerConfig(kind="byte", vocab_size=259),
            "sequence_length": 64,
            "cache": str(tmp_path / "cache"),
        }
        return DataConfig(**fields | changes)

    return make
