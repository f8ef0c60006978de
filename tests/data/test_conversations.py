"""What counts of a conversation: the replies and what ends them, to the token, whatever the template."""

import pytest

from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.chat import encode_chat, render_chat
from jaxlm.data.conversations import RewritingTemplate, encode_reply, encode_turns
from jaxlm.interop.source import open_pretrained

TALK = [
    {"role": "user", "content": "Say cat."},
    {"role": "assistant", "content": "A\tcat <|im_end|> it is."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "  Nothing.\n"},
]
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
# Plain text, so that a template can be read off: [user] and [assistant] begin turns, nothing special ends them.
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
# Drops earlier replies, as templates of thinking models drop earlier thoughts.
FORGETS = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}MARK{{ m.content if loop.last else '...' }};END"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def smollm2():
    return open_pretrained("smollm2").tokenizer


def stretches(tokenizer, ids, counted):
    """Return the text with what counts between brackets."""
    text, before = "", False
    for i, counts in zip(ids, counted, strict=True):
        text += "[" * (counts and not before) + "]" * (before and not counts) + tokenizer.decode([i], specials=True)
        before = counts
    return text + "]" * before


def test_smollm2_counts_replies_with_what_ends_them(smollm2):
    ids, counted = encode_turns(smollm2, TALK, ("assistant",), None)
    assert stretches(smollm2, ids, counted) == (
        f"{SYSTEM}<|im_start|>user\nSay cat.<|im_end|>\n<|im_start|>assistant\n[A\tcat <|im_end|> it is.<|im_end|>]\n"
        "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n[  Nothing.\n<|im_end|>]\n"
    )
    assert ids.count(2) == 5  # the one that a reply spells is text
    assert encode_turns(smollm2, TALK[:2], ("assistant",), None)[0] == encode_chat(
        smollm2, TALK[:2], add_generation_prompt=False
    )


def test_a_reply_has_the_ids_that_generation_reads_and_writes(smollm2):
    before, after = encode_reply(smollm2, TALK[:3], TALK[3:], None)
    assert before == encode_chat(smollm2, TALK[:3])
    assert after == ([*smollm2.encode("  Nothing.\n"), 2], [True] * 5)
    after = after[0]
    ids, counted = encode_turns(smollm2, TALK, ("assistant",), None)
    assert ids[: len(before) + len(after)] == before + after and sum(counted[len(before) :]) == len(after)


def test_other_roles_count_from_what_they_say_on(smollm2):
    talk = [{"role": "system", "content": "Be brief."}, *TALK[:2]]
    ids, counted = encode_turns(smollm2, talk, ("user", "assistant"), None)
    assert stretches(smollm2, ids, counted) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n[Say cat.<|im_end|>]\n"
        "<|im_start|>assistant\n[A\tcat <|im_end|> it is.<|im_end|>]\n"
    )
    # A system text of the template's own is nobody's message.
    ids, counted = encode_turns(smollm2, TALK[:2], ("user",), None)
    assert stretches(smollm2, ids, counted).count("[") == 1 and f"{SYSTEM}<|im_start|>user\n[Say cat.<|im_end|>]" in stretches(
        smollm2, ids, counted
    )


def test_what_a_template_does_not_end_eos_ends():
    tokenizer, talk = ByteTokenizer(), [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    ids, counted = encode_turns(tokenizer, talk, ("assistant",), PLAIN)
    assert tokenizer.decode(ids) == "[user]hi\n[assistant]ho\n" and ids[-1] == tokenizer.eos_id
    assert tokenizer.decode([i for i, counts in zip(ids, counted, strict=True) if counts]) == "ho\n" and counted[-1]
    before, after = encode_reply(tokenizer, talk[:1], talk[1:], PLAIN)
    assert before + after[0] == ids and sum(after[1]) == len(after[0]) == sum(counted)
    # Where another speaks last, nothing more is said.
    assert encode_turns(tokenizer, [*talk, talk[0]], ("assistant",), PLAIN)[0][-1] != tokenizer.eos_id


def test_a_conversation_that_an_assistant_begins():
    tokenizer, talk = ByteTokenizer(), [{"role": "assistant", "content": "ho"}, {"role": "user", "content": "hi"}]
    ids, counted = encode_turns(tokenizer, talk, ("assistant",), PLAIN)
    assert stretches(tokenizer, ids, counted) == "[assistant][ho\n][user]hi\n"


def test_marks_of_a_template_that_rewrites():
    tokenizer = ByteTokenizer()
    talk = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "bb"), ("user", "c"), ("assistant", "dd"))]
    rewrites = FORGETS.replace("MARK", "").replace("END", "")
    with pytest.raises(RewritingTemplate, match=r"first 2 message\(s\) otherwise.*generation.*data.examples.template"):
        encode_turns(tokenizer, talk, ("assistant",), rewrites)
    assert encode_reply(tokenizer, talk[:3], talk[3:], rewrites)[1][0] == [*tokenizer.encode("dd;"), tokenizer.eos_id]
    marked = FORGETS.replace("MARK", "{% generation %}").replace("END", "{% endgeneration %}")
    ids, counted = encode_turns(tokenizer, talk, ("assistant",), marked)
    assert stretches(tokenizer, ids[:-1], counted[:-1]) == "[user]a[assistant][...;][user]c[assistant][dd;]"
    assert tokenizer.decode(ids) == render_chat(tokenizer, talk, add_generation_prompt=False, template=marked)
    with pytest.raises(RewritingTemplate):
        encode_turns(tokenizer, talk, ("assistant", "user"), marked)
    # So it is with a reply of several turns.
    _, (ids, counted) = encode_reply(tokenizer, talk[:1], talk[1:], marked)
    assert stretches(tokenizer, ids[:-1], counted[:-1]) == "[...;][user]c[assistant][dd;]"


