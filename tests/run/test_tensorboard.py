"""What TensorBoard reads: whole records, and an error where they cannot be written."""

import os
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from jaxlm.errors import CheckpointError
from jaxlm.run.metrics import MetricsLog
from jaxlm.run.tensorboard import Events


def read_events(path):
    data, place = path.read_bytes(), 0
    while place < len(data):
        header = data[place : place + 8]
        (size,), (check,) = struct.unpack("<Q", header), struct.unpack("<I", data[place + 8 : place + 12])
        body, after = data[place + 12 : place + 12 + size], data[place + 12 + size : place + 16 + size]
        assert check == masked_crc32c(header) and struct.unpack("<I", after) == (masked_crc32c(body),)
        yield Event.FromString(body)
        place += 16 + size


def test_the_events_are_those_of_the_record(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 7, tmp_path / "board")
    log.write(7, "train", {"loss": 0.5, "batch_hash": "ab", "router_load_cv": [1.0, 2.0]})
    log.write(8, "validation", {"loss": 0.25})
    log.close()
    (file,) = (tmp_path / "board").iterdir()
    version, begin, *rows = read_events(file)
    assert version.file_version == "brain.Event:2" and begin.session_log.status == 1 and begin.step == 7
    found = {(value.tag, row.step): value.simple_value for row in rows for value in row.summary.value}
    names = "train/loss", "train/router_load_cv/0", "train/router_load_cv/1"
    assert found == dict(zip([(name, 7) for name in names], (0.5, 1.0, 2.0), strict=True)) | {("validation/loss", 8): 0.25}


def open_events():
    """Return the descriptor of the one file of events that is open."""
    links = [Path(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    (found,) = [int(link.name) for link in links if link.is_symlink() and "tfevents" in str(link.readlink())]
    return found


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_a_full_disk_is_an_error_at_once_and_does_not_hold_up_the_run(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, tmp_path / "board")
    full = os.open("/dev/full", os.O_WRONLY)
    file = open_events()
    os.dup2(full, file)
    monkeypatch.setattr("jaxlm.run.tensorboard._FLUSH_SECONDS", 0.0)
    for step in range(20):  # more than any queue between threads would hold
        with pytest.raises(CheckpointError, match=r"metrics.jsonl or what TensorBoard reads.*No space left"):
            log.write(step, "train", {"loss": 1.0})
    log.close()
    os.close(full)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_a_full_disk_is_told_of_when_it_is_closed(tmp_path):
    events = Events(tmp_path, 0)
    file = open_events()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file)
    os.close(full)
    with pytest.raises(OSError, match="No space left"):
        events.close()
    assert not os.path.exists(f"/proc/self/fd/{file}")
