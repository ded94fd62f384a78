"""JSON in files: standard, on the disk before it has its name, and read back with one line."""

import ast
import json
import os
from pathlib import Path

import pytest

import instructjax
from instructjax.errors import UserError
from instructjax.system import atomic, jsons

PACKAGE = Path(instructjax.__file__).parent

# Where JSON is made that is no file: a request over HTTP, and what a chat template asks for.
NO_FILES = {"rewards/endpoint.py", "data/tokens/jinja.py", "label/server.py", "system/jsons.py"}


def strict(text):
  def refuse(word):
    pytest.fail(f"{word} is no JSON")

  return json.loads(text, parse_constant=refuse)


def test_a_number_that_is_not_finite_is_refused_with_its_place_or_becomes_null():
  value = {"a": [1.0, {"b": float("nan")}], "c": float("-inf"), "d": (1, "é")}
  with pytest.raises(ValueError, match=r"a\[1\]\.b is nan, which JSON does not have"):
    jsons.text(value)
  assert strict(jsons.text_with_nulls(value)) == {
    "a": [1.0, {"b": None}],
    "c": None,
    "d": [1, "é"],
  }
  assert jsons.lines([value, 1]) == '{"a": [1.0, {"b": null}], "c": null, "d": [1, "é"]}\n1\n'


def test_all_json_of_the_package_is_made_in_one_place():
  """Python's own writer would put NaN into a file."""
  elsewhere = []
  for path in PACKAGE.rglob("*.py"):
    name = str(path.relative_to(PACKAGE))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
      if is_call and ast.unparse(node.func) in ("json.dumps", "json.dump"):
        elsewhere.append((name, node.lineno))
  assert {name for name, _ in elsewhere} <= NO_FILES, elsewhere


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  """Otherwise a machine that loses its power leaves an empty file under the right name."""
  events = []
  fsync, replace = os.fsync, Path.replace
  monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("fsync") or fsync(descriptor))
  monkeypatch.setattr(
    Path, "replace", lambda self, target: events.append("rename") or replace(self, target)
  )
  atomic.replace(tmp_path / "x", "é")
  assert events == ["fsync", "rename", "fsync"]  # the last one is of the folder
  assert (tmp_path / "x").read_text(encoding="utf-8") == "é"


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_one_line_with_the_place_and_the_remedy(tmp_path, content):
  path = tmp_path / "x.json"
  path.write_bytes(content)
  with pytest.raises(UserError) as error:
    jsons.read(path, "delete it")
  assert str(error.value).startswith(f"{path}: cannot be read (")
  assert str(error.value).endswith("; delete it")
  assert "\n" not in str(error.value)


def test_an_object_is_expected(tmp_path):
  jsons.write(tmp_path / "x", [1])
  with pytest.raises(UserError, match=r"an object of JSON is expected, this is \[1\]; delete it"):
    jsons.read_object(tmp_path / "x", "delete it")
