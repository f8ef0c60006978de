"""`jaxlm data show`: what the loss sees, to the token."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.text import Text

from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.example_config import ExampleConfig
from jaxlm.data.prepare import DataConfig, prepare
from jaxlm.data.tokenizer import TokenizerConfig
from jaxlm.errors import ConfigError
from jaxlm.run import data
from jaxlm.run.display import console

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def prepared_of(tmp_path, rows, form, **changes):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        "sources": (f"jsonl:{tmp_path}/rows.jsonl",), "form": form, "validation_fraction": 0.0, "sequence_length": 32,
        "tokenizer": TokenizerConfig(kind="byte", vocab_size=259), "cache": str(tmp_path / "cache"),
    }  # fmt: skip
    return prepare(DataConfig(**fields | changes))


def shown(prepared, count, capsys):
    """Return what is printed of the first rows, without the legend."""
    data.show_examples(prepared, "train", range(count))
    legend, *lines = capsys.readouterr().out.splitlines()
    assert "⟦like this⟧" in legend
    return lines


def test_pairs(tmp_path, capsys):
    rows = [{"prompt": "1+1=", "chosen": "2", "rejected": "10\t"}]
    assert shown(prepared_of(tmp_path, rows, "preferences"), 1, capsys) == [
        "--- train pair 0: chosen: 2 of 7 tokens count",
        "<bos>│1│+│1│=⟦2│<eos>⟧",
        "--- train pair 0: rejected: 4 of 9 tokens count",
        "<bos>│1│+│1│=⟦1│0│→│<eos>⟧",
    ]
    rows = [{"prompt": "a", "response": "b", "label": False}, {"prompt": "c", "response": "d" * 40, "label": True}]
    assert shown(prepared_of(tmp_path, rows, "labels"), 2, capsys) == [
        "--- train pair 0: undesirable: 2 of 4 tokens count",
        "<bos>│a⟦b│<eos>⟧",
        "--- train pair 0: for the baseline alone: 31 of 33 tokens count",
        f"<bos>│a⟦{'│'.join('d' * 31)}⟧",
        "--- train pair 1: desirable: 31 of 33 tokens count",
        f"<bos>│c⟦{'│'.join('d' * 31)}⟧",
        "--- train pair 1: for the baseline alone: 2 of 4 tokens count",
        "<bos>│c⟦b│<eos>⟧",
    ]


def test_conversations_in_one_row(tmp_path, capsys):
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": talk}, {"prompt": "é", "response": "c"}]
    examples = ExampleConfig(template=str(tmp_path / "chat.jinja"))
    prepared = prepared_of(tmp_path, rows, "conversations", examples=examples)
    assert shown(prepared, 1, capsys) == [
        "--- train row 0: 5 of 27 tokens count",
        "<│u│s│e│r│>│a│↵",
        "│<│a│s│s│i│s│t│a│n│t│>⟦b│↵",
        "│<eos>⟧",
        "--- another example of the row",
        "<bos>│\\xc3│\\xa9⟦c│<eos>⟧",
    ]


def test_control_characters_are_shown_as_escapes(tmp_path, capsys):
    assert shown(prepared_of(tmp_path, [{"prompt": "\x1b[2J", "response": "a\r\x07\x7f\n"}], "conversations"), 1, capsys) == [
        "--- train row 0: 6 of 11 tokens count",
        "<bos>│\\x1b│[│2│J⟦a│\\r│\\x07│\\x7f│↵",
        "│<eos>⟧",
    ]
    (tmp_path / "a.txt").write_text("\x1b[2J\té\n")
    config = DataConfig(
        sources=(f"text:{tmp_path}/a.txt",), validation_fraction=0.0, cache=str(tmp_path / "cache"),
        tokenizer=TokenizerConfig(kind="byte", vocab_size=259),
    )  # fmt: skip
    data.show_data(SimpleNamespace(data=config), "train", 0, 1)
    assert "\\x1b[2J\té\n" in capsys.readouterr().out
    for first, count, words in ((-1, 1, "--first -1: rows are counted from 0"), (0, 0, "--rows 0: give 1 or more")):
        with pytest.raises(ConfigError, match=words):
            data.show_data(SimpleNamespace(data=config), "train", first, count)


def test_colours_follow_the_mask():
    ids, counted = np.array([1, 100, 101, 2]), np.array([False, False, True, True])
    text = data.coloured(ids, counted, [], ByteTokenizer(), bars=False)
    assert text.plain == "<bos>a⟦b<eos>⟧" and isinstance(text, Text)
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles["<bos>"] == "dim" and styles["a"] == "dim underline"
    assert styles["b"] == styles["⟧"] == "bold green" and styles["<eos>"] == "bold green underline"


def test_faults_are_printed(tmp_path, capsys):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3 + [
        {"prompt": "[b]"},
        {"prompt": "a", "chosen": "b" * 40, "rejected": "c"},
    ]
    prepared = prepared_of(tmp_path, rows, "preferences", on_bad_document="skip")
    data.say_faults(prepared, console())
    said = capsys.readouterr().err
    assert "1 x missing key" in said and f"{tmp_path}/rows.jsonl, line 4: no 'chosen'" in said and "1 response(s) of" in said
    data.say_faults(prepared_of(tmp_path, rows[:3], "preferences"), console())
    assert capsys.readouterr().err == ""
