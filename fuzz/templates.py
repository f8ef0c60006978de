"""Chat templates: Jinja of strangers, which must end soon, take little, and reach nothing of Python."""

import os
from pathlib import Path
from random import Random

from fuzz.mutate import Files, grown, mutated
from fuzz.target import Target
from jaxlm.data.byte_tokenizer import ByteTokenizer
from jaxlm.data.chat import render_chat
from jaxlm.data.chat_sandbox import LARGEST_OUTPUT
from jaxlm.errors import DataError

_CANARY = "canary-5e1fb0c2"
_MESSAGES = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is {{ 7 * 6 }}? %s {0}"},
    {"role": "assistant", "content": "42<|im_end|>"}, {"role": "user", "content": "\u2028 ok"},
]  # fmt: skip
_REAL = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if loop.first and system is defined %}{{ system }}{% endif %}"
    "[INST] {{ m.content }} [/INST]{% endfor %}",
    "{%- set ns = namespace(last=none, n=0) -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}{%- set ns.last = m -%}"
    "{%- endfor -%}{{ ns.n }}{{ ns.last | tojson(indent=2) }}{{ strftime_now('%d %b') }}",
    "{% macro turn(m, depth=0) %}{{ m.role.upper() }}: {{ m['content'].replace('\n', ' ') | indent(2) }}{% endmacro %}"
    "{% for m in messages %}{% generation %}{{ turn(m) }}{% endgeneration %}{{ '\n' if not loop.last }}{% endfor %}",
)
_GRAMMAR = {
    "start": ("<text>", "<part>", "<part><part>", "<part><part><part>",
    "{% for message in messages %}<part><part>{% endfor %}"),
    "text": ("a", "<|im_start|>", "\n", "\u2581", "{", "}", "%", "{{ '{{' }}"),
    "part": (
        "<text>", "{{ <value> }}", "{{ <value> }}", "{% for <name> in <value> %}<part>{% endfor %}",
        "{% for <name> in <value> %}{% for <name> in <value> %}<part>{% endfor %}{% endfor %}",
        "{% for x in <value> recursive %}<part>{{ loop(<value>) }}{% endfor %}", "{% set <name> = <value> %}<part>",
        "{% set <name> %}<part><part>{% endset %}<part>",
        "{% if <value> %}<part>{% elif <value> %}<part>{% else %}<part>{% endif %}",
        "{% macro f(x, y=<value>) %}<part>{{ f(<value>) }}{% endmacro %}{{ f(<value>) }}",
        "{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(<number>) }}",
        "{% filter <filter> %}<part>{% endfilter %}", "{% call <name>() %}<part>{% endcall %}",
        "{% generation %}<part>{% endgeneration %}",
        "{% set ns = namespace(a=<value>) %}{% for x in <value> %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}",
        "{% include <value> %}", "{% import <value> as z %}", "{% extends <value> %}",
        "{% block b %}<part>{{ self.b() }}{% endblock %}",
        "{% for x in <value> %}{% break %}{% continue %}{% endfor %}", "{% raw %}{{ x }}{% endraw %}",
        "{% with x = <value> %}<part>{% endwith %}",
        "{% for x in range(<number>) %}{% set x = x ~ <value> %}<part>{% endfor %}", "{% do <value> %}", "{% debug %}",
        "{# <text> #}",
        "{% if loop is defined %}{{ loop.<word> }}{% endif %}", "{% autoescape <value> %}<part>{% endautoescape %}",
    ),
    "value": (
        "messages", "<name>", "<number>", "<string>", "<value>.<word>", "<value>[<value>]",
        "<value>[<number>:<number>:<number>]",
        "<value> | <filter>", "<value> | <filter>", "<value>.<method>", "(<value> <operator> <value>)",
        "(<value> <operator> <value>)",
        "[<value>, <value>]", "{<string>: <value>}", "(<value>, <value>)", "range(<number>)",
        "range(<number>, <number>, <number>)",
        "<value> is <test>", "(<value> if <value> else <value>)", "dict(a=<value>)", "cycler(<value>)", "joiner(<value>)",
        "namespace(a=<value>)", "strftime_now(<string>)", "raise_exception(<value>)", "lipsum(<number>)", "<escape>",
        "not <value>",
        "-<value>", "<value>(<value>)", "messages | map(attribute=<string>) | list",
        "messages | selectattr(<string>, 'equalto', <value>) | list",
    ),
    "name": ("x", "y", "message", "bos_token", "tools", "messages", "loop", "self", "caller", "varargs", "kwargs", "ns", "f"),
    "number": (
        "1", "0", "-1", "2", "7", "100", "9999", "10001", "100000", "10**9", "10**18", "2**64", "1e308", "1.5", "-10**9",
        "true",
        "999999999999999999999", "(10**9 * 10**9)", "(9 ** 9 ** 9)",
    ),
    "string": (
        "'a'", "''", "'role'", "'content'", "'%s'", "'%(a)s'", "'%999999d'", "'%*d'", "'{0}'", "'{:>999999}'",
        "'{0.__class__}'",
        "'{a[__class__]}'", "'__class__'", "'__globals__'", "'a' * 10**9", "('a' * 1000)", "'\\u2028'", "'%Y'", "'%10000000d'",
        "'\\x00'",
        "'_TemplateReference__context'", "'%c'", "'a,b,c'",
    ),
    "word": (
        "role", "content", "index0", "first", "last", "length", "previtem", "cycle", "changed", "__class__", "__init__",
        "__globals__",
        "__mro__", "__subclasses__", "__dict__", "__builtins__", "_x", "func_globals", "gi_frame", "cr_frame", "f_globals",
        "real",
        "keys", "append", "mro", "os", "environ", "depth0", "name", "arguments",
    ),
    "method": (
        "upper()", "split(<string>)", "split()", "join(<value>)", "replace(<string>, <string>)", "replace('', <string>)",
        "format(<value>)",
        "format(*<value>)", "format(a=<value>)", "format_map(<value>)", "center(<number>)", "ljust(<number>)",
        "zfill(<number>)",
        "expandtabs(<number>)", "encode(<string>)", "translate(<value>)", "strip(<string>)", "items()", "values()",
        "get(<value>)",
        "pop(<value>)", "append(<value>)", "update(<value>)", "count(<string>)", "startswith(<value>)", "__class__()",
        "__getattribute__(<string>)",
        "splitlines()", "title()", "partition(<string>)", "rsplit(<string>, <number>)", "casefold()",
        "to_bytes(<number>, 'big')",
        "bit_length()", "hex()", "as_integer_ratio()", "copy()", "setdefault(<value>, <value>)", "maketrans(<value>)",
        "index(<value>)",
        "next()", "reset()", "isdigit()", "removeprefix(<string>)",
    ),
    "filter": (
        "trim", "upper", "list", "length", "join(<string>)", "tojson", "tojson(indent=<number>)", "center(<number>)",
        "indent(<number>)",
        "indent(<string>)", "batch(<number>)", "slice(<number>)", "wordwrap(<number>)", "truncate(<number>)",
        "format(<value>)", "replace('', <string>)",
        "replace(<string>, <string>, <number>)", "map(<string>)", "map(attribute=<string>)", "attr(<string>)", "sort",
        "sort(attribute=<string>)",
        "groupby(<string>)", "unique", "sum", "sum(attribute=<string>, start=<value>)", "reverse", "first", "last", "random",
        "round(<number>)",
        "int(<number>)", "int(0, <number>)", "float", "string", "escape", "safe", "urlize(<number>)", "urlencode", "xmlattr",
        "pprint",
        "filesizeformat", "striptags", "wordcount", "title", "default(<value>)", "dictsort", "items", "select(<string>)",
        "reject", "abs",
        "max", "min", "selectattr(<string>)", "rejectattr(<string>, 'in', <value>)", "capitalize", "e", "forceescape",
    ),
    "operator": ("+", "-", "*", "**", "//", "/", "%", "~", "==", "<", "in", "and", "or", "not in", ">="),
    "test": ("defined", "none", "string", "mapping", "iterable", "sequence", "number", "callable", "divisibleby(<number>)",
    "in <value>", "eq(<value>)", "filter"),
    "escape": (
        "cycler.__init__.__globals__.os.environ", "''.__class__.__mro__[1].__subclasses__()", "messages.__class__.__base__",
        "(messages | attr('__class__'))", "''['__class__']", "namespace.__init__.__globals__", "raise_exception.__globals__",
        "'{0.__class__.__init__.__globals__}'.format(cycler)", "('%s' | attr('format'))(self)",
        "self._TemplateReference__context",
        "self.__init__.__globals__.__builtins__.open('/etc/passwd').read()", "joiner.__init__.__globals__['os'].environ",
        "dict.__subclasses__()",
        "dict.fromkeys(range(10**9))", "(namespace() | map(attribute='__class__') | list)", "loop.__class__",
        "loop._iterator.gi_frame",
        "strftime_now.__globals__['os'].environ", "f.__globals__", "f._func.__globals__", "f._environment",
        "messages.append.__self__",
        "''.format_map.__self__", "range.__globals__", "caller.__globals__", "(messages | map('attr', '__class__') | list)",
        "messages | groupby('__class__')", "{'a': cycler} | items | list", "varargs.__class__",
        "(messages|first).__class__.__init__",
    ),
}  # fmt: skip


