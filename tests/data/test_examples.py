"""Rows with a prompt and a response: what they become, how they are cut, and what is said of those that cannot be used."""

import json

import pytest

from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.data_config import DataConfig
from jaxlm.data.example_config import ExampleConfig
from jaxlm.data.example_fields import Fault
from jaxlm.data.examples import encode_example, texts_of
from jaxlm.errors import ConfigError

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOKENIZER = ByteTokenizer()
ASKED, SAID, OTHER, TOOL, SYSTEM = (
    {"role": role, "content": text}
    for role, text in (("user", "hi"), ("assistant", "ho"), ("assistant", "no"), ("tool", "7"), ("system", "s"))
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
    assert TOKENIZER.decode(example.responses[0][example.counted[0]]) == "hono"
    example = encoded({"prompt": "a", "response": "b", "kind": "x"}, "conversations")
    assert texts(example) == ["^a", "b$"] and example.counted[0].tolist() == [True, True]
    for label, desirable in ((True, True), (0, False), (1.0, True)):
        example = encoded({"prompt": [ASKED], "response": [SAID], "label": label}, "labels")
        assert texts(example) == ["<user>hi<assistant>", "ho$"] and example.label is desirable


def counted(example):
    """Return what counts of each response, as text."""
    return [TOKENIZER.decode(ids[counts]) for ids, counts in zip(example.responses, example.counted, strict=True)]


def test_only_chosen_roles_count_of_responses_of_several_turns():
    example = encoded({"prompt": [ASKED], "chosen": [SAID, TOOL, ASKED, OTHER], "rejected": [OTHER]}, room=99)
    assert texts(example)[1] == "ho<tool>7<user>hi<assistant>no$" and counted(example) == ["hono", "no"]
    row = {"prompt": [ASKED], "response": [SAID, TOOL, OTHER]}
    assert counted(encoded({**row, "label": True}, "labels")) == counted(encoded(row, "conversations")) == ["hono"]
    assert counted(encoded(row, "conversations", train_on=("assistant", "tool"))) == ["ho7no"]
    for row in ({"prompt": [ASKED], "response": [SAID]}, {"prompt": "hi", "response": "ho"}):
        fault = encoded(row, "conversations", train_on=("user",))
        assert fault.kind == "nothing to train on" and "'response' is the assistant's" in fault.message
    with pytest.raises(ConfigError, match=r"'assistent' is none of .*Did you mean 'assistant'"):
        ExampleConfig(train_on=("assistent",))
    with pytest.raises(ConfigError, match="train_on is empty"):
        ExampleConfig(train_on=())
    with pytest.raises(ConfigError, match=r"lacks 'assistant'.*form = 'labels'"):
        DataConfig(form="labels", examples=ExampleConfig(train_on=("user",)))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": [ASKED], "response": [SAID, ASKED, OTHER]}, ["<user>hi<assistant>", "ho<user>hi<assistant>no$"]),
        ({"prompt": [ASKED], "response": [ASKED, SAID, ASKED, OTHER]}, ["<user>hi<assistant>", "ho<user>hi<assistant>no$"]),
        ({"prompt": "hi", "response": [SYSTEM, ASKED, SAID]}, ["<system>s<user>hi<assistant>", "ho$"]),
        ({"prompt": [SYSTEM, ASKED], "response": [SYSTEM, {**ASKED, "id": 3}, SAID]}, ["<system>s<user>hi<assistant>", "ho$"]),
    ],
    ids=["said again later", "all of it", "after a system's", "with other fields"],
)
def test_a_prompt_is_cut_off_where_the_response_begins_with_it(row, expected):
    assert texts(encoded(row, "conversations", room=99)) == expected
    pair = {"prompt": row["prompt"], "chosen": row["response"], "rejected": [*row["response"][:-1], {**SAID, "content": "x"}]}
    assert texts(encoded(pair, room=99))[:2] == expected


def test_null_is_as_good_as_missing():
    message = {"name": None, "tool_calls": None}
    talk = [{**ASKED, **message}, {**SAID, **message}]
    assert texts(encoded({"messages": talk, "prompt": None, "tools": None}, "conversations"))[1] == "ho$"
    assert texts(encoded({"messages": None, "prompt": "a", "response": "b"}, "conversations")) == ["^a", "b$"]
    assert texts(encoded({"prompt": None, "chosen": talk, "rejected": [ASKED, OTHER]})) == ["<user>hi<assistant>", "ho$", "no$"]
    named = "{% for m in messages %}<{{ m.name }}>{{ m.content }}{% endfor %}"
    assert texts(encoded({"messages": [{**ASKED, "name": "Al"}, SAID]}, "conversations", template=named))[0] == "<Al>hi"


GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}
LABELLED = {"prompt": "p", "response": "r", "label": True}
BAD = {
    "missing": ("preferences", {"prompt": "p", "chosen": "c", "rejekted": "r"}, "missing key", "Did you mean 'rejekted'"),
    "no prompt": ("preferences", {"chosen": "c", "rejected": "r"}, "missing key", "no 'prompt'. Keys: chosen, rejected"),
    "completion": ("labels", {"prompt": "p", "completion": "r", "label": True}, "missing key", "Did you mean 'completion'"),
    "no messages": ("conversations", {"conversation": []}, "missing key", "no 'messages'"),
    "type": ("preferences", {**GOOD, "chosen": 7}, "wrong type", "'chosen' holds int"),
    "null": ("preferences", {**GOOD, "chosen": None}, "missing key", "'chosen' is null"),
    "tools": ("labels", {**LABELLED, "prompt": [ASKED], "tools": [{"name": "f"}]}, "unsupported field", "the row has 'tools'"),
    "tool calls": (
        "conversations", {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]},
        "unsupported field", "a message of 'messages' has 'tool_calls'",
    ),
    "different prompts": (
        "preferences", {"prompt": "hi", "chosen": [SYSTEM, ASKED, SAID], "rejected": [{**SYSTEM, "content": "t"}, ASKED, SAID]},
        "prompts differ", "'chosen' and 'rejected' begin with different messages",
    ),
    "prompt not repeated": ("conversations", {"prompt": [SAID], "response": [ASKED, SAID, SAID]}, "wrong role", "begins with"),
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
    "wrong end": ("labels", {"prompt": [ASKED], "response": [SAID, ASKED], "label": 1}, "wrong role", "ends with a message"),
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
    assert TOKENIZER.decode(cut.responses[0][cut.counted[0]]) == "ho"
    assert encoded(talk, "conversations", room=30, max_prompt_length=20, long_response="refuse").kind == "response too long"
    assert encoded(talk, "conversations", room=12).kind == "prompt too long"


def test_a_tokenizer_is_trained_on_what_is_said():
    row = {"prompt": "one", "chosen": [ASKED, SAID], "rejected": "two", "source": "not this", "label": 1}
    assert texts_of(json.dumps(row), ExampleConfig()) == "one\ntwo\nhi\nho"
    assert texts_of(json.dumps(row), ExampleConfig(prompt="source")) == "not this\ntwo\nhi\nho"
