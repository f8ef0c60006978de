"""What a measurement was made on: facts of the machine, versions of what was measured, commit and digest of the sources."""

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def usable_cpus() -> set[int]:
    """Return the cores that this process, and so those that it starts, may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def processor() -> str:
    """Return the processor's name as its maker gives it, where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Return what decides how fast a program is here; no name of a host and no path is among it."""
    facts: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "cores_used": len(usable_cpus())}
    facts["system"] = f"{platform.system()} {platform.machine()}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 2)
    return facts


def versions() -> dict[str, str]:
    """Return the versions of Python and of what computes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the short hash of the commit, with a plus sign where files differ from it, or "unknown" outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def package_digest() -> str:
    """Return a digest of the sources of jaxlm as this interpreter imports it; nothing is imported for it."""
    spec, found = find_spec("jaxlm"), hashlib.sha256()
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).rglob("*.py")):
            found.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def sources() -> dict[str, str]:
    """Return the commit and the digest of jaxlm's sources: to be asked for before anything is measured."""
    return {"commit": commit(), "package": package_digest()}


def since(began: dict[str, str]) -> dict[str, str | bool]:
    """Return what `sources` said at the start, and whether the package has changed since."""
    return began | {"changed_meanwhile": package_digest() != began["package"]}


def threads() -> int:
    """Return how many threads XLA computes with on a CPU: as many as cores that it may use, unless NPROC says otherwise."""
    return int(os.environ.get("NPROC") or len(usable_cpus()))


def uncached() -> dict[str, str]:
    """Return this process's environment without JAX's persistent compile cache: what is compiled already takes no time."""
    rest = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return rest | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
