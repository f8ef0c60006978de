"""Guards for every test: eight virtual devices, explicit broadcasts, errors for warnings and for a random key used twice."""

import gc
import os
from importlib import metadata
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests compile far more than they compute: without LLVM's optimizations they take half the time, with XLA's older way of
# emitting fusions, where it still has it, half of that again; a program in one piece, and not in 32, a tenth less.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    * metadata.version("jaxlib").startswith("0.10.")
)

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

# Warnings of our own modules are errors in processes that tests start, too. A filter from outside names a module exactly.
_root = Path(__file__).parents[1]
_modules = [".".join(file.relative_to(_root).with_suffix("").parts) for file in sorted((_root / "jaxlm").rglob("*.py"))]
os.environ["PYTHONWARNINGS"] = ",".join(f"error:::{name.removesuffix('.__init__')}" for name in _modules)

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def one_device():
    """Run each test under a mesh of one device; a test that wants another enters it."""
    from jaxlm.layout import make_mesh

    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        yield


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory):
    """Keep prepared data apart from the user's; share compiled programs among all that this run of the tests starts."""
    os.environ["JAXLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    place = tmp_path_factory.getbasetemp()
    # A program that another run of the tests compiled is never taken: workers have a folder of this run in common.
    programs = str((place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "programs")
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": programs, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_finish():
    """Have Python look for cycles rarely: of the millions of objects that tracing makes nearly all live on."""
    gc.set_threshold(50_000, 20, 50)
