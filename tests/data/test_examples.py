"""Rows with a prompt and a response: what they become, how they are cut, and what is said of those that cannot be used."""

import json

import pytest

from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.example_config import ExampleConfig
from jaxlm.data.example_fields import Fault
from jaxlm.data.examples import encode_example, texts_of

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOKENIZER = ByteTokenizer()
ASKED, SAID, OTHER = (
    {"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "ho"), ("assistant", "no"))
)


def encoded(row, form="preferences", room=64, template=TEMPLATE, **changes):
    return encode_example(
        TOKENIZER, json.dumps(row), form=form, config=ExampleConfig(**changes), room=room, template=template
    )  # fmt: skip


def texts(example):
    """Return the prompt and the responses as text, with what begins and ends them."""
    assert not isinstance(example, Fault), example
    names = {TOKENIZER.bos_id: "^", TOKENIZER.eos_id: "$"}
    return ["".join(names.get(i) or TOKENIZER.decode([i]) for i in ids) for ids in (example.prompt, *example.responses)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "1+1=", "chosen": "2", "rejected": "3"}, ["^1+1=", "2$", "3$"]),
        ({"prompt": [ASKED], "chosen": [SAID], "rejected": [OTHER]}, ["<user>hi<assistant>", "ho$", "no$"]),
        ({"prompt": "hi", "chosen": [SAID], "rejected": [OTHER]}, ["<user>hi<assistant>", "ho$", "no$"]),
        ({"chosen": [ASKED, SAID], "rejected": [ASKED, OTHER]}, ["<user>hi<assistant>", "ho$", "no$"]),
        ({"prompt": "hi", "chosen": [ASKED, SAID], "rejected": [ASKED, OTHER]}, ["<user>hi<assistant>", "ho$", "no$"]),
        (
            {"chosen": [ASKED, SAID, ASKED, SAID], "rejected": [ASKED, SAID, ASKED, OTHER]},
            ["<user>hi<assistant>ho<user>hi<assistant>", "ho$", "no$"],
        ),
        (
            {"chosen": [ASKED, SAID, ASKED, OTHER], "rejected": [ASKED, OTHER]},
            ["<user>hi<assistant>", "ho<user>hi<assistant>no$", "no$"],
        ),
    ],
    ids=["texts", "messages", "text and messages", "no prompt", "prompt twice", "long talk", "early parting"],
)  # fmt: skip
def test_what_preferences_become(row, expected):
    assert texts(encoded(row)) == expected


def test_texts_as_a_chat_and_other_names():
    row = {"question": "hi", "good": "ho", "bad": "no"}
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert texts(encoded(row, **names)) == ["^hi", "ho$", "no$"]
    assert texts(encoded(row, **names, as_chat=True)) == ["<user>hi<assistant>", "ho$", "no$"]


def test_conversations_and_labels():
    example = encoded({"messages": [ASKED, SAID, ASKED, OTHER]}, "conversations")
    assert texts(example) == ["<user>hi<assistant>", "ho<user>hi<assistant>no$"]
    assert TOKENIZER.decode(example.responses[0][example.counted]) == "hono"
    example = encoded({"prompt": "a", "response": "b", "kind": "x"}, "conversations")
    assert texts(example) == ["^a", "b$"] and example.counted.tolist() == [True, True]
    for label, desirable in ((True, True), (0, False), (1.0, True)):
        example = encoded({"prompt": [ASKED], "response": [SAID], "label": label}, "labels")
        assert texts(example) == ["<user>hi<assistant>", "ho$"] and example.label is desirable


GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}
LABELLED = {"prompt": "p", "response": "r", "label": True}
BAD = {
    "missing": ("preferences", {"prompt": "p", "chosen": "c", "rejekted": "r"}, "missing key", "Did you mean 'rejekted'"),
    "no prompt": ("preferences", {"chosen": "c", "rejected": "r"}, "missing key", "no 'prompt'. Keys: chosen, rejected"),
    "completion": ("labels", {"prompt": "p", "completion": "r", "label": True}, "missing key", "Did you mean 'completion'"),
    "no messages": ("conversations", {"conversation": []}, "missing key", "no 'messages'"),
    "type": ("preferences", {**GOOD, "chosen": 7}, "wrong type", "'chosen' holds int"),
    "null": ("preferences", {**GOOD, "chosen": None}, "wrong type", "'chosen' holds null"),
    "message type": ("preferences", {**GOOD, "chosen": [{"role": "assistant"}]}, "wrong type", "lacks a role or a content"),
    "not messages": ("conversations", {"messages": "hi"}, "wrong type", "must be a list of messages"),
    "empty prompt": ("preferences", {**GOOD, "prompt": " \n"}, "empty prompt", "'prompt' is empty"),
    "empty messages": ("labels", {**LABELLED, "prompt": []}, "empty prompt", "'prompt' is empty"),
    "user says nothing": ("conversations", {"messages": [{**ASKED, "content": ""}, SAID]}, "empty prompt", "a user's message"),
    "nothing shared": ("preferences", {"chosen": [SAID], "rejected": [OTHER]}, "empty prompt", "nothing goes before"),
    "empty chosen": ("preferences", {**GOOD, "chosen": ""}, "empty response", "'chosen' is empty"),
    "empty rejected": ("preferences", {**GOOD, "rejected": "\t"}, "empty response", "'rejected' is empty"),
    "empty last turn": (
        "preferences", {"chosen": [ASKED, SAID, ASKED, SAID], "rejected": [ASKED, SAID, ASKED, {**SAID, "content": ""}]},
        "empty response", "'rejected' says nothing",
    ),
    "no response": ("labels", {**LABELLED, "response": []}, "empty response", "'response' says nothing"),
    "says nothing": ("conversations", {"messages": [ASKED, {**SAID, "content": " "}]}, "empty response", "that counts"),
    "equal": ("preferences", {**GOOD, "rejected": "c"}, "chosen = rejected", "'chosen' and 'rejected' are the same"),
    "label": ("labels", {**LABELLED, "label": "yes"}, "label", "'label' is 'yes': it must be true or false"),
    "label of 2": ("labels", {**LABELLED, "label": 2}, "label", "'label' is 2"),
    "role": ("conversations", {"messages": [{**ASKED, "role": "usr"}, SAID]}, "unknown role", "'usr'. Did you mean 'user'"),
    "wrong speaker": ("labels", {"prompt": [SAID], "response": [ASKED, SAID], "label": 1},
                      "wrong role", "begins with a message of role 'user'"),
    "nobody": ("conversations", {"messages": [ASKED, ASKED]}, "nothing to train on", "no message of assistant"),
    "empty talk": ("conversations", {"messages": []}, "empty conversation", "has no message"),
    "long prompt": ("preferences", {**GOOD, "prompt": "p" * 64}, "prompt too long", "65 tokens of prompt and 2 of response"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_said_of_a_bad_row(name):
    form, row, kind, words = BAD[name]
    fault = encoded(row, form)
    assert isinstance(fault, Fault) and (fault.kind, words in fault.message) == (kind, True), fault


def test_templates_that_are_missing_or_refuse():
    row = {"prompt": [ASKED], "chosen": [SAID], "rejected": [OTHER]}
    fault = encoded(row, template=None)
    assert fault.kind == "no template" and "data.examples.template" in fault.message
    fault = encoded(row, template="{{ raise_exception('never') }}")
    assert fault.kind == "template" and "never" in fault.message
    assert not isinstance(encoded(GOOD, template=None), Fault)


def test_long_prompts_are_cut_only_where_they_must_be():
    row = {"prompt": "abcdefghijklmn", "response": "xyz", "label": 1}  # 15 with bos, and 4 with eos
    whole = encoded(row, "labels", room=19)
    assert texts(whole) == ["^abcdefghijklmn", "xyz$"] and not (whole.cut_prompt or whole.cut_response)
    assert encoded(row, "labels", room=18).kind == "prompt too long"
    end = encoded(row, "labels", room=18, long_prompt="keep_end")
    assert texts(end) == ["^bcdefghijklmn", "xyz$"] and end.cut_prompt and not end.cut_response
    start = encoded(row, "labels", room=18, long_prompt="keep_start")
    assert texts(start) == ["^abcdefghijklm", "xyz$"]
    # Not below its own share of the row: then the response gives way, and keeps something in any case.
    both = encoded(row, "labels", room=6, long_prompt="keep_end")
    assert texts(both) == ["^mn", "xyz"] and both.cut_prompt and both.cut_response
    assert texts(encoded(row, "labels", room=6, long_prompt="keep_end", max_prompt_length=5)) == ["^klmn", "x"]
    assert texts(encoded(row, "labels", room=6, long_prompt="keep_end", max_prompt_length=100)) == ["^klmn", "x"]


def test_long_responses():
    row = {"prompt": "ab", "chosen": "xxxxxxxx", "rejected": "xxy"}
    cut = encoded(row, room=8)
    assert texts(cut) == ["^ab", "xxxxx", "xxy$"] and cut.cut_response and not cut.cut_prompt
    assert encoded(row, room=8, long_response="refuse").kind == "response too long"
    fault = encoded(row, room=5, max_prompt_length=3)
    assert fault.kind == "chosen = rejected" and "of what a row holds" in fault.message
    talk = {"messages": [ASKED, SAID, ASKED, OTHER]}  # <user>hi<assistant>ho<user>hi<assistant>no$
    cut = encoded(talk, "conversations", room=30, max_prompt_length=20)
    assert texts(cut) == ["<user>hi<assistant>", "ho<user>hi<"] and cut.cut_response
    assert TOKENIZER.decode(cut.responses[0][cut.counted]) == "ho"
    assert encoded(talk, "conversations", room=30, max_prompt_length=20, long_response="refuse").kind == "response too long"
    assert encoded(talk, "conversations", room=12).kind == "prompt too long"


def test_a_tokenizer_is_trained_on_what_is_said():
    row = {"prompt": "one", "chosen": [ASKED, SAID], "rejected": "two", "source": "not this", "label": 1}
    assert texts_of(json.dumps(row), ExampleConfig()) == "one\ntwo\nhi\nho"
    assert texts_of(json.dumps(row), ExampleConfig(prompt="source")) == "not this\ntwo\nhi\nho"
