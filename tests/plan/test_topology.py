"""Names of topologies, the wires between their devices, and the chips' published figures."""

import itertools

import pytest

from jaxlm.errors import ConfigError
from jaxlm.hardware import CHIPS, chip
from jaxlm.plan.topology import parse_topology
from jaxlm.plan.wires import wires


@pytest.mark.parametrize(
    "text, name, devices, said",
    [
        ("v5e:4x4", "v5e:4x4", 16, ""),
        ("v5p:4x4x4", "v5p:4x4x4", 64, ""),
        ("v5p-128", "v5p:4x4x4", 64, "128 TensorCores"),
        ("v5litepod-256", "v5e:16x16", 256, "256 chips"),
        ("v4-8", "v4:2x2x1", 4, "8 TensorCores"),
        ("v6e-8", "v6e:2x4", 8, "8 chips"),
        ("v5p-12288", "v5p:16x16x24", 6144, "TensorCores"),
        ("tpu7x:2x2x1", "tpu7x:2x2x1", 8, ""),  # two devices a chip
        ("h100:8", "h100:8", 8, ""),
        ("H100:16", "h100:2x8", 16, ""),
    ],
)
def test_names_are_read(text, name, devices, said):
    topology, told = parse_topology(text)
    assert (topology.name, topology.num_devices) == (name, devices)
    assert (said in told and name in told) if said else told == ""
    assert parse_topology(text, 2)[0].num_devices == 2 * devices


@pytest.mark.parametrize(
    "text, advice",
    [
        ("v5q:4x4x4", "Did you mean 'v5p'"),
        ("v7x:4x4x4", "Did you mean 'tpu7x'"),
        ("v5p", "v5p:AxBxC"),
        ("v5p:4x4", r"A x B x C chips: did you mean v5p:2x2x4 \(16 chips\)"),
        ("v5e:16", r"did you mean v5e:4x4 \(16 chips\)"),
        ("v6e:16x32", "--topology v6e:16x16 and --slices 2"),
        ("v5p:4x4x6", "did you mean v5p:4x4x8"),
        ("v5p-100", "counts TensorCores, two a chip"),
        ("v5p-129", "counts TensorCores, two a chip"),
        ("v5e:0x4", "at least 1"),
        ("h100:12", "h100:8 .one host. or h100:4x8"),
    ],
)
def test_what_is_no_topology_is_refused_with_what_is(text, advice):
    with pytest.raises(ConfigError, match=advice):
        parse_topology(text)


def box(*sizes):
    return [(0, *place, 0) for place in itertools.product(*map(range, sizes))]


def test_rings_and_sides_add_up_and_lines_do_not_close():
    pod, _ = parse_topology("v5p:4x4x8")  # whole cubes: all three sides are rings
    link = pod.chip.link_bandwidth
    assert wires(box(4, 1, 1), pod).bandwidth(pod.chip) == 2 * link
    assert wires(box(4, 1, 8), pod).bandwidth(pod.chip) == 4 * link
    # Half a side is a line, and every second chip of a side shares its links with the others.
    assert wires(box(1, 1, 4), pod).bandwidth(pod.chip) == link
    assert wires([(0, 0, 0, z, 0) for z in range(0, 8, 2)], pod).bandwidth(pod.chip) == 2 * link / 2
    small, _ = parse_topology("v5e:4x4")  # 16 chips of a side make a ring, 4 do not
    assert wires(box(4, 4), small).bandwidth(small.chip) == 2 * small.chip.link_bandwidth
    full, _ = parse_topology("v5e:16x16")
    assert wires(box(16, 1), full).bandwidth(full.chip) == 2 * full.chip.link_bandwidth


def test_an_all_to_all_waits_for_the_middle_of_the_ring():
    pod, _ = parse_topology("v5p:4x4x8")
    link = pod.chip.link_bandwidth
    # Each of 8 sends 1/8 to each: of 8 x payload, half crosses the middle, in each direction over one link of two cuts.
    assert wires(box(1, 1, 8), pod).all_to_all_seconds(8e9, pod.chip) == pytest.approx(8e9 * 8 / 8 / link)
    # Two more in a second dimension do not widen the cut a device must share.
    assert wires(box(1, 2, 8), pod).all_to_all_seconds(8e9, pod.chip) == pytest.approx(8e9 * 8 / 8 / link)
    line, _ = parse_topology("v5e:2x4")
    assert wires(box(1, 4), line).all_to_all_seconds(4e9, line.chip) == pytest.approx(4e9 / line.chip.link_bandwidth)


def test_between_slices_and_hosts_the_network_decides():
    two, _ = parse_topology("v5e:4x4", 2)
    apart = wires([(0, 0, 0, 0), (1, 0, 0, 0)], two)
    assert (apart.near, apart.far) == (1, 2)
    assert apart.bandwidth(two.chip) == two.chip.network_bandwidth
    hosts, _ = parse_topology("h100:2x8")
    assert wires([(0, gpu) for gpu in range(8)], hosts).bandwidth(hosts.chip) == hosts.chip.link_bandwidth
    # All 8 network cards of a host carry a part of what its 8 GPUs send to the other.
    everyone = wires([(host, gpu) for host in range(2) for gpu in range(8)], hosts)
    assert everyone.bandwidth(hosts.chip) == 8 * hosts.chip.network_bandwidth
    old, _ = parse_topology("v4:4x4x4", 2)
    assert wires([(0, 0, 0, 0, 0), (1, 0, 0, 0, 0)], old).bandwidth(old.chip) is None


def test_chips_are_found_by_topology_and_by_device_kind():
    for each in CHIPS:
        assert chip(each.name) is each and all(chip(kind) is each for kind in each.kinds)
    kinds = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x"}
    kinds |= {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100 PCIe": "h100-pcie", "NVIDIA A100-SXM4-80GB": "a100"}
    assert {kind: chip(kind).name for kind in kinds} == kinds
    assert chip("cpu") is None and chip("NVIDIA L40S") is None
