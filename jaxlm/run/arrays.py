"""Arrays in files of NumPy's formats, read with suspicion: a header is held against the file before it is believed."""

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxlm.errors import DataError

_LONGEST_HEADER = 10_000  # bytes; NumPy refuses longer ones


def map_npy(path: Path) -> np.ndarray:
    """Return the array of a .npy file, mapped; DataError where there is none, with what is wrong."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(np.lib.format.MAGIC_PREFIX))
    except FileNotFoundError as fault:
        raise DataError(f"there is no file {path}") from fault
    except OSError as fault:
        raise DataError(f"{path} cannot be read: {fault.strerror}") from fault
    if begins != np.lib.format.MAGIC_PREFIX:
        raise DataError(f"{path} is not a NumPy array file: np.save('rows.npy', np.array([[1, 5, 9]])) makes one")
    try:
        with path.open("rb") as file:
            shape, dtype = _header(file)
            _check_size(shape, dtype, path.stat().st_size - file.tell())
        return np.lib.format.open_memmap(path, mode="r")
    # Headers are Python literals, whose reader raises what Python's tokenizer, NumPy's types or the mapping do.
    except Exception as fault:
        raise DataError(f"{path} is not a NumPy array file: {_said(fault)}. np.save writes one") from fault


def read_npz(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return these arrays of an archive as `np.savez` writes it, uncompressed; DataError where it is none.

    Raises FileNotFoundError where there is no such file: what that means, the caller knows.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _member(archive, f"{name}.npy") for name in names}
    except FileNotFoundError:
        raise
    except Exception as fault:
        raise DataError(f"{path} is no archive of arrays that np.savez wrote: {_said(fault)}") from fault


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return one array, its claimed size held against the bytes that are there."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    with archive.open(info) as file:
        shape, dtype = _header(file)
        _check_size(shape, dtype, info.file_size - file.tell())
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_size(shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> None:
    """Raise ValueError where `size` bytes are not just such an array; of no bytes NumPy divides by their number."""
    if not dtype.itemsize or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"it holds {size} bytes, which are no {dtype} of shape {str(shape)[:80]}")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    begins, wide = file.tell(), 2 if version == (1, 0) else 4
    length = int.from_bytes(file.read(wide), "little")
    if length > _LONGEST_HEADER:  # NumPy reads it whole before it looks at its length
        raise ValueError(f"its header claims {length} bytes")
    file.seek(begins)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _said(fault: Exception) -> str:
    return f"{type(fault).__name__}: {fault}".splitlines()[0][:200]
