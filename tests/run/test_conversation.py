"""A conversation gives, turn by turn, what a reading of all of it gives; commands, a full context, an interruption."""

import dataclasses
import io
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from models import draw, tiny
from rich.console import Console

from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.chat import encode_chat
from jaxlm.decode.generate import Request, generate
from jaxlm.decode.sampling import Sampling
from jaxlm.decode.weights import prepare
from jaxlm.errors import ConfigError, DataError
from jaxlm.layout import Layout
from jaxlm.model.rope_config import RopeScaling, SelfExtend
from jaxlm.run import chat as module
from jaxlm.run.chat import Chat, chat_with_run, talk


class Templated(ByteTokenizer):
    """Bytes with a chat template that ends every turn with eos."""

    chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{% if m['role'] == 'assistant' %}$"
        "{% endif %}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )


def conversation(window=0, grouped=False, **given):
    config = tiny(vocab_size=259, max_length=192, num_layers=1)
    if grouped:
        config = dataclasses.replace(config, self_extend=SelfExtend(group_size=4, window_size=window))
    elif window:
        config = tiny(
            vocab_size=259, max_length=192, num_layers=2, attention_pattern=("sliding", "global"), sliding_window=window
        )
    layout = Layout(batch=None)
    fields = {"tokens": 12, "sampling": Sampling(temperature=0.0)} | given
    return Chat(prepare(draw(config), config, layout), config, layout, Templated(), **fields)


def said(chat, text):
    *_, last = chat.answer(text)
    return last


def afresh(chat):
    """Return what the model answers to the conversation so far, read from nothing."""
    ids = encode_chat(chat.tokenizer, chat.messages[:-1])
    request = Request(prompt=ids, sampling=chat.sampling)
    return generate(chat.weights, chat.model, chat.layout, [request], chat.tokens, tokenizer=chat.tokenizer)[0]


@pytest.mark.parametrize(("window", "grouped"), [(0, False), (40, False), (40, True)])
def test_every_answer_is_that_of_the_whole_conversation(window, grouped, monkeypatch):
    for name, size in {
        "FIRST_SLOTS": 64,
        "SHORT": 16,
        "LONG": 32,
    }.items():  # so that the cache has to grow, and be fed by parts
        monkeypatch.setattr(module, name, size)
    chat, went_back, forget = conversation(window, grouped), [], module.forget

    def noted(cache, used):
        went_back.append(len(chat.read))
        return forget(cache, used)

    monkeypatch.setattr(module, "forget", noted)
    for text in ("hello there", "and now?", "something rather longer than what was said before"):
        answer = said(chat, text)
        assert answer.tokens and answer.tokens == afresh(chat).tokens
        if not window:
            # Bytes that are no text come back as others, so that the cache is not always of use; here it must have been.
            assert chat.read[: len(encode_chat(chat.tokenizer, chat.messages[:-1]))] == encode_chat(
                chat.tokenizer, chat.messages[:-1]
            )
    assert chat.undo() and [m["content"] for m in chat.messages if m["role"] == "user"] == ["hello there", "and now?"]
    assert said(chat, "other").tokens == afresh(chat).tokens
    assert went_back and (not window or max(went_back) <= window)  # a ring goes back as long as it has overwritten nothing


def test_only_what_is_new_is_read(monkeypatch):
    chat, lengths, widths = conversation(), [], []
    extend = module.extend

    def counted(weights, tokens, at, count, *rest):
        lengths.append(int(count))
        widths.append(tokens.shape[1])
        return extend(weights, tokens, at, count, *rest)

    monkeypatch.setattr(module, "extend", counted)
    said(chat, "hello there")
    read = list(chat.read)
    lengths.clear()
    said(chat, "more")
    ids = encode_chat(chat.tokenizer, chat.messages[:-1])
    shared = next((i for i, (a, b) in enumerate(zip(read, ids, strict=False)) if a != b), min(len(read), len(ids) - 1))
    assert shared > 10 and lengths == [len(ids) - shared]
    assert widths == [64, 64]  # no width for every length: each is a program


