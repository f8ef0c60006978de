"""A run with checkpoints on disk, and a user's probe."""

import shutil

import pytest
from written_run import SIZES, write_run, write_texts


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A folder with a run, its texts, and the experiment."""
    folder = tmp_path_factory.mktemp("analysis")
    texts = write_texts(folder / "texts")
    return folder, texts, write_run(folder / "run", texts)


@pytest.fixture
def run(written, tmp_path):
    """A copy of a run with checkpoints 0, 10 and 20."""
    return shutil.copytree(written[0] / "run", tmp_path / "run")


@pytest.fixture
def sizes(tmp_path):
    """A user's probe."""
    file = tmp_path / "sizes.py"
    file.write_text(SIZES)
    return file
