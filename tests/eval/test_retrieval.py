"""Tasks fit their length and say the answer where they should; models that find it score, others do not."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from copier import COPIER, copier
from models import draw, tiny

from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.tokenizer import TokenizerConfig, train_tokenizer
from jaxlm.decode.generate import Request, generate
from jaxlm.decode.sampling import Sampling
from jaxlm.errors import ConfigError, DataError
from jaxlm.eval.answers import solve
from jaxlm.eval.retrieval import NUMBERED, PAPER, Style, Task, copy_tasks, needle_tasks, passkey_tasks, read_tasks
from jaxlm.layout import Layout, make_mesh

BYTES = ByteTokenizer()
DEPTHS = (0.0, 0.3, 1.0)
OWN = Style(
    opening="", needle="The pass key is {key}. Remember it. ", filler=("It rains. ", "A dog barks at the moon. "),
    question="What is the pass key? The pass key is ",
)  # fmt: skip


@pytest.fixture(scope="module")
def bpe():
    """A SentencePiece BPE of English that has pieces for numbers of its own."""
    text = f"{PAPER.opening}{''.join(PAPER.filler)}{PAPER.question}{PAPER.reply}12345 {NUMBERED.needle} " * 40
    return train_tokenizer(TokenizerConfig(vocab_size=330), [text])


class Chatty(ByteTokenizer):
    """Bytes with a chat template."""

    chat_template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}A: "


class Joined(ByteTokenizer):
    """Bytes without a bos, and one token for "ab" alone."""

    prefix_ids = ()

    def encode(self, text, *, specials=False):
        return [250] if text == "ab" else super().encode(text)


def tokens_of(tokenizer, text: str) -> int:
    return len(tokenizer.encode(text))


@pytest.mark.parametrize("make", [passkey_tasks, needle_tasks])
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_tasks_fill_their_length_and_tell_the_answer_where_it_was_asked_for(make, kind, bpe):
    tokenizer = {"bytes": BYTES, "bpe": bpe}[kind]
    lengths = (400, 900)
    tasks = make(tokenizer, lengths, DEPTHS, 2, seed=1)
    assert [(task.length, task.depth) for task in tasks] == [
        (size, depth) for size in lengths for depth in DEPTHS for _ in "ab"
    ]
    longest = max(tokens_of(tokenizer, sentence) for sentence in PAPER.filler)
    for task in tasks:
        whole = tokenizer.decode((*task.prompt, *task.answer))
        assert task.length - longest - 2 < len(task.prompt) + len(task.answer) <= task.length
        assert task.prompt[: len(tokenizer.prefix_ids)] == tokenizer.prefix_ids
        key = tokenizer.decode(task.answer).strip()
        assert re.fullmatch(r"\d{5}", key) and whole.endswith(f" is {key}")
        told = whole.index(f"{key}. ") if make is passkey_tasks else whole.index("Key number 1 is")
        fillers = [whole[:told].count(". The grass") + whole[:told].count("sky is") + whole[:told].count("Here we go")]
        total = whole.count(". The grass") + whole.count("sky is") + whole.count("Here we go")
        assert abs(fillers[0] - task.depth * total) <= 1.5


def test_the_same_seed_gives_the_same_tasks_whatever_else_is_asked_for():
    once = passkey_tasks(BYTES, (300, 600), DEPTHS, 2, 5, OWN)
    assert passkey_tasks(BYTES, (600,), DEPTHS[1:], 2, 5, OWN) == once[8:]
    assert not set(once) & set(passkey_tasks(BYTES, (300, 600), DEPTHS, 2, 6, OWN))
    fillers = [BYTES.decode(task.prompt).count("rains") for task in once[:6]]
    assert len(set(fillers)) > 1  # drawn, each time anew
    assert all(BYTES.decode(task.prompt).endswith("The pass key is ") for task in once)


def test_keys_of_needles_differ_in_order_alone():
    for task in needle_tasks(BYTES, (500,), (0.5,), 4, 0):
        text, answer = BYTES.decode(task.prompt), BYTES.decode(task.answer)
        keys = dict(re.findall(r"Key number (\d) is (\d{5})\. ", text))
        assert len(keys) == 4 == len(set(keys.values())) and len({"".join(sorted(key)) for key in keys.values()}) == 1
        asked = re.search(r"What is key number (\d)\?", text)[1]
        assert keys[asked] == answer


def test_in_a_chat_the_user_asks_and_the_reply_has_begun():
    (task,) = passkey_tasks(Chatty(), (400,), (0.5,), 1, 0, chat=True)
    text = BYTES.decode(task.prompt)
    assert text.startswith("[There is an important") and text.endswith("What is the pass key?]A: The pass key is ")
    assert 375 < len(task.prompt) + 5 <= 400 and task.prompt[0] != BYTES.bos_id


def test_what_cannot_be_made_says_the_fix(tmp_path):
    with pytest.raises(ConfigError, match="a passkey task has 2.. tokens without any filler: a length must be that or more"):
        passkey_tasks(BYTES, (100,), (0.5,), 1, 0)
    with pytest.raises(ConfigError, match="depth 1.5 must be from 0"):
        passkey_tasks(BYTES, (400,), (1.5,), 1, 0)
    with pytest.raises(ConfigError, match="need rows of 65 or more, not 40"):
        copy_tasks(BYTES, (40,), 1, 0)
    for line, said in (
        ("{", "line 2 is no JSON"),
        ('{"prompt": "a"}', 'line 2 must be an object with "prompt" and "answer"'),
        ('{"prompt": "a", "answer": ""}', "line 2 must be an object"),
        ('{"prompt": "a", "answer": "b", "depth": 2}', "line 2: depth = 2 must be a number from 0 to 1"),
    ):
        (tmp_path / "tasks.jsonl").write_text(f'{{"prompt": "a", "answer": "b"}}\n{line}\n')
        with pytest.raises(DataError, match=re.escape(said)):
            read_tasks(tmp_path / "tasks.jsonl", BYTES)
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "a", "answer": "bc"}\n{"prompt": "a", "answer": "b"}')
    with pytest.raises(DataError, match="line 2: the tokenizer makes one token of prompt and answer together"):
        read_tasks(tmp_path / "tasks.jsonl", Joined())
    (tmp_path / "tasks.jsonl").write_text('\n{"prompt": "a b ", "answer": "cd", "depth": 0.25}\n')
    assert read_tasks(tmp_path / "tasks.jsonl", BYTES) == [
        Task((1, *BYTES.encode("a b ")), tuple(BYTES.encode("cd")), 7, 0.25, "task")
    ]


def test_a_space_belongs_to_the_answer_where_the_tokenizer_puts_it_there(bpe, tmp_path):
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "The pass key ", "answer": "is 12345"}')
    (task,) = read_tasks(tmp_path / "tasks.jsonl", bpe)
    assert [*task.prompt, *task.answer] == [bpe.bos_id, *bpe.encode("The pass key is 12345")]
    assert bpe.decode_bytes(task.answer).lstrip() == b"is 12345" and bpe.decode_bytes(task.answer)[:1] == b" "


def test_a_model_that_copies_solves_copies_and_no_other():
    tasks = copy_tasks(BYTES, (80,), 5, 0, block=12, cue=4)
    assert all(len(task.prompt) + len(task.answer) == 80 and task.prompt[1:5] == task.prompt[-4:] for task in tasks)
    (place,) = {"".join(map(chr, task.prompt)).rindex("".join(map(chr, task.answer))) for task in tasks}
    distance = len(tasks[0].prompt) - 1 - place
    solved = solve(copier(distance), tasks, COPIER, Layout(), 2, BYTES)
    assert all(answer.correct and answer.token_accuracy == 1 and answer.log_prob > -1 for answer in solved)
    assert [answer.text for answer in solved] == [BYTES.decode(task.answer) for task in tasks]
    missed = solve(copier(distance + 1), tasks, COPIER, Layout(), 5)
    assert not any(answer.correct for answer in missed) and np.mean([answer.token_accuracy for answer in missed]) < 0.3
    assert missed[0].text is None


def test_solving_is_what_greedy_generation_would_write():
    model = tiny(max_length=48, num_layers=1)
    params, rng = draw(model, spread=0.3), np.random.default_rng(3)
    prompts = [tuple(rng.integers(3, 64, size).tolist()) for size in (9, 20, 30, 31)]
    layout = dataclasses.replace(Layout(), batch=None)
    made = generate(
        params, model, layout, [Request(prompt=prompt, sampling=Sampling(temperature=0.0)) for prompt in prompts], 6
    )
    right = [Task(prompt, tuple(each.tokens), 36, 0.0, "task") for prompt, each in zip(prompts, made, strict=True)]
    wrong = [task._replace(answer=(*task.answer[:-1], (task.answer[-1] + 1) % 64)) for task in right[:2]]
    shorter = [task._replace(answer=task.answer[:2]) for task in right[:1]]
    told = []
    found = solve(params, [*right, *wrong, *shorter], model, Layout(), 4, report=told.append)
    for answer, completion in zip(found[:4], made, strict=True):
        assert answer.correct and answer.token_accuracy == 1 and answer.tokens == tuple(completion.tokens)
        assert answer.log_prob == pytest.approx(completion.total, abs=1e-4)
    assert [answer.correct for answer in found[4:]] == [False, False, True]
    assert [answer.token_accuracy for answer in found[4:]] == pytest.approx([5 / 6, 5 / 6, 1])
    assert sum(told) == 7 * 48
    with pytest.raises(DataError, match="the model knows 0 to 63"):
        solve(params, [right[0]._replace(answer=(64,))], model, Layout())
    with pytest.raises(DataError, match="task 1 has no token of a prompt"):
        solve(params, [right[0], right[1]._replace(prompt=())], model, Layout())


def test_solving_on_a_mesh_is_the_same():
    model, tasks = tiny(max_length=64, num_layers=1), copy_tasks(64, (60,), 2, 0, block=12, cue=4)
    expected = solve(draw(model), tasks, model, Layout(), 2)
    with jax.set_mesh(make_mesh({"model": 2, "context": 2}, jax.devices()[:4])):
        found = solve(draw(model), tasks, model, Layout(), 2)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.tokens == theirs.tokens and ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-4)
