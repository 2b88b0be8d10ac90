"""The sandbox itself, in this process: what it renders, what it forbids, and how a failure is told."""

from __future__ import annotations

import json

import pytest
from jinja2.exceptions import SecurityError

from shardload.transformers_shim._chat_template import sandbox
from shardload.transformers_shim._chat_template.sandbox import RaisedByTemplate, TooMuchError, answer, render


def test_blocks_leave_no_lines_and_text_is_not_escaped():
    template = "{% for x in xs %}\n  {{ x }}\n{% endfor %}"
    assert render(template, {"xs": ["<a>", "&"]}) == "  <a>\n  &\n"


def test_json_is_pythons():
    value = {"é": "<&>", "b": [1, None]}
    assert render("{{ v | tojson }}", {"v": value}) == json.dumps(value, ensure_ascii=False)
    assert render("{{ v | tojson(indent=2, sort_keys=True) }}", {"v": value}) == json.dumps(
        value, ensure_ascii=False, indent=2, sort_keys=True
    )


def test_the_marks_of_trainers_and_loop_controls_are_known():
    assert render("a{% generation %}{{ x }}{% endgeneration %}c", {"x": "b"}) == "abc"
    assert render("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}{% break %}{% endif %}"
                  "{{ i }}{% endfor %}", {}) == "02"  # fmt: skip


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ x.append(1) }}",
        "{{ d.update(a=1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ render.__globals__ }}",
        "{{ '{0.__class__}'.format(x) }}",
    ],
)
def test_what_reaches_out_or_changes_a_value_is_forbidden_at_once(template):
    values = {"x": [1], "d": {}, "render": render}
    with pytest.raises(SecurityError):
        render(template, values)
    assert answer(template, values)["kind"] == "forbidden"
    assert values["x"] == [1]
    assert values["d"] == {}


def test_a_template_that_writes_too_much_is_stopped(monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_OUTPUT", 100)
    assert len(render("{% for i in range(10) %}{{ 'a' * 10 }}{% endfor %}", {})) == 100
    with pytest.raises(TooMuchError):
        render("{% for i in range(11) %}{{ 'a' * 10 }}{% endfor %}", {})


@pytest.mark.parametrize(
    ("template", "kind", "what"),
    [
        ("{{ raise_exception('roles') }}", "raised", "roles"),
        ("a\n{% if %}", "syntax", "line 2: "),
        ("{% include 'x' %}", "forbidden", "another file"),
        ("{{ nothing.at.all }}", "failed", "UndefinedError"),
        ("{{ 1 // 0 }}", "failed", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "limit", "calls itself without end"),
        ("{% for i in range(10**9) %}{% endfor %}", "limit", "counts further"),
        ("{{ lipsum() }}", "failed", "'lipsum' is undefined"),
    ],
)
def test_a_failure_is_told_by_its_kind(template, kind, what):
    found = answer(template, {})
    assert found["kind"] == kind
    assert what in found["what"]
    assert answer("{{ x }}", {"x": 1}) == {"text": "1"}


def test_a_template_is_compiled_once_and_few_are_kept():
    for number in range(100):
        assert render(f"{number}", {}) == str(number)
    assert len(sandbox._compiled) <= 32
    with pytest.raises(RaisedByTemplate):
        render("{{ raise_exception(3) }}", {})
