"""Tokens of a text: numbers that agree with those of other commands, two models side by side, what is shown and written."""

import dataclasses
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from hypothesis import given
from hypothesis import strategies as st
from models import batch_of, placed, shardings, tiny
from rich.console import Console

from jaxlm.cli import main
from jaxlm.config import to_dict
from jaxlm.data.prepare import DataConfig
from jaxlm.data.tokenizer import TokenizerConfig, train_tokenizer
from jaxlm.eval import token_table as tables
from jaxlm.experiment import Experiment
from jaxlm.layout import Layout, make_mesh
from jaxlm.model import transformer
from jaxlm.model.moe_config import MoeConfig
from jaxlm.ops.masks import Tokens
from jaxlm.report.token_difference import compare
from jaxlm.report.token_reading import read_run
from jaxlm.report.token_text import hidden, pieces, spans, visible
from jaxlm.report.tokens import _apart
from jaxlm.report.tokens_terminal import show
from jaxlm.run.directory import TOKENIZER, settle_config
from jaxlm.train.checkpoint_writer import CheckpointWriter

TEXT = 'Ein süßer Bär\tfraß <b>&amp;</b>\n"quoted" \\n </script> one two three'
ROW = 32
NAN = 9
"""The step of a checkpoint without a finite number."""


@pytest.fixture(autouse=True)
def devices_as_they_are(monkeypatch):
    """Leave JAX as the tests have set it up."""
    for module in ("reading", "viewing"):
        monkeypatch.setattr(f"jaxlm.commands.{module}.start_jax", lambda cpu_devices, join=False: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories of runs: a mixture over bytes with two checkpoints, a model with a tokenizer of its own, and one that reads
    rows of half the length, has no validation text, and diverged."""
    root = tmp_path_factory.mktemp("tokens")
    words = "one two three four five six seven eight nine ten ".split()
    for number in range(12):
        text = " ".join(np.random.default_rng(number).choice(words, 30 + number)) + ". Ein süßer Bär!"
        (root / f"{number}.txt").write_text(text)
    byte = TokenizerConfig(kind="byte", vocab_size=259)
    bpe = TokenizerConfig(vocab_size=310, path=str(root / "pieces.model"))
    moe = MoeConfig(num_experts=4, experts_per_token=2)
    texts = [path.read_text() for path in sorted(root.glob("*.txt"))]
    train_tokenizer(TokenizerConfig(vocab_size=310), texts).save(bpe.path)
    found = {}
    for name, tokenizer, mixture, saved, length in (
        ("bytes", byte, moe, (1, 2), ROW), ("pieces", bpe, MoeConfig(), (1,), ROW), ("short", byte, moe, (1, NAN), ROW // 2),
    ):  # fmt: skip
        model = tiny(vocab_size=tokenizer.vocab_size, num_layers=1, max_length=length, moe=mixture)
        data = DataConfig(
            sources=(f"text:{root}/*.txt",), validation_fraction=0.0 if name == "short" else 0.5, sequence_length=length,
            tokenizer=tokenizer,
        )  # fmt: skip
        experiment = Experiment(name=name, steps=2, batch_size=1, model=model, data=data)
        folder = root / name
        folder.mkdir()
        settle_config(folder, experiment, allow_change=False)
        own = train_tokenizer(tokenizer, [])
        own.save(folder / TOKENIZER)
        writer = CheckpointWriter(folder / "checkpoints", keep=2)
        with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
            for step in saved:
                described = {"jaxlm": "test", "experiment": to_dict(experiment), "tokenizer": own.digest}
                writer.save_params(drawn(model, step), step, described)
            writer.close()
        found[name] = folder
    return SimpleNamespace(**found)


def drawn(model, seed):
    """Return parameters drawn without a program to compile."""
    rng, scale = np.random.default_rng(seed), np.nan if seed == NAN else 0.5
    return jax.tree.map(
        lambda leaf, place: jax.device_put((scale * rng.normal(0, 1, leaf.shape)).astype(np.float32), place),
        transformer.spec(model), shardings(model), is_leaf=lambda leaf: hasattr(leaf, "shape"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def readings(runs):
    """One text as two models read it."""
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        texts = [("a text", TEXT)]
        return SimpleNamespace(
            bytes=read_run(runs.bytes, None, texts, experts=True)[0],
            before=read_run(runs.bytes, 1, texts)[0],
            pieces=read_run(runs.pieces, None, texts)[0],
        )


def ran(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


def log_probs(reading):
    return [t.log_prob for document in reading.documents for t in document.tokens if t.log_prob is not None]


def test_the_table_is_that_of_all_logits_at_once(monkeypatch):
    config = tiny(num_layers=1, moe=MoeConfig(num_experts=4, experts_per_token=2), logit_softcap=3.0)
    params, rows = drawn(config, 0), batch_of(rows=3)
    monkeypatch.setattr(tables, "CHUNK_LOGITS", 7 * config.vocab_size)  # 72 tokens: ten stretches and a rest
    monkeypatch.setattr(tables, "TOKENS_AT_ONCE", 48)  # two batches, the second filled up
    found = tables.token_table(params, rows, config, Layout(), top=3, experts=True)

    @jax.jit
    def whole(params, rows):
        x, routed = transformer.forward(params, rows.tokens, Tokens(rows.positions, rows.segments), config, Layout())
        return transformer.unembed(params, x, config, Layout()), routed.decisions.experts

    logits, experts = map(np.asarray, whole(params, placed(rows)))
    logits = logits.astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logs, rows.targets[..., None], -1)
    counted = rows.weights > 0
    np.testing.assert_allclose(found.log_probs[counted], chosen[..., 0][counted], atol=1e-5)
    np.testing.assert_allclose(found.entropy, -(np.exp(logs) * logs).sum(-1), atol=1e-5)
    np.testing.assert_array_equal(found.ranks, 1 + (logs > chosen).sum(-1))
    np.testing.assert_array_equal(found.top_ids, np.argsort(-logs, axis=-1)[..., :3])
    np.testing.assert_allclose(found.top_log_probs, -np.sort(-logs, axis=-1)[..., :3], atol=1e-5)
    np.testing.assert_array_equal(found.experts, experts)
    assert (found.ranks > 0).all()
    diverged = tables.token_table(drawn(config, NAN), rows, config, Layout(), top=3, experts=True)
    assert (diverged.ranks == 0).all() and np.isnan(diverged.log_probs).all()


def special(tokens):
    return {token["special"] for token in tokens if "special" in token and "log_prob" in token}


def test_sums_over_packed_rows_are_those_of_eval(runs, capsys):
    rows = json.loads(ran(capsys, "tokens", runs.bytes, "--rows", 3, "--json", "--experts"))
    whole = json.loads(ran(capsys, "eval", runs.bytes, "--batches", 1, "--batch-size", 3))
    for name in ("loss", "bits_per_byte", "accuracy", "tokens", "perplexity"):
        assert rows[name] == pytest.approx(whole[name], rel=1e-5), name
    tokens = [token for document in rows["documents"] for token in document["tokens"]]
    counted = [token["log_prob"] for token in tokens if "log_prob" in token]
    assert len(counted) == whole["tokens"] and -math.fsum(counted) / len(counted) == pytest.approx(whole["loss"], abs=1e-5)
    begun = [document for document in rows["documents"] if document["tokens"][0].get("special") == "<bos>"]
    assert begun and all("log_prob" not in document["tokens"][0] for document in rows["documents"])
    assert special(tokens) <= {"<eos>"}
    more = json.loads(ran(capsys, "tokens", runs.bytes, "--rows", 12, "--json"))["documents"]  # three rows may have no end
    assert special(token for document in more for token in document["tokens"]) == {"<eos>"}
    assert {len(layer) for token in tokens if "experts" in token for layer in token["experts"]} == {2}
    later = json.loads(ran(capsys, "tokens", runs.bytes, "--rows", 3, "--first", 1, "--json"))["documents"]
    ids = {document["name"]: [token["id"] for token in document["tokens"]] for document in rows["documents"]}
    assert {d["name"]: [token["id"] for token in d["tokens"]] for d in later if d["name"] in ids} == {
        name: numbers for name, numbers in ids.items() if not name.startswith("row 0, ")
    }


def test_probabilities_are_those_of_score_in_every_window(runs, capsys, tmp_path):
    ids = [1, *(byte + 3 for byte in TEXT.encode())]
    found = json.loads(ran(capsys, "tokens", runs.bytes, "--text", TEXT, "--json"))["documents"][0]["tokens"]
    assert [token["id"] for token in found] == ids and "log_prob" not in found[0]
    assert b"".join(hidden(token["text"]) for token in found).decode() == TEXT
    # Windows of 32 targets, moved by 16; a target counts in the first that has it.
    starts = [*range(0, len(ids) - 1 - ROW, ROW // 2), len(ids) - 1 - ROW]
    np.save(tmp_path / "rows.npy", np.array([ids[start : start + ROW + 1] for start in starts]))
    assert main(["score", str(runs.bytes), "--tokens", str(tmp_path / "rows.npy"), "--batch-size", str(len(starts))]) == 0
    scored = [json.loads(line)["log_probs"] for line in capsys.readouterr().out.splitlines()]
    expected, before = [], 0
    for start, row in zip(starts, scored, strict=True):
        expected += row[before - start :]
        before = start + ROW
    np.testing.assert_allclose([token["log_prob"] for token in found[1:]], expected, atol=2e-5)
    likeliest = found[5]["top"]
    assert len(likeliest) == 5 and likeliest[0]["log_prob"] >= likeliest[1]["log_prob"] >= found[5]["log_prob"] - 1e-5
    assert all((token["rank"] == 1) == (token["id"] == token["top"][0]["id"]) for token in found[1:])


def test_a_run_and_itself_differ_by_exactly_nothing(runs, capsys, readings):
    found = json.loads(ran(capsys, "tokens", runs.bytes, "--rows", 3, "--against", runs.bytes, "--json"))
    summary = found["difference"]
    assert summary["nats"] == 0 and summary["equal"] == 1 and summary["spans"] == found["tokens"] and summary["unit"] == "token"
    one, other = compare(readings.bytes, readings.before), compare(readings.before, readings.bytes)
    assert one.summary["nats"] == -other.summary["nats"] != 0 and one.summary["better"] == other.summary["worse"]
    gains, losses = one.largest(3)
    differences = sorted(span.difference for span in one.spans if span.difference is not None)
    assert [span.difference for span in losses] == differences[:3]
    assert [span.difference for span in gains] == differences[::-1][:3]
    assert gains[0].difference > 0 > losses[0].difference


def test_two_tokenizers_are_compared_where_both_have_a_boundary(runs, capsys, readings):
    left, right = readings.bytes, readings.pieces
    difference = compare(left, right)
    assert difference.unit == "stretch" and 1 < difference.summary["spans"] <= len(right.documents[0].tokens)
    total = math.fsum(log_probs(left)) - math.fsum(log_probs(right))
    assert difference.summary["nats"] == pytest.approx(total, abs=1e-6)
    assert difference.summary["bytes"] == len(TEXT.encode())
    assert difference.summary["against_bits_per_byte"] == pytest.approx(right.summary["bits_per_byte"], rel=1e-6)
    for span in difference.spans:
        texts = [
            b"".join(reading.documents[0].tokens[place].content for place in places)
            for reading, places in ((left, span.left), (right, span.right))
        ]
        assert texts[0] == texts[1] and texts[0]
    packed = json.loads(ran(capsys, "tokens", runs.pieces, "--rows", 2, "--against", runs.bytes, "--json"))
    assert packed["difference"]["spans"] > 5 and packed["difference"]["unit"] == "stretch"
    assert all(document["tokens"][0]["special"] == "<s>" for document in packed["documents"])  # texts of their own
    changed = dataclasses.replace(right, documents=[right.documents[0]._replace(tokens=right.documents[0].tokens[:-1])])
    with pytest.raises(Exception, match="not of the same bytes"):
        compare(left, changed)


def test_boundaries_in_common():
    assert spans([b"ab", b"c", b"d"], [b"a", b"bc", b"d"]) == [(range(0, 2), range(0, 2)), (range(2, 3), range(2, 3))]
    assert spans([b"", b"a", b"", b"b"], [b"a", b"b"]) == [(range(0, 3), range(0, 1)), (range(3, 4), range(1, 2))]
    assert spans([b"abc"], [b"a", b"b", b"c"]) == [(range(0, 1), range(0, 3))] and spans([], [b""]) == []
    with pytest.raises(ValueError):
        spans([b"a"], [b"b"])


@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))), st.integers(1, 5))
def test_bytes_are_shown_visibly_and_come_back(content, size):
    spelt = visible(content)
    assert hidden(spelt) == content and (spelt.isprintable() and " " not in spelt)
    cut = [content[at : at + size] for at in range(0, len(content), size)]
    shown = pieces(cut)
    assert len(shown) == len(cut) and all(shown)  # every byte is seen in its token
    again = "".join(part.text for token in shown for part in token if part.kind in ("text", "space", "newline", "tab", "cut"))
    assert "".join(c for c in content.decode(errors="ignore") if c.isprintable() or c in "\n\t") == again or "\\" in again


def test_a_character_cut_by_tokens_is_whole_in_the_first():
    shown = pieces([b"s\xc3", b"\xbc", b"\xc3\x9f a", b"\xff\n"])
    assert [[(part.kind, part.text) for part in token] for token in shown] == [
        [("text", "s"), ("cut", "ü")], [("rest", "")], [("text", "ß"), ("space", " "), ("text", "a")],
        [("byte", "\\xff"), ("newline", "\n")],
    ]  # fmt: skip
    assert visible("a·b \\\t\u200b\U000e0001é".encode()) == "a\\u00b7b·\\\\→\\u200b\\U000e0001é"


def test_in_a_terminal(readings, capsys, runs):
    out = Console(file=io.StringIO(), width=120, force_terminal=True, record=True, highlight=False)
    show(readings.bytes, None, None, out)
    text = out.export_text(clear=False)
    assert "Ein sü‥ß‥er Bä‥r→fraß‥ <b>&amp;</b>↵" in text and "least likely" in text and "probability" in text
    assert "#4d004b" in out.export_html() or "#88419d" in out.export_html()
    out = Console(file=io.StringIO(), width=160, force_terminal=True, record=True, highlight=False)
    show(readings.bytes, readings.pieces, compare(readings.bytes, readings.pieces), out)
    text = out.export_text()
    assert "better by most" in text and "worse by most" in text and "of" in text and "stretches" in text
    table = ran(capsys, "tokens", runs.bytes, "--text", TEXT, "--against", runs.pieces)  # no terminal: a line a token
    lines = [line.split() for line in table.splitlines()]
    assert [line[2] for line in lines if line and line[0].isdigit()] == [
        "<bos>", *(visible(bytes([byte])) for byte in TEXT.encode())
    ]  # fmt: skip


def test_what_cannot_be_read_is_refused(runs, capsys, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").touch()
    for words, *arguments in (
        ("give one of them", "--text", "a", "--rows", 1), ("byte 3 is 0xe9", "--file", tmp_path / "latin.txt"),
        ("empty.txt is empty", "--file", tmp_path / "empty.txt"), ("cannot be read", "--file", tmp_path / "none.txt"),
        ("--top 0 must be 1 or more", "--top", 0), ("--against RUN too", "--against-step", 1),
        ("--first 999 lies beyond them", "--first", 999), ("there is no folder", "--out", tmp_path / "no" / "page.html"),
        ("is not a run directory", "--against", tmp_path), ("no checkpoint of step 7", "--step", 7),
    ):  # fmt: skip
        assert words in refused(capsys, "tokens", runs.bytes, *arguments), words
    assert "is dense" in refused(capsys, "tokens", runs.pieces, "--experts")
    assert main(["tokens", str(runs.bytes), "--text", TEXT, "--limit", "50", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["tokens"] == 50 and f"the first 46 of {len(TEXT)} characters" in printed.err


@pytest.mark.parametrize("how", [("--json",), ("--out", "page.html"), ()])
def test_a_model_that_diverged_is_refused(runs, capsys, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "tokens", runs.short, "--step", NAN, "--text", TEXT, *how)
    assert f"no finite log-probability for {len(TEXT.encode())} of {len(TEXT.encode())} tokens" in said and "--step" in said
    if how == ("--json",):  # and where it is the other one
        assert f"at step {NAN}" in refused(capsys, "tokens", runs.short, "--step", 1, "--text", TEXT, "--against", runs.short)
    assert not list(tmp_path.iterdir())


def test_two_models_read_no_further_back_than_both_can(runs, capsys, readings):
    against = "--against", runs.short, "--against-step", 1
    found = json.loads(ran(capsys, "tokens", runs.bytes, "--text", TEXT, *against, "--json"))
    assert "windows of 16 tokens, the smaller max_length (of 32)" in found["difference"]["context"]
    far = [token.log_prob for token in readings.bytes.documents[0].tokens]
    near = [token.get("log_prob") for token in found["documents"][0]["tokens"]]
    np.testing.assert_allclose(near[1:17], far[1:17], atol=1e-5)
    assert all(one != pytest.approx(other, abs=1e-4) for one, other in zip(near[17:33], far[17:33], strict=True))
    alone = json.loads(ran(capsys, "tokens", runs.short, "--step", 1, "--text", TEXT, "--json"))["documents"]
    assert found["against"]["documents"] == alone
    one, other = readings.bytes.tokenizer, readings.pieces.tokenizer
    assert _apart([one, one], ROW, ROW) == _apart([one, one], ROW, math.inf) == ""
    assert _apart([one, other], ROW, ROW) == "the tokenizers differ"
    assert _apart([one, one], ROW, ROW // 2).startswith("rows of 32 tokens are longer")


def test_rows_of_another_source(runs, capsys, tmp_path):
    (tmp_path / "book.txt").write_text("a book of " * 30)
    found = json.loads(ran(capsys, "tokens", runs.bytes, "--source", f"text:{tmp_path}/book.txt", "--rows", 3, "--json"))
    texts = [b"".join(hidden(token["text"]) for token in document["tokens"]).decode() for document in found["documents"]]
    assert len(texts) == 3 and texts[0].startswith("a book of a book") and found["tokens"] == 3 * ROW
    with_text = refused(capsys, "tokens", runs.bytes, "--source", "text:book.txt", "--text", "a")
    assert "--source is what rows are read of: it does not go with --text" in with_text
    before = refused(capsys, "tokens", runs.short)  # before anything is encoded
    assert "was trained without validation text: give --text, --file or --source" in before


def test_a_model_that_is_read_otherwise(runs, capsys):
    options = "--text", TEXT, "--extend.attention-window", 4, "--json"
    found = json.loads(ran(capsys, "tokens", runs.bytes, *options, "--against", runs.bytes))
    assert found["name"] == "bytes (last 4)" and found["against"]["name"] == "bytes"
    differences = [span["difference"] for span in found["difference"]["of"][1:]]
    np.testing.assert_allclose(differences[:4], 0, atol=1e-5)  # a window's worth
    assert all(abs(nats) > 1e-4 for nats in differences[4:])
    both = json.loads(ran(capsys, "tokens", runs.bytes, *options, "--against", runs.bytes, "--extend-both"))
    assert both["difference"]["equal"] == 1 and both["against"]["name"] == "bytes (last 4)"
    assert "--extend-both is of --against" in refused(capsys, "tokens", runs.bytes, *options, "--extend-both")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
def test_the_page_in_a_browser(runs, capsys, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    page = tmp_path / "page.html"
    said = ran(
        capsys, "tokens", runs.bytes, "--file", tmp_path / "text.txt", "--against", runs.pieces, "--experts", "--out", page
    )
    assert f"{len(TEXT.encode())} tokens" in said
    with Browser(1000, 800) as browser:
        browser.open(page)
        assert browser.complaints() == [] and browser.requests() == [page.as_uri()]
        assert browser.evaluate("document.querySelector('.text').textContent") == "<bos>" + TEXT  # can be searched and copied
        browser.evaluate("document.getElementById('t3').dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
        panel = browser.evaluate("document.getElementById('panel').innerText")
        assert "token n (113)" in panel and "difference" in panel and "pieces, step 1" in panel and "experts layer 0" in panel
        browser.evaluate("document.getElementById('t3').click()")
        pressed = (
            "document.getElementById('t3').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))"
        )
        browser.evaluate(pressed)
        assert (
            browser.evaluate("document.activeElement.id") == "t4" and browser.evaluate("document.activeElement.tabIndex") == 0
        )
        colour = "getComputedStyle(document.getElementById('t9')).backgroundColor"
        light = browser.evaluate(colour)
        browser.evaluate("document.querySelector('input[value=entropy]').click()")
        assert browser.evaluate("getComputedStyle(document.querySelector('.legend.entropy')).display") == "flex"
        browser.evaluate("document.querySelector('input[value=difference]').click()")
        browser.media(prefers_color_scheme="dark")
        assert (
            browser.evaluate(colour) != light
            and browser.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        )
        assert browser.complaints() == []
    text = Path(page).read_text()
    assert "http://" not in text and "https://" not in text and text.count("</script>") == 2