def message(role, content, **fields):
    return {"role": role, "content": content, **fields}


@pytest.mark.parametrize(
    ("talk", "train_on", "expected"),
    [
        ([("system", "Y"), ("user", "a"), ("assistant", "b")], ("user",), "<|im_start|>user\n[a<|im_end|>]\n"),
        ([("system", "t"), ("user", "x")], ("system",), "<|im_start|>system\n[t<|im_end|>]\n<|im_start|>user\nx<|im_end|>\n"),
        ([("system", "Y"), ("user", "user")], ("user",), "<|im_start|>user\n[user<|im_end|>]\n"),
        ([("system", "Y"), ("user", "end")], ("user",), "<|im_start|>user\n[end<|im_end|>]\n"),
        ([("assistant", "s"), ("user", "x"), ("assistant", "z")], ("assistant",),
         f"{SYSTEM}<|im_start|>assistant\n[s<|im_end|>]\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n[z<|im_end|>]\n"),
    ],
    ids=["special token", "role and token", "role", "end of turn", "default system prompt"],
)  # fmt: skip
def test_what_is_said_may_also_stand_in_its_header(smollm2, talk, train_on, expected):
    messages = [message(*each) for each in talk]
    ids, counted = encode_turns(smollm2, messages, train_on, None)
    assert expected in stretches(smollm2, ids, counted) and stretches(smollm2, ids, counted).count("[") == expected.count("[")
    assert ids == encode_chat(smollm2, messages, add_generation_prompt=False)


def test_a_message_that_the_template_does_not_write():
    template = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    talk = [message("system", "s"), message("user", "s")]
    with pytest.raises(RewritingTemplate, match=r"what message 1 \(system\) says.*leave its role out"):
        encode_turns(ByteTokenizer(), talk, ("system",), template)
    assert stretches(ByteTokenizer(), *encode_turns(ByteTokenizer(), talk, ("user",), template)).startswith("[user][s")


def test_of_a_reply_of_several_turns_only_some_count(smollm2):
    talk = [message("user", "q"), message("assistant", "f()"), message("tool", "a"), message("assistant", "b")]
    before, (ids, counted) = encode_reply(smollm2, talk[:1], talk[1:], None)
    assert stretches(smollm2, ids, counted) == (
        "[f()<|im_end|>]\n<|im_start|>tool\na<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]"
    )
    assert before + ids == encode_chat(smollm2, talk, add_generation_prompt=False)[:-1]
    assert stretches(smollm2, *encode_reply(smollm2, talk[:1], talk[1:], None, ("assistant", "tool"))[1]) == (
        "[f()<|im_end|>]\n<|im_start|>tool\n[a<|im_end|>]\n<|im_start|>assistant\n[b<|im_end|>]"
    )


def test_other_fields_reach_the_template_and_spell_no_special_token(smollm2):
    template = "{% for m in messages %}{{ m.name }}:{{ m.extra | default(0) | tojson }}:{{ m.content }}<|im_end|>{% endfor %}"
    talk = [message("user", "a", name="n<|im_end|>", extra={"k": ["<|im_end|>", 1]}), message("assistant", "b")]
    ids, _ = encode_turns(smollm2, talk, ("assistant",), template)
    assert ids.count(2) == 2 and smollm2.decode(ids, specials=True).startswith(
        'n<|im_end|>:{"k": ["<|im_end|>", 1]}:a<|im_end|>'
    )
