"""Documents to retrieve from fill rows, and end in what can be found in them; every reading reaches its length."""

import dataclasses
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import extend_by_tuning
import self_extend
import window_and_group
from long_context import LENGTH, LENGTHS, STYLE, Measured, add, base, draw_documents, draw_passkey, draw_repeated, tabulate

from jaxlm.data.packing import pack, row_type
from jaxlm.data.tokenizer import train_tokenizer
from jaxlm.eval.retrieval import passkey_tasks
from jaxlm.experiment_mesh import check_devices
from jaxlm.layout import MeshConfig


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(base().data.tokenizer, ())


@pytest.mark.parametrize("size", [62, 254, 1022])
def test_documents_fill_rows_and_are_the_same_every_time(size, tokenizer):
    texts = list(draw_documents(64, size, seed=0))
    assert {len(text.encode()) for text in texts} == {size} and len(set(texts)) > 60
    assert texts == list(draw_documents(64, size, seed=0)) and texts[0] != next(draw_documents(1, size, seed=1))
    width = max(size + 2, LENGTH)
    documents = [np.array(tokenizer.encode(text)) for text in texts]
    rows = pack(documents, row_type(width, 259), tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert len(rows) == 64 * (size + 2) // width
    assert (rows["tokens"][:, 0] == tokenizer.bos_id).all() and (rows["tokens"][:, -2] == tokenizer.eos_id).all()


def test_keys_asked_for_were_told():
    places = []
    for seed in range(60):
        text = draw_passkey(254, random.Random(seed))
        asked = re.search(r"What is the pass key\? The pass key is (\d{5})\. $", text)[1]
        told = re.search(re.escape(STYLE.needle).replace(r"\{key\}", r"(\d{5})"), text)
        assert told[1] == asked and len(text) <= 254
        places.append(told.start())
    assert min(places) < 20 and max(places) > 130  # at every depth
    told = [re.findall(r"The key of (\w+) is (\d{5})\. ", text) for text in draw_documents(200, 254, seed=0)]
    assert any(told) and all(len(found) == 2 * len({*found}) == 2 * len(dict(found)) for found in told)
    again = draw_repeated(254, random.Random(0))
    period = again.index(again[:20], 1)
    assert again[period:] == again[:-period] and period <= 127


def test_the_probe_asks_in_the_form_that_was_learnt(tokenizer):
    (task,) = passkey_tasks(tokenizer, (LENGTH,), (0.5,), 1, seed=1, style=STYLE)
    text = tokenizer.decode(task.prompt + task.answer)
    assert re.search(r"The pass key is (\d{5})\. Remember it\. .*What is the pass key\? The pass key is \1$", text)


def test_readings_reach_their_length():
    model = base().model
    for length in LENGTHS:
        for name, extension in self_extend.readings(length).items():
            read, factor = extension.applied(model), length / LENGTH
            assert read.max_length == length, name
            if name in ("PI", "NTK", "YaRN"):
                assert (read.rope_scaling.factor, read.rope_scaling.original_length) == (factor, LENGTH)
            if read.self_extend.on:
                assert read.self_extend.longest(LENGTH) >= length and read.self_extend.original_length == LENGTH
    assert {"Self-Extend 16/128", "PI", "window 256"} <= {*self_extend.readings(2048)}
    assert "Self-Extend 8/128" not in self_extend.readings(2048)
    assert window_and_group.grouped(4, 32, 512) and not window_and_group.grouped(2, 32, 512)
    assert extend_by_tuning.untuned(1024)["Self-Extend"].self_extend.group_size == 8


def test_an_arm_on_longer_rows_fits_a_mesh_that_splits_them():
    split = dataclasses.replace(extend_by_tuning.experiment(), mesh=MeshConfig(data=2, context=2, cpu_devices=4))
    assert check_devices(split, 4)["context"] == 2
    assert split.model.rope_scaling.original_length == LENGTH and split.data.sequence_length == 1024


def test_tables_hold_means_over_seeds():
    found = {}
    for bits in (1.0, 3.0):
        add(found, {"plain": {256: Measured(np.array([[9.0, bits]] * 4), np.array([[1.0, 0.0]]), np.array([[0.5]]))}})
    assert tabulate(found, "late") == [["arm", "256"], ["plain", "2.000 (2.000 to 2.000)"]]
    assert tabulate(found, "passkey")[1][1].startswith("50 (") and tabulate(found, "digits")[1][1] == "50 (50 to 50)"
