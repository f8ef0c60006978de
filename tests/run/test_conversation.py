"""A conversation gives, turn by turn, what a reading of all of it gives; commands, a full context, an interruption."""

import io
import os
import signal

import pytest
from models import draw, tiny
from rich.console import Console

from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.chat import encode_chat
from jaxlm.decode.generate import Request, generate
from jaxlm.decode.sampling import Sampling
from jaxlm.decode.weights import prepare
from jaxlm.errors import DataError
from jaxlm.layout import Layout
from jaxlm.run import chat as module
from jaxlm.run.chat import Chat, talk


class Templated(ByteTokenizer):
    """Bytes with a chat template that ends every turn with eos."""

    chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{% if m['role'] == 'assistant' %}$"
        "{% endif %}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )


def conversation(window=0, **given):
    config = tiny(vocab_size=259, max_length=192, num_layers=1)
    if window:
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


@pytest.mark.parametrize("window", [0, 16])
def test_every_answer_is_that_of_the_whole_conversation(window, monkeypatch):
    monkeypatch.setattr(module, "FIRST_SLOTS", 64)  # so that the cache has to grow
    chat = conversation(window)
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


def test_only_what_is_new_is_read(monkeypatch):
    chat, lengths = conversation(), []
    extend = module.extend

    def counted(weights, tokens, at, count, *rest):
        lengths.append(int(count))
        return extend(weights, tokens, at, count, *rest)

    monkeypatch.setattr(module, "extend", counted)
    said(chat, "hello there")
    read = list(chat.read)
    said(chat, "more")
    ids = encode_chat(chat.tokenizer, chat.messages[:-1])
    shared = next((i for i, (a, b) in enumerate(zip(read, ids, strict=False)) if a != b), min(len(read), len(ids) - 1))
    assert shared > 10 and lengths == [len(ids) - shared]


def test_a_full_context_is_said_and_nothing_is_dropped():
    chat = conversation()
    with pytest.raises(DataError, match=r"reads 192: nothing is dropped silently; /undo"):
        said(chat, "x" * 200)
    assert chat.messages == []
    assert said(chat, "x" * 180).tokens  # what room there is


def talked(chat, lines, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    errors = io.StringIO()
    talk(chat, Console(file=errors), at_terminal=False)
    return capsys.readouterr().out, errors.getvalue()


def test_a_pipe_gets_bare_answers_and_commands_work(capsys, monkeypatch):
    chat = conversation()
    out, errors = talked(
        chat, ["hello", "/undo", "/undo", "/system Be brief", "hi", "/what", "/quit", "never"], capsys, monkeypatch
    )
    assert [m["content"] for m in chat.messages[:2]] == ["Be brief", "hi"] and len(chat.messages) == 3
    assert "taken back" in errors and "nothing to take back" in errors and "/reset forgets" in errors
    assert "cut at 12 tokens" in errors and ">" not in out.split("\n")[0][:1]
    assert out.endswith(f"{chat.messages[2]['content']}\n")


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
