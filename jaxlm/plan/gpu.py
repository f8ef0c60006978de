"""NVIDIA GPUs that are not there, for XLA's compiler: it wants to be told what it would ask a device."""

from typing import Any

from jaxlm.errors import PlanError
from jaxlm.hardware import Chip
from jaxlm.plan.topology import Topology

# (compute capability, multiprocessors, FP32 units of each, bytes of shared memory of each, bytes of L2 cache, GHz), from
# NVIDIA's architecture white papers.
PROPERTIES = {
    "a100": ((8, 0), 108, 64, 164 * 1024, 40 * 2**20, 1.41),
    "h100": ((9, 0), 132, 128, 228 * 1024, 50 * 2**20, 1.98),
    "h200": ((9, 0), 132, 128, 228 * 1024, 50 * 2**20, 1.98),
}
# Nothing can be timed here, so nothing is tuned.
OPTIONS = {"xla_gpu_autotune_level": 0}


def topology_of(topology: Topology) -> Any:
    """Return JAX's description of a topology of GPUs."""
    from jax.experimental import topologies

    hosts, each = topology.dims
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        topology=f"{topology.slices}x{hosts}x{each}",
        target_config=target_config(topology.chip),
    )


def target_config(chip: Chip) -> str:
    """Return a chip as XLA's `GpuTargetConfigProto` in text form; PlanError where its properties are not known here."""
    if chip.name not in PROPERTIES:
        raise PlanError(f"{chip.name} cannot be planned for: of GPUs {', '.join(PROPERTIES)} are known")
    (major, minor), cores, units, shared, cache, clock = PROPERTIES[chip.name]
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_block_optin": shared - 1024,
        "shared_memory_per_core": shared,
        "threads_per_core_limit": 2048,
        "core_count": cores,
        "fpus_per_core": units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(chip.memory_bandwidth),
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": int(chip.memory_bytes),
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    lines = "\n".join(f"  {name}: {value}" for name, value in device.items())
    capability = f"  cuda_compute_capability {{ major: {major} minor: {minor} }}"
    return f'gpu_device_info {{\n{lines}\n{capability}\n}}\nplatform_name: "CUDA"\ndevice_description_str: "{chip.kinds[0]}"\n'
