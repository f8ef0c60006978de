"""What a plan's numbers rest on, in sentences."""

from jaxlm.plan.compiled import Compiled
from jaxlm.plan.estimate import Estimate
from jaxlm.plan.topology import Topology


def assumptions(compiled: Compiled, topology: Topology, estimated: Estimate | None) -> list[str]:
    """Return every assumption behind a plan's numbers, one sentence each."""
    lines = [
        "Nothing here is measured: memory is the compiler's own layout of this program, time a model on published figures.",
        "Parts of memory are told apart by the operation that makes a buffer, when most is in use; gradients and temporaries "
        "of the backward pass are not told apart, nor are those of the forward pass and the update.",
        _compute(compiled, topology),
    ]
    if estimated:
        lines += [
            "Kernels that the compiler does not cost (attention, grouped products) run at the chip's peak or its bandwidth.",
            *_masked(estimated),
            *_links(topology, estimated),
            "Overlap is not known: the bounds are all collectives behind compute, and none. As scheduled: those that the "
            "compiler starts ahead of their use hide behind compute, the others wait their turn.",
            "The host's work, the input and stragglers are left out.",
        ]
    if compiled.costs and compiled.costs.unknown_loops:
        lines.append(f"{len(compiled.costs.unknown_loops)} loops whose turns the text does not tell count once.")
    return lines


def _compute(compiled: Compiled, topology: Topology) -> str:
    roofline = "every operation takes the longer of FLOPs at the chip's peak and bytes at its memory's bandwidth: optimistic."
    if not topology.chip.clock:
        return (
            f"A GPU's compiler estimates no cycles: {roofline} What its autotuner would choose on a device is not known, and "
            "memory is its peak without the libraries' workspaces. Attention is written out in blocks, for the run's, cuDNN's, "
            "cannot be built without a device: more memory and traffic than the run's."
        )
    if compiled.stage == "schedule" or not compiled.facts["fits"]:
        return (
            "The compiler was stopped at its schedule, where it knows memory but for the program's machine code (tens of MiB); "
            f"{roofline}"
        )
    return (
        f"Compute is the compiler's estimated cycles, loops as often as they turn, at {topology.chip.clock / 1e9:g} GHz; it "
        "behaves as a roofline with tiling."
    )


def _masked(estimated: Estimate) -> list[str]:
    if estimated.hardware_flops >= estimated.model_flops:
        return []
    return [
        "The model's FLOPs count attention over all keys of a row, masked or not (arXiv:2204.02311); kernels skip those to "
        "come. Of long rows less is executed than counted, and MFU may pass 100 %."
    ]


def _links(topology: Topology, estimated: Estimate) -> list[str]:
    chip = topology.chip
    lines = []
    if chip.is_tpu:
        lines.append(
            f"A link carries {chip.link_bandwidth / 1e9:g} GB/s one way; rings use both directions and all sides of the torus "
            "along which their devices differ; interleaved groups share links; latency and contention are left out."
        )
    elif chip.link_bandwidth:
        lines.append(f"NVLink carries {chip.link_bandwidth / 1e9:g} GB/s one way a GPU; latency is left out.")
    if any(wire.joined.far > 1 for wire in estimated.wires):
        lines.append(
            f"Between slices or hosts each device has {chip.network_bandwidth / 1e9:g} GB/s one way."
            if chip.network_bandwidth
            else f"What a {chip.name} has between slices is not published: that time is left out."
        )
    return lines
