"""Guards for every test: eight virtual devices, explicit broadcasts, and an error where a random key is used twice."""

import os
from importlib import metadata

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests compile far more than they compute: without LLVM's optimizations they take half the time, with XLA's older way of
# emitting fusions, where it still has it, half of that again.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0"
    + (" --xla_cpu_use_fusion_emitters=false" if metadata.version("jaxlib").startswith("0.10.") else "")
)

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def one_device():
    """Run each test under a mesh of one device; a test that wants another enters it."""
    from jaxlm.layout import make_mesh

    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep prepared data of tests apart from the user's."""
    os.environ["JAXLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