def _seeds(folder: Path) -> None:
    os.environ["JAXLM_FUZZ_CANARY"] = _CANARY


def _make(rng: Random, seeds: None) -> Files:
    kind = rng.random()
    if kind < 0.75:
        text = grown(rng, _GRAMMAR, depth=rng.choice((4, 7, 10)))
        data = text.encode(errors="surrogatepass")
    else:
        data = rng.choice(_REAL).encode()
    if kind > 0.65:
        data = mutated(rng, data, [_REAL[0].encode(), _REAL[2].encode()], head=10**6)
    if rng.random() < 0.002:
        opened = rng.choice(("(", "[", "{{", "{% if x %}", "-", "not ", "{% for x in y %}", "x.", "{'a':", "~"))
        data = b"{{ " * rng.randrange(2) + opened.encode() * rng.choice((200, 3000, 20_000)) + data
    return {"template.jinja": data}


def _read(folder: Path) -> None:
    """Render a conversation: text of bounded size, without the canary that stands in the environment of this process."""
    path = folder / "template.jinja"
    try:
        template = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        raise DataError("no text") from None
    text = render_chat(ByteTokenizer(), _MESSAGES, template=template, marks=("<", ">"))
    assert isinstance(text, str) and len(text) <= LARGEST_OUTPUT, f"{len(text)} characters"
    assert _CANARY not in text, "the sandbox was left"


TARGETS = (Target("chat-template", "Jinja templates of chats: a grammar of loops, filters and escapes", _seeds, _make, _read),)
