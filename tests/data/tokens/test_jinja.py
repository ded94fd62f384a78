"""Templates of others: whatever they do ends soon, and what chats need is as it was."""

import time

import jinja2
import pytest

from instructjax.data.tokens import jinja


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch):
  """The shape checks of the tests make each step many times slower than it is."""
  monkeypatch.setattr(jinja, "STEPS", 20_000)


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 1000}]


def render(text: str, **variables) -> str:
  return jinja.rendered(jinja.compiled(text), {"messages": MESSAGES} | variables)


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"
DOUBLED = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}STEP{% endfor %}{{ ns.x }}"


@pytest.mark.parametrize(
  "text",
  [
    LOOPS.replace("BODY", ""),
    LOOPS.replace("BODY", "{% set x = a %}"),
    LOOPS.replace("BODY", "text"),
    LOOPS.replace("BODY", "{{ messages }}"),
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(x) %}{{ x ~ x }}{% endmacro %}" + "{{ " + "f(" * 60 + "'ab'" + ")" * 60 + " }}",
    "{% macro m() %}" + LOOPS.replace("BODY", "text" * 99) + "{% endmacro %}{{ m() }}",
    "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    DOUBLED.replace("STEP", "{% set ns.x = ns.x ~ ns.x %}"),
    DOUBLED.replace("STEP", "{% set ns.x = ns.x + ns.x %}"),
    DOUBLED.replace("STEP", "{% set ns.x = [ns.x, ns.x] %}"),
    DOUBLED.replace("STEP", "{% set ns.x = ns.x|replace('a', ns.x) %}"),
    DOUBLED.replace("STEP", "{% set ns.x = ns.x.replace('a', ns.x) %}"),
    DOUBLED.replace("STEP", "{% set ns.x = ns.x|list|join(ns.x) %}"),
    DOUBLED.replace("STEP", "{% set ns.x = ns.x.join(ns.x|list) %}"),
    DOUBLED.replace("STEP", "{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
    DOUBLED.replace("STEP", "{% set ns.x = '{0}{0}'.format(ns.x) %}"),
    "{{ 'x' * 10 ** 12 }}",
    "{{ [0] * 10 ** 12 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 'x'.ljust(10 ** 12) }}",
    "{{ 'x'|center(1000000000000) }}",
    "{{ 'x'|indent(1000000000000) }}",
    "{{ '%99999999999d' % 1 }}",
    "{{ '%*d' % (9999999, 1) }}",
    "{{ '{:99999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 99999999) }}",
    "{{ '%99999999999d'|format(1) }}",
    "{{ ('\\t' * 999999).expandtabs(999999) }}",
    "{{ messages|tojson(indent=1000000000000) }}",
    "{{ range(10 ** 15)|list }}",
    "{{ lipsum(n=1000000) }}",
    "{{ raise_exception('no') }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ '\\ud800' }}",
    "{{ 1 / 0 }}",
    "{{ messages[0]['x'].y.z }}",
    "{{ '9' * 5000 }}{{ ('9' * 5000)|int }}{{ 'x'|int + '9' }}",
    "{% for a in 3 %}{% endfor %}",
    "{% include 'x' %}",
    "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
    "{{ " + "-" * 20_000 + "1 }}",
    "{{ x",
    "{% generation %}",
    "{{ x|nothing }}",
  ],
)
def test_templates_that_do_too_much_end_soon(text):
  begun = time.monotonic()
  with pytest.raises(jinja.ERRORS):
    render(text)
  assert time.monotonic() - begun < 20


def test_what_chats_need_is_as_it_was():
  """The same as plain Jinja with the options of `transformers`."""
  text = """
    {%- macro tag(x) -%}<{{ x|upper }}>{%- endmacro -%}
    {%- set ns = namespace(n=0, all=[]) -%}
    {%- for m in messages[::-1] if m.role != 'x' -%}
      {%- set ns.n = ns.n + 1 -%}
      {%- set ns.all = ns.all + [m.role ~ ns.n] -%}
      {{ tag(m['role']) ~ loop.index ~ m.content|trim|length }}
      {%- if loop.last %} last{% continue %}{% endif %}
    {%- else %}none{% endfor -%}
    {{ ns.all|join(',') }} {{ '%05.1f|%s' % (2.5, 'x') }} {{ '{:>5}'.format('y') }}
    {{- {'a': [1, none, true]}|tojson }} {{ messages|map(attribute='role')|list }}
    {{- missing }} {{ missing is defined }} {{ 2 ** 10 * 3 }} {{ 'a,b'.split(',')[1] }}"""
  plain = jinja2.Environment(
    trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
  )
  plain.filters["tojson"] = jinja.compiled("").environment.filters["tojson"]
  assert render(text) == plain.from_string(text).render(messages=MESSAGES)


def test_the_counts_begin_anew_with_each_rendering():
  template = jinja.compiled(
    "{% for i in range(900) %}{% for j in range(9) %}{% endfor %}{% endfor %}"
  )
  for _ in range(4):
    assert jinja.rendered(template, {}) == ""
