"""Chat templates rendered where they can do no harm: no access to Python, and bounds on time and memory."""

import datetime
import functools
import json
import re
import threading
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import ext, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

LARGEST_TEMPLATE = 1 << 18  # characters; the longest in use have some 20,000
LARGEST_OUTPUT = 1 << 20
_MOST_STEPS = 200_000
_LARGEST_ARGUMENT = 10_000  # a width, a precision, a number of items
_WIDE = re.compile(r"%[^a-zA-Z%]*(\d{5,}|\*)")
_WIDE_FIELD = re.compile(r"\{[^}]*:[^}]*(\d{5,}|\{)")


class _Generation(ext.Extension):
    """The tag {% generation %}, with which templates mark what an assistant says; its content stands between two marks."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        begin, end = self.environment.marks
        return begin + caller() + end


class _Bounds(NodeTransformer):
    """Counts a step at the start of every loop's turn and every macro, and measures what `~` joins and literals hold."""

    def _counted(self, node: Any) -> Any:
        step = nodes.Call(nodes.EnvironmentAttribute("count"), [], [], None, None)
        node = self.generic_visit(node)
        node.body = [nodes.ExprStmt(step, lineno=node.lineno), *node.body]
        return node

    def _measured(self, node: Any) -> Any:
        if getattr(node, "ctx", "load") != "load":
            return node
        measured = nodes.EnvironmentAttribute("measured")
        return nodes.Call(measured, [self.generic_visit(node)], [], None, None, lineno=node.lineno)

    visit_For = visit_Macro = visit_CallBlock = _counted
    visit_Concat = visit_List = visit_Tuple = visit_Dict = _measured


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which also bounds steps and the sizes of values; a thread renders one text at a time with its own."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols])
        self.steps, self.marks = 0, ("", "")
        self.filters["tojson"] = _to_json
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        self.globals |= {
            "raise_exception": _raise_exception, "strftime_now": _strftime_now, "namespace": _Namespace, "dict": _Dict(),
        }  # fmt: skip
        del self.globals["lipsum"]  # makes up text, as much as it is asked for

    def count(self, size: int = 0) -> None:
        self.steps += 1 + size // 64
        if self.steps > _MOST_STEPS:
            raise SecurityError(f"more than {_MOST_STEPS:,} steps: turns of loops, calls, and 64 characters of a value made")

    def measured(self, value: Any) -> Any:
        size = _size(value)
        self.count(size)
        if size > LARGEST_OUTPUT:
            raise SecurityError(f"a value of more than {LARGEST_OUTPUT:,} characters, or 32 times fewer items")
        if type(value) is int and value.bit_length() > 4096:
            raise SecurityError("a number of more than 4096 bits")
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int) and len(many) * times > LARGEST_OUTPUT:
                    raise SecurityError(f"a value of more than {LARGEST_OUTPUT:,} characters, or 32 times fewer items")
        if operator == "**" and not (abs(left) < 2**32 and abs(right) <= 128):
            raise SecurityError("a power with a base of 2^32 or more, or an exponent above 128")
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise SecurityError("a field as wide as that")
        return self.measured(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(text := getattr(function, "__self__", None), str):
            _check_size(function.__name__, text, [*args, *kwargs.values()])
        return self.measured(super().call(context, function, *args, **kwargs))

    def _bounded(self, name: str, function: Any) -> Any:
        skipped = 0 if getattr(function, "jinja_pass_arg", None) is None else 1

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            value, *rest = args[skipped:]
            _check_size(name, value, [*rest, *kwargs.values()])
            return self.measured(function(*args, **kwargs))

        return bounded


def _size(value: Any) -> int:
    """Return the characters in `value` and 32 an item, what is in it twice counted twice; any size above the bound if above."""
    size, left = 0, [value]
    while left and size <= LARGEST_OUTPUT:
        value = left.pop()
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, list | tuple):
            size += 32 * len(value)
            left += value
        elif isinstance(value, Mapping):
            size += 32 * len(value)
            left += [*value.keys(), *value.values()]
    return size


def _check_size(name: str, value: Any, args: list[Any]) -> None:
    """Raise SecurityError where a method of a text, or a filter, could make a very large value of `value` and `args`."""
    numbers = [abs(arg) for arg in args if isinstance(arg, int | float)]
    texts = [str(arg) for arg in args if isinstance(arg, str)]
    large = max(numbers, default=0) > _LARGEST_ARGUMENT
    if name in ("indent", "batch", "expandtabs") and isinstance(value, str | list | tuple):
        large |= len(value) * max([1, *numbers, *map(len, texts)]) > LARGEST_OUTPUT
    elif name in ("format", "format_map") and isinstance(value, str):
        large |= bool(_WIDE.search(value) or _WIDE_FIELD.search(value))
    elif name == "replace" and len(texts) > 1:
        large |= (str(value).count(texts[0]) + 1) * len(texts[1]) > LARGEST_OUTPUT
    elif name == "join":
        # A method joins its argument with the text, a filter its value with the argument.
        glue, items = (value, args[:1]) if isinstance(value, str) and not texts else ("".join(texts), [value])
        large |= (
            len(glue) * max((len(item) for item in items if isinstance(item, str | list | tuple)), default=0) > LARGEST_OUTPUT
        )
    if large:
        raise SecurityError(f"{name} with a result that may be very large")


# A data set is many chats: to compile a template, or to make a sandbox, takes longer than to render one of them.
_of_thread = threading.local()


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    sandbox = _Sandbox()
    return sandbox.compile(_Bounds().visit(sandbox.parse(source)))


def render(source: str, values: Mapping[str, Any], marks: tuple[str, str] = ("", "")) -> str:
    """Return the template `source` filled with `values`; jinja2.TemplateError, TypeError... where it cannot be.

    `marks` go before and after what {% generation %} holds.
    """
    if not hasattr(_of_thread, "sandbox"):
        _of_thread.sandbox = _Sandbox()
    sandbox = _of_thread.sandbox
    sandbox.steps, sandbox.marks = 0, marks
    template = jinja2.Template.from_code(sandbox, _compiled(source), sandbox.make_globals(None))
    parts, length = [], 0
    for part in template.generate(**values):
        length += len(part)
        if length > LARGEST_OUTPUT:
            raise SecurityError(f"an output of more than {LARGEST_OUTPUT:,} characters")
        parts.append(part)
    return "".join(parts)


class _Namespace(Namespace):
    """Jinja's namespace, without attributes of Python's own."""

    def __init__(*args: Any, **kwargs: Any):  # `self` may be an attribute's name
        for name in dict(*args[1:], **kwargs):
            _check_attribute(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


class _Dict:
    """`dict` in a template: a call that makes one, and nothing else of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"an attribute {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML. An indent is repeated on every line.
    indent = min(indent, 16) if isinstance(indent, int) else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
