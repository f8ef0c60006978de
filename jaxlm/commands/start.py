"""What every command that touches a device does first."""

import os
from importlib.util import find_spec


def start_jax(cpu_devices: int, *, join: bool = False) -> None:
    """Settle what must be settled before JAX looks for devices; with `join`, join the processes that the environment names."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    jax.config.update("jax_num_cpu_devices", cpu_devices)
    # JAX has set its platforms by now if this host has a TPU. Where it has none, and no other plugin, a TPU's compiler that is
    # there for plans would only be tried as a device, slowly and with complaints.
    if jax.config.jax_platforms is None and find_spec("libtpu") and not find_spec("jax_plugins"):
        jax.config.update("jax_platforms", "cpu")
    process = None
    if join:
        from jaxlm.run import agreement

        process = agreement.join_if_asked()
    from jaxlm.run.display import quiet_libraries
    from jaxlm.run.memory import keep_freed_memory

    quiet_libraries(process)
    keep_freed_memory()
