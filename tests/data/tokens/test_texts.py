import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructjax.data.records import records
from instructjax.data.tokens import texts as data_texts
from instructjax.errors import UserError


def test_texts_of_every_kind_of_source(tmp_path):
  (tmp_path / "a.txt").write_text("one\r\n\ntwo")
  (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"drei\n"))
  (tmp_path / "c.jsonl").write_text('{"text": "four\\nfive"}\n')
  (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "p", "completion": "c"}\n'))
  (tmp_path / "e.jsonl").write_text('{"question": "q", "answer": "a"}\n')
  of = lambda name, **how: list(data_texts.texts(tmp_path / name, **how))
  assert of("a.txt") == ["one", "", "two"]
  assert of("b.txt.gz") == ["drei"]
  assert of("c.jsonl") == ["four\nfive"]
  assert of("d.jsonl.gz") == ["p", "c"]
  assert of("e.jsonl", fields="prompt=question,completion=answer") == ["q", "a"]
  assert list(data_texts.texts(f"{tmp_path}/a.txt,{tmp_path}/c.jsonl")) == [
    "one",
    "",
    "two",
    "four\nfive",
  ]
  assert list(data_texts.texts(f"{tmp_path}/*.txt")) == ["one", "", "two"]


def test_pieces_of_records():
  chat = [
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "v"},
  ]
  rows = {
    "prompt": [({"prompt": "p"}, ["p"]), ({"prompt": chat}, ["u", "a", "v"])],
    "comparison": [({"prompt": "p", "completions": ["x", "y"], "ranks": [1, 2]}, ["p", "x", "y"])],
    "few_shot": [
      (
        {
          "instruction": "i",
          "pairs": [{"input": "1", "output": "2"}, {"input": "3", "output": "4"}],
        },
        ["i", *"1234"],
      )
    ],
  }
  for kind, cases in rows.items():
    for row, texts in cases:
      (record,) = records.parse([row], kind)
      assert data_texts.pieces(record) == texts


def test_what_cannot_be_read(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"good\nbad \xff\n")
  (tmp_path / "b.jsonl").write_text('{"text": "good"}\n{"text": 1}\n')
  (tmp_path / "c.jsonl").write_text("plain\n")
  (tmp_path / "d.jsonl").write_text('{"a": "b"}\n')
  for name, problem in [
    ("a.txt", "a.txt:2: not UTF-8 at byte 4"),
    ("b.jsonl", "b.jsonl:2: text: text is expected"),
    ("c.jsonl", "c.jsonl:1: not JSON, it begins 'plain'"),
    ("d.jsonl", "d.jsonl: its fields are a; say which"),
    ("none.txt", "none.txt: no such file"),
  ]:
    with pytest.raises(UserError, match=problem):
      list(data_texts.texts(tmp_path / name))


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "x.jsonl", "x.jsonl.gz"])
@settings(
  deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
  content=st.binary(max_size=100)
  | st.lists(st.text(max_size=9)).map(lambda lines: "\n".join(lines).encode())
)
def test_every_line_is_a_text_or_a_problem(tmp_path, name, content):
  (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
  try:
    pieces = list(data_texts.texts(tmp_path / name))
  except UserError as error:
    assert str(error).startswith((f"{tmp_path / name}:", f"{tmp_path / name}["))
    return
  lines = content.removeprefix(b"\xef\xbb\xbf").decode().split("\n")
  lines = lines[:-1] if lines[-1] == "" else lines
  if ".txt" in name:
    assert pieces == [line.removesuffix("\r") for line in lines]
  else:
    assert pieces == [
      text for line in lines for text in json.loads(line).values() if isinstance(text, str)
    ]
