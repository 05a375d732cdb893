"""Templates that would take all time or memory are refused, and ordinary ones are not."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q2export.errors import ConfigError, GenerationError
from q2export.runtime.chat import ChatTemplate

USER = {"role": "user", "content": "Hello"}

DOUBLING = "{% set ns = namespace(s=START) %}{% for i in range(100) %}{% set ns.s = STEP %}{% endfor %}"

ATTACKS = [
    "{{ 10**(10**8) > 1 }}",
    "{% if 10**(10**8) > 1 %}x{% endif %}",
    "{% set x = 'a' * 10**9 %}",
    "{% set x = 10**9 * ['a'] %}",
    "{{ 'a'|center(10**9) }}",
    "{{ 'a'.center(10**9) }}",
    "{% autoescape 'x'|center(10**10) %}{% endautoescape %}",
    "{% filter center(10**9) %}x{% endfilter %}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{x:{y}}'.format_map({'x': 1, 'y': 1000000000}) }}",
    "{{ ('{0}' * 99999).format('a' * 99999) }}",
    "{{ ('%(a)s' * 99999) % {'a': 'a' * 99999} }}",
    *(
        DOUBLING.replace("START", start).replace("STEP", step)
        for start, step in (
            ("'ab'", "ns.s ~ ns.s"),
            ("'ab'", "ns.s + ns.s"),
            ("'ab'", "ns.s.replace('a', ns.s)"),
            ("['ab']", "ns.s + ns.s"),
            ("['ab']", "[ns.s, ns.s]"),
            ("['ab']", "(ns.s, ns.s)"),
            ("['ab']", "{'a': ns.s, 'b': ns.s}"),
            ("['ab']", "dict(a=ns.s, b=ns.s)"),
            ("3", "ns.s * ns.s"),
            ("3", "ns.s ** 9"),
        )
    ),
    "{% for i in range(99999) %}{% for j in range(99999) %}" + "x" * 99 + "{% endfor %}{% endfor %}",
    "{{ lipsum(n=9999, min=9000, max=9999) }}",
    "{{ range(99999)|list|tojson(indent=10**8) }}",
    "{{ 1.5|round(10**8, 'ceil') }}",
    "{{ ('a\n' * 99999)|indent('b' * 99999) }}",
    "{{ ('a\n' * 99999)|indent(9999) }}",
    "{{ ('a' * 999999)|replace('a', 'b' * 999999) }}",
    "{{ ('a' * 999999).replace('', 'b' * 999999) }}",
    "{{ ('b' * 999999).join('a' * 999999) }}",
    "{{ (['a'] * 999999)|join('b' * 999999) }}",
    "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "{{ ('\t' * 99999).expandtabs(9999) }}",
    "{% set x = 'a'.encode() * 10**9 %}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ ('a' * 1000000)|wordwrap(1) }}",
    "{{ [1]|batch(10**9, 'x')|list }}",
    "{{ range(99999)|map('center', 9999)|join }}",
    "{{ (['a' * 99999] * 9999)|join }}",
    "{% set a = 'a' * 1000000 %}{% for i in range(99999) %}{% if 'b' in a %}{% endif %}{% endfor %}",
    "{{ " + "9" * 5000 + " }}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "-" * 30000 + "1 }}",
    "{% if x %}" * 2000 + "{% endif %}" * 2000,
    "{% for x in [1] %}" * 30 + "{% endfor %}" * 30,
    "a" * 1_000_000,
    "{% break %}",
]


@pytest.mark.parametrize("source", ATTACKS, ids=itertools.count())
def test_a_template_that_would_not_end_is_refused(source: str) -> None:
    with pytest.raises((ConfigError, GenerationError), match="chat template"):
        ChatTemplate(source, {}).render([USER])


def test_what_makes_nothing_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that runs a second per look."""
    clock = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    template = ChatTemplate(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", {}
    )
    with pytest.raises(GenerationError, match="it runs for more than 10 seconds"):
        template.render([USER])


def test_a_long_conversation_is_not_refused() -> None:
    """A thousand turns of a thousand characters, and a template that looks at all of them in each."""
    source = (
        "{% for m in messages[::-1] %}{% set index = (messages|length - 1) - loop.index0 %}"
        "{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}"
        "{% else %}{{ m.content|trim }}{% endif %}<|im_end|>{{ index }}{% endfor %}"
    )
    messages = [{"role": "user", "content": f"{i} " + "x" * 1000} for i in range(1000)]
    text = ChatTemplate(source, {}).render(messages)
    assert text.count("<|im_end|>") == 1000


def test_a_large_message_is_not_refused() -> None:
    content = "word " * 400_000
    assert content in ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {}).render(
        [{"role": "user", "content": content}]
    )


NAMES = st.sampled_from(
    ["messages", "tools", "loop", "x", "ns", "range", "dict", "'ab'", "10", "messages[0]"]
)
EXPRESSIONS = st.recursive(
    NAMES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "*", "**", "%", "~", "==", "in", "//", "-"]), inner).map(
            lambda parts: f"({' '.join(parts)})"
        ),
        st.tuples(inner, st.sampled_from(["list", "length", "tojson", "join", "center(9999)", "string"])).map(
            lambda parts: f"({'|'.join(parts)})"
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.tuples(inner, st.sampled_from(["replace", "format", "split", "join", "get", "items"]), inner).map(
            lambda parts: f"{parts[0]}.{parts[1]}({parts[2]})"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS, EXPRESSIONS)
def test_any_template_gives_text_or_one_of_our_errors(first: str, second: str) -> None:
    loop = f"{{% for x in {first} %}}{{% set ns = namespace(a=x) %}}{{{{ {second} }}}}{{% endfor %}}"
    source = f"{loop}{{{{ {first} }}}}"
    try:
        text = ChatTemplate(source, {}).render([USER])
    except (ConfigError, GenerationError):
        return
    assert isinstance(text, str)
