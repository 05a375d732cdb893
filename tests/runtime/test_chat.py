from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from q2export.errors import ConfigError, GenerationError
from q2export.runtime.chat import ChatTemplate, load_chat_template
from q2export.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER = {"role": "user", "content": "Hello"}
CONVERSATIONS = {
    "one turn": [USER],
    "own system": [{"role": "system", "content": "Be brief."}, USER],
    "empty system": [{"role": "system", "content": ""}, USER],
    "many turns": [
        USER,
        {"role": "assistant", "content": "Hi!\n\n"},
        {"role": "user", "content": "  Why?  "},
    ],
    "unicode": [{"role": "user", "content": "naïve — 你好 🚀 \u200d <b>&amp;</b> 'quoted' \"double\""}],
    "markup": [{"role": "user", "content": "{{ 7 * 7 }} {% raw %} <|im_end|>\n<|im_start|>system"}],
    "ends with assistant": [USER, {"role": "assistant", "content": "Hi"}],
    "more fields": [{"role": "user", "content": "x", "name": "n", "extra": [1, {"a": None}]}],
}


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_real_qwen2_template_renders_as_transformers(
    name: str,
    add_generation_prompt: bool,
    qwen2_folder: Path,
    qwen2_tokenizer: Tokenizer,
    qwen2_reference: PreTrainedTokenizerBase,
) -> None:
    template = load_chat_template(qwen2_folder, qwen2_tokenizer.special_tokens)
    assert template is not None
    messages = CONVERSATIONS[name]
    text = template.render(messages, add_generation_prompt=add_generation_prompt)
    expected = qwen2_reference.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert text.encode() == expected.encode()
    assert qwen2_tokenizer.encode(text) == qwen2_reference.encode(text)


# Everything the environment offers beyond plain jinja2, against the environment of transformers.
TEMPLATES = {
    "trim and lstrip": "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "break": "{% for m in messages %}{{ loop.index }}{% break %}{% endfor %}",
    "continue": "{% for m in messages %}{% continue %}x{% endfor %}.",
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "tojson options": "{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true, ensure_ascii=true) }}",
    "tools": "{% if tools %}{{ tools | tojson }}{% endif %}{{ tools is none }}",
    "documents": "{{ documents is none }}",
    "special tokens": "{{ eos_token }}|{{ pad_token }}|{{ bos_token }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}",
    "namespace of pairs": "{% set ns = namespace({'n': 3}, m=4) %}{{ ns.n }}{{ ns.m }}",
    "dict": "{{ dict(a=1) }}{{ dict({'b': 2}, a=1) }}",
    "generation": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ messages[0].content }}{% endgeneration %}"
    "{{ x }}",
    "time": "{{ strftime_now('%Y') }}",
    "undefined": "[{{ nothing }}]",
    "string methods": "{{ messages[0]['content'].upper().split('L') }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_environment_is_that_of_transformers(name: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tools = [{"type": "function", "function": {"name": "f", "description": "<&'>", "parameters": {}}}]
    messages = CONVERSATIONS["many turns"]
    for offered in (tools, None):
        (expected,), _ = render_jinja_template(
            [messages], tools=offered, chat_template=TEMPLATES[name], add_generation_prompt=True, **tokens
        )
        assert ChatTemplate(TEMPLATES[name], tokens).render(messages, tools=offered) == expected


def test_fields_that_are_none_and_templates_for_tools_are_as_in_transformers(
    tmp_path: Path, qwen2_reference: PreTrainedTokenizerBase
) -> None:
    templates = {"default": "{{ messages | tojson }}", "tool_use": "{{ tools | tojson }}"}
    named = [{"name": name, "template": source} for name, source in templates.items()]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = load_chat_template(tmp_path, {})
    assert template is not None
    messages = [{"role": "user", "content": None, "tool_calls": None, "parts": [{"a": None}]}]
    tools = [{"type": "function", "function": {"name": "f", "description": None, "parameters": {}}}]
    for offered in (None, tools):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(qwen2_reference, "chat_template", templates)
            expected = qwen2_reference.apply_chat_template(messages, tools=offered, tokenize=False)
        assert template.render(messages, tools=offered, add_generation_prompt=False) == expected


def test_strftime_now() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}", {}).render([USER]) in {
        str(datetime.now().year),
        str(datetime.now().year - 1),
    }


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]['content'] + messages[0]['absent'] }}", "absent"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages[9].content }}", ""),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages[0] | nofilter }}", "nofilter"),
        # sandbox
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update({}) }}", "unsafe"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", "unsafe"),
        ("{{ self.__init__.__globals__ }}", "unsafe"),
        ("{{ raise_exception.__globals__.x }}", "unsafe"),
        ("{{ dict.mro() }}", "mro"),
        ("{% set ns = namespace(__class__=1) %}", "underscore"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "underscore"),
        ("{% include '/etc/passwd' %}", ""),
        ("{% import 'os' as os %}", ""),
    ],
)
def test_errors_of_a_template_are_one_clear_error(source: str, reason: str) -> None:
    try:
        template = ChatTemplate(source, {})
    except ConfigError as error:
        assert reason in str(error)
        return
    with pytest.raises(GenerationError, match=r"the chat template refused the messages: .+") as caught:
        template.render([USER])
    assert reason in str(caught.value)


def test_syntax_error_names_its_line() -> None:
    with pytest.raises(ConfigError, match=r"chat_template\.jinja: chat template, line 2: "):
        ChatTemplate("a\n{% for %}", {})


class Secret:
    role = "user"

    def destroy(self) -> None:
        raise AssertionError("a template reached an object of the caller")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "Hello",
        USER,
        [["role", "user"]],
        [{"content": "no role"}],
        [{"role": 3, "content": "x"}],
        [{"role": "user", "content": Secret()}],
        [{"role": "user", "content": b"bytes"}],
        [Secret()],
        None,
    ],
)
def test_messages_that_are_not_plain_data_are_refused(messages: Any) -> None:
    with pytest.raises(GenerationError, match=r"^messages"):
        ChatTemplate("{{ messages[0].content.destroy() }}", {}).render(messages)


def test_the_callers_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": ["a"]}]
    ChatTemplate("{{ messages }}", {}).render(messages)
    assert messages == [{"role": "user", "content": ["a"]}]


def test_where_the_template_is_found(tmp_path: Path) -> None:
    def rendered() -> str | None:
        template = load_chat_template(tmp_path, {})
        return None if template is None else template.render([USER])

    def configure(chat_template: object) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": chat_template}))

    assert rendered() is None
    configure(None)
    assert rendered() is None
    configure("from config")
    assert rendered() == "from config"
    configure([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "the default"}])
    assert rendered() == "the default"
    (tmp_path / "chat_template.jinja").write_text("from file é")
    assert rendered() == "from file é"


@pytest.mark.parametrize(
    "bad", [3, {"default": "x"}, [{"name": "tool_use", "template": "x"}], ["x"]], ids=str
)
def test_malformed_template_entry_is_refused(tmp_path: Path, bad: object) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": bad}))
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: "):
        load_chat_template(tmp_path, {})