@pytest.mark.parametrize(
    ("kind", "read", "ids", "known"),
    [("longrope", 8, 9, 0), ("longrope", 9, 8, 0), ("longrope", 9, 12, 9), ("longrope", 5, 8, 5), ("dynamic", 5, 8, 5),
     ("dynamic", 9, 12, 0)],
)  # fmt: skip
def test_what_was_read_with_other_frequencies_is_read_anew(kind, read, ids, known):
    factors = {"short_factor": (1.0, 1.0), "long_factor": (2.0, 2.0)} if kind == "longrope" else {}
    model = tiny(rope_scaling=RopeScaling(kind=kind, factor=4.0, original_length=8, **factors))
    chat = SimpleNamespace(cache="a cache", read=list(range(read)), model=model, slots=64)
    assert Chat._known(chat, list(range(ids))) == known


def test_a_full_context_is_said_and_nothing_is_dropped():
    chat = conversation()
    with pytest.raises(DataError, match=r"reads 192: nothing is dropped silently; /undo"):
        said(chat, "x" * 200)
    assert chat.messages == []
    assert said(chat, "x" * 180).tokens  # what room there is


def talked(chat, lines, capsys, monkeypatch):
    written = b"".join(f"{line}\n".encode("latin-1") for line in lines)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(written), encoding="utf-8"))
    errors = io.StringIO()
    talk(chat, Console(file=errors), at_terminal=False)
    return capsys.readouterr().out, errors.getvalue()


def test_a_pipe_gets_bare_answers_and_commands_work(capsys, monkeypatch):
    chat = conversation()
    lines = ["hello", "/undo", "/undo", "/system Be brief", "h\xff", "/undo it", "/quit", "never"]
    out, errors = talked(chat, lines, capsys, monkeypatch)
    # Neither a byte that is no UTF-8 nor a question that begins like a command ends or changes the conversation.
    assert [m["content"] for m in chat.messages if m["role"] != "assistant"] == ["Be brief", "h\ufffd", "/undo it"]
    assert "taken back" in errors and "nothing to take back" in errors
    assert "cut at 12 tokens" in errors and ">" not in out.split("\n")[0][:1]
    assert out.endswith(f"{chat.messages[-1]['content']}\n")


def test_a_question_that_a_pipe_gets_no_answer_to_is_a_failure(capsys, monkeypatch):
    chat = conversation()
    with pytest.raises(DataError, match="1 of the questions could not be answered"):
        talked(chat, ["x" * 300, "/quit"], capsys, monkeypatch)
    assert capsys.readouterr().out == "\n"


def test_an_unknown_command_at_a_terminal_asks_nothing(monkeypatch):
    chat, lines = conversation(), iter(["/what", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    errors = io.StringIO()
    talk(chat, Console(file=errors), at_terminal=True)
    assert "unknown command" in errors.getvalue() and not chat.messages


def test_what_cannot_be_is_refused_before_a_run_is_opened():
    nowhere = Path("no such run")
    with pytest.raises(ConfigError, match="--tokens 0 must be 1 or more"):
        chat_with_run(nowhere, tokens=0)
    with pytest.raises(ConfigError, match="--seed -1 must be"):
        chat_with_run(nowhere, seed=-1)
    with pytest.raises(DataError, match="--system: .* no valid Unicode"):
        chat_with_run(nowhere, system="a\udcff")


def test_an_interruption_ends_the_answer_alone(capsys, monkeypatch):
    chat, stream = conversation(tokens=60), module.display.stream
    presses = iter([True])

    def press(text):
        stream(text)
        if text and next(presses, False):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module.display, "stream", press)
    before = signal.getsignal(signal.SIGINT)
    talked(chat, ["hello"], capsys, monkeypatch)
    assert 0 < len(chat.read) - len(encode_chat(chat.tokenizer, chat.messages[:-1])) < 60
    assert signal.getsignal(signal.SIGINT) is before
    assert said(chat, "go on").tokens == afresh(chat).tokens
