"""Chat templates: what they may use, and that a hostile one ends quickly and reaches nothing."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shardload.errors import CorruptError, ShardloadError, UnsafeError, UsageError
from shardload.transformers_shim._chat_template import render_chat_template, rendering

MESSAGES = [{"role": "user", "content": "<é> & 你"}, {"role": "assistant", "content": "ok"}]


def test_blocks_are_trimmed_and_text_is_not_escaped():
    template = "{% for m in messages %}\n  {{ m.role }}: {{ m['content'] }}\n{% endfor %}\n{{ bos_token }}"
    text = render_chat_template(template, {"messages": MESSAGES, "bos_token": "<s>"})
    assert text == "  user: <é> & 你\n  assistant: ok\n<s>"


def test_what_templates_expect_is_there():
    template = """{%- set ns = namespace(n=0) -%}
{%- for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{% set ns.n = ns.n + i %}{% endfor -%}
{{ ns.n }}|{{ messages[0] | tojson }}|{{ {'a': [1]} | tojson(indent=2) }}
{{- '|' ~ messages | map(attribute='role') | join(',') }}
{%- generation %}|kept{% endgeneration %}|{{ strftime_now('%Y') | length }}"""
    text = render_chat_template(template, {"messages": MESSAGES})
    first = json.dumps(MESSAGES[0], ensure_ascii=False)
    assert text == f'3|{first}|{{\n  "a": [\n    1\n  ]\n}}|user,assistant|kept|4'


def test_a_template_that_refuses_says_why():
    with pytest.raises(UsageError, match="roles must alternate") as caught:
        render_chat_template("{{ raise_exception('roles must alternate') }}", {}, where="org/name")
    assert caught.value.where == "org/name"


def test_a_broken_template_names_its_line():
    with pytest.raises(CorruptError, match="line 2"):
        render_chat_template("a\n{% if %}", {})


def test_values_must_be_plain():
    with pytest.raises(UsageError, match="plain data"):
        render_chat_template("{{ f }}", {"f": print})


def test_a_missing_value_is_empty_and_calling_it_is_an_error():
    assert render_chat_template("[{{ nothing }}]", {}) == "[]"
    with pytest.raises(UsageError, match="UndefinedError"):
        render_chat_template("{{ nothing.at.all }}", {})


NESTED = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
DOUBLED = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
HOSTILE = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "format reads attributes": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "format_map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__globals__['os'].system('id') }}",
    "environment": "{{ self.__init__.__globals__ }}",
    "generator frame": "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "changes a list": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "giant text": "{{ 'a' * 10**10 }}",
    "giant list": "{{ [0] * 10**10 }}",
    "giant width": "{{ '{:>9999999999}'.format(1) }}",
    "giant padding": "{{ 'a'.ljust(10**10) }}",
    "giant number": "{{ (10**9) ** (10**9) }}",
    "huge range": "{% for i in range(10**12) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "recursive macro": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "doubled text": f"{DOUBLED}{{{{ ns.x }}}}",
    "nested list": f"{NESTED}{{{{ ns.x }}}}",
    "comparison of nested lists": f"{NESTED}{{% set a = ns.x %}}{NESTED}{{{{ ns.x == a }}}}",
    "much output": "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
}
# Without access to anything, jinja2 gives an undefined value for what does not exist at all.
EMPTY = {"format_map", "environment"}


def outcome(template):
    """Return (what came of it, the processor time of a process that did nothing else)."""
    rendering._worker.close()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        found = render_chat_template(template, {"messages": MESSAGES})
    except ShardloadError as error:
        found = error
    rendering._worker.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_with_a_typed_error(name):
    found, seconds = outcome(HOSTILE[name])
    # What a template may take is enforced, not measured: 0.3 s. This is for one that would not end.
    assert seconds < 60
    assert isinstance(found, (UnsafeError, UsageError)) or (name in EMPTY and found == "")
    assert render_chat_template("{{ 1 + 1 }}", {}) == "2"


def test_what_escapes_or_does_not_end_is_unsafe():
    for name in (
        "class",
        "format reads attributes",
        "changes a list",
        "include",
        "giant text",
        "nested loops",
    ):
        with pytest.raises(UnsafeError):
            render_chat_template(HOSTILE[name], {"messages": MESSAGES})


def test_the_process_knows_nothing_of_this_ones_environment(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    with rendering._worker._lock:
        rendering._worker._end()
    assert render_chat_template("a", {}) == "a"
    process = rendering._worker._process
    assert b"SECRET_TOKEN" not in Path(f"/proc/{process.pid}/environ").read_bytes()


def test_threads_get_their_own_answers():
    found = {}

    def work(number):
        for _ in range(20):
            found.setdefault(number, set()).add(render_chat_template("{{ n }}", {"n": number}))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: {str(n)} for n in range(6)}


def test_a_worker_that_dies_is_replaced():
    render_chat_template("a", {})
    rendering._worker._process.kill()
    rendering._worker._process.wait()
    assert render_chat_template("b", {}) == "b"


def test_the_worker_ends_with_its_parent():
    code = """
import os
from shardload.transformers_shim._chat_template import render_chat_template, rendering
render_chat_template("a", {})
print(rendering._worker._process.pid, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    stat = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 600
    # A zombie has ended: whoever inherited it has not asked yet.
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, f"process {pid} outlived its parent"
        time.sleep(0.01)
