"""Bounds on what a chat template may compute: how long, and how much it may make.

A template is code that came with a checkpoint, and jinja2's sandbox bounds neither time nor memory. Here each
value that a template makes is counted against a budget, beforehand where it can be much larger than what it
is made of; loops, calls and filters count too, and look at a deadline. Nothing is computed while compiling.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

_UNITS = 4 << 20  # characters, list items and steps of any template ...
_UNITS_PER_INPUT = 64  # ... and for each character of the messages
_SECONDS = 10.0  # qwen templates take milliseconds
_MOST_BITS = 4096  # of an integer
_MOST_COUNT = 10_000  # of an argument that says how wide, how often or how deep
_COUNTING = {  # filters and string methods with such an argument
    *("batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice", "tojson", "truncate"),
    *("wordwrap", "zfill"),
}
_FORBIDDEN = {"encode", "to_bytes", "translate"}  # make bytes, and text of any size, which no template needs
_WIDE = re.compile(r"\d{5,}|\*|:[^{}]*\{")  # a width in a format string, or one taken from an argument
_CHARGED = "\0charged"  # a filter that no template can name


class _Budget:
    def __init__(self, units: int) -> None:
        self.left = units
        self._deadline = time.monotonic() + _SECONDS

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise SecurityError("it makes too much text, or runs too long")
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it runs for more than {_SECONDS:g} seconds")


_budget: ContextVar[_Budget] = ContextVar("_budget")


@contextmanager
def budget(variables: object) -> Iterator[None]:
    """A context in which templates are compiled or rendered; the budget grows with what they are given."""
    token = _budget.set(_Budget(_UNITS + _UNITS_PER_INPUT * _size(variables, _UNITS)))
    try:
        yield
    finally:
        _budget.reset(token)


def _size(value: object, most: int) -> int:
    """Characters and items of a value, however deep; counting ends beyond ``most``."""
    total, stack = 0, [value]
    while stack and total <= most:
        item = stack.pop()
        total += 1
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, int):
            total += item.bit_length() // 8
        elif isinstance(item, Mapping):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
    return total


def _charged(value: Any) -> Any:
    """The value itself, once its size is paid for."""
    spent = _budget.get()
    spent.spend(_size(value, spent.left))
    return value


def _check_counts(name: str, arguments: tuple[Any, ...]) -> None:
    for value in arguments:
        if isinstance(value, int) and abs(value) > _MOST_COUNT:
            raise SecurityError(f"{name} with {value} is more than the {_MOST_COUNT} that is allowed")


def _check_format(text: str, arguments: object) -> None:
    if _WIDE.search(text):
        raise SecurityError(f"the format string {text[:40]!r} has a width that is not allowed")
    _budget.get().spend(len(text) * _size(arguments, _UNITS))


def _check_text_method(text: str, name: str, arguments: tuple[Any, ...]) -> None:
    """Pay for what a method or filter of the name makes of a text, where that is a product of sizes."""
    strings = [value for value in arguments if isinstance(value, str)]
    if name == "replace" and len(strings) == 2:
        _budget.get().spend(text.count(strings[0]) * len(strings[1]))
    elif name in ("indent", "wordwrap", "expandtabs"):
        widths = [abs(value) for value in arguments if isinstance(value, int)]
        _budget.get().spend(len(text) * (8 + sum(map(len, strings)) + sum(widths)))


def _check_join(separator: str, parts: object) -> None:
    if isinstance(parts, (str, list, tuple)):
        _budget.get().spend(len(separator) * len(parts) + _size(parts, _UNITS))


def _check_filter(name: str, arguments: tuple[Any, ...]) -> None:
    """Refuse what a filter would make too much of; ``arguments`` are the value and the filter's own."""
    if name in _COUNTING:
        _check_counts(name, arguments[1:])
    value = arguments[0] if arguments else None
    if name == "format" and isinstance(value, str):
        _check_format(value, arguments[1:])
    elif name == "join" and len(arguments) > 1:
        _check_join(str(arguments[1]), value)
    elif isinstance(value, str):
        _check_text_method(value, name, arguments[1:])


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The immutable sandbox, with the bounds of this module. Use it within :func:`budget`."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        # A finalizer that takes the context keeps jinja2 from computing constant output while compiling.
        super().__init__(**options, optimized=False, finalize=pass_context(lambda _, value: _charged(value)))
        del self.globals["lipsum"]

    def bind(self) -> None:
        """Bound the filters, after the last one is added."""
        for name, function in self.filters.items():
            self.filters[name] = self._bounded(name, function)
        self.filters[_CHARGED] = _charged

    @staticmethod
    def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # with the marks that tell jinja2 to pass a context first
        def bounded(*args: Any, **kwargs: Any) -> Any:
            passed = args[1:] if hasattr(function, "jinja_pass_arg") else args
            _check_filter(name, (*passed, *kwargs.values()))
            return _charged(function(*args, **kwargs))

        return bounded

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` as the sandbox has it, with widths checked and the result paid for beforehand."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @functools.wraps(wrapped)
        def formatted(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, (args, kwargs))
            return wrapped(*args, **kwargs)

        return formatted

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute."""
        return attr not in _FORBIDDEN and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator whose result may be large."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > _MOST_BITS:
                raise SecurityError(f"an integer of more than {_MOST_BITS} bits")
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator == "*":
            for value, count in ((left, right), (right, left)):
                if isinstance(count, int) and isinstance(value, (str, list, tuple)):
                    _budget.get().spend(len(value) * max(count, 0))
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(left, right)
        return _charged(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call, of a macro or of a method."""
        name = getattr(__obj, "__name__", "")
        owner = getattr(__obj, "__self__", None)
        if name in _COUNTING:
            _check_counts(name, (*args, *kwargs.values()))
        if isinstance(owner, str):
            if name == "join" and args:
                _check_join(owner, args[0])
            _check_text_method(owner, name, args)
        return _charged(super().call(__context, __obj, *args, **kwargs))

    def compile_bounded(self, source: str) -> Template:
        """Compile a template whose every step is bounded."""
        tree = self.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            step = nodes.Filter(nodes.Const(0), _CHARGED, [], [], None, None, lineno=loop.lineno)
            loop.body.insert(0, nodes.ExprStmt(step, lineno=loop.lineno))
            if loop.test is not None:
                loop.test = _pay(loop.test)
        for output in list(tree.find_all(nodes.Output)):  # text in a loop is paid for as often as it is shown
            output.nodes = [
                nodes.Const(child.data, lineno=child.lineno)
                if isinstance(child, nodes.TemplateData)
                else child
                for child in output.nodes
            ]
        for comparison in list(tree.find_all(nodes.Compare)):
            comparison.expr = _pay(comparison.expr)
            for operand in comparison.ops:
                operand.expr = _pay(operand.expr)
        for chain in list(tree.find_all(nodes.Concat)):
            chain.nodes = [_pay(node) for node in chain.nodes]
        _pay_for_literals(tree)
        tree.set_environment(self)
        code = self.compile(tree, filename="<chat template>")
        return self.template_class.from_code(self, code, self.make_globals(None))


def _check_bits(left: int, right: int) -> None:
    if left.bit_length() + right.bit_length() > _MOST_BITS:
        raise SecurityError(f"an integer of more than {_MOST_BITS} bits")


def _pay(node: nodes.Node) -> nodes.Expr:
    """The expression, its value paid for."""
    if isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, _CHARGED, [], [], None, None, lineno=node.lineno)


def _pay_for_literals(node: nodes.Node) -> None:
    """Lists and dicts made of variables are paid for as deep as they are: two of each would double."""
    for name, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        paid = []
        for child in children:
            if isinstance(child, nodes.Node):
                _pay_for_literals(child)
            paid.append(_pay(child) if _is_literal(child) else child)
        setattr(node, name, paid if isinstance(value, list) else paid[0])


def _is_literal(node: object) -> bool:
    if isinstance(node, nodes.Tuple):
        return node.ctx == "load"
    return isinstance(node, (nodes.List, nodes.Dict))
