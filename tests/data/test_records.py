import gzip
import json
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructjax.data import records
from instructjax.data.records import Demonstration, Prompt
from instructjax.errors import UserError

FUZZ = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())
maybe = st.none() | words


def ranked(k):
  """The fields of a comparison of k texts."""
  ranks = st.lists(st.integers(1, k), min_size=k, max_size=k).filter(lambda ranks: min(ranks) == 1)
  rating = st.fixed_dictionaries({}, optional={"overall": st.integers(1, 7), "hallucination": st.booleans()})
  optional = {"labeler": maybe, "use_case": maybe, "ratings": st.none() | st.tuples(*[rating] * k)}
  required = {"prompt": words, "completions": st.tuples(*[words] * k), "ranks": ranks.map(tuple)}
  return st.fixed_dictionaries(required, optional=optional)


KINDS = {
  "demonstration": st.fixed_dictionaries({"prompt": words, "completion": words}, optional={"id": maybe, "user": maybe}),
  "comparison": st.integers(2, 9).flatmap(ranked),
  "prompt": st.fixed_dictionaries({"prompt": words}, optional={"use_case": maybe}),
  "text": st.fixed_dictionaries({"text": words}, optional={"source": maybe}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
@FUZZ
@given(data=st.data())
def test_what_is_written_comes_back(tmp_path, kind, name, data):
  rows = [records.KINDS[kind](**row) for row in data.draw(st.lists(KINDS[kind], min_size=1, max_size=4))]
  records.write(tmp_path / name, rows)
  assert records.read(tmp_path / name, kind) == rows
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_same_records_have_the_same_fingerprint_and_other_ones_another():
  a, b = Demonstration("a", "b"), Demonstration("a", "c")
  assert records.fingerprint([a, b]) == records.fingerprint(iter([a, b]))
  assert len({records.fingerprint(rows) for rows in ([a, b], [b, a], [a], [Demonstration("a", "b", id="1")])}) == 4


GOOD = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 2]}
BAD = [
  ("demonstration", {"prompt": "p"}, "completion: missing; a demonstration needs the fields prompt, completion"),
  ("demonstration", {"prompt": "p", "completion": None}, "completion: missing"),
  ("demonstration", {"prompt": "p", "completion": " \n"}, "completion: empty"),
  ("demonstration", {"prompt": 3, "completion": "c"}, "prompt: text is expected, this is a number"),
  (
    "demonstration",
    {"prompt": "p", "completion": "c", "usecase": "x"},
    "usecase: unknown field; did you mean 'use_case'",
  ),
  ("demonstration", {"prompt": "p", "completion": "c", "id": 7}, "id: text is expected, this is a number"),
  ("demonstration", {"prompt": "p", "completion": "\ud800"}, "completion: half a surrogate pair"),
  ("text", {"text": ["t"]}, "text: text is expected, this is a list"),
  ("prompt", {"prompt": True}, "prompt: text is expected, this is true or false"),
  ("prompt", [1], "a JSON object is expected, this is a list"),
  ("comparison", GOOD | {"completions": ["a"], "ranks": [1]}, "completions: 1 of them; a comparison has 2 to 9"),
  ("comparison", GOOD | {"completions": list("abcdefghij"), "ranks": [1] * 10}, "completions: 10 of them"),
  ("comparison", GOOD | {"ranks": [1, 2]}, "ranks: 2 of them for 3 completions"),
  ("comparison", GOOD | {"ranks": [0, 1, 2]}, "ranks: [0, 1, 2]; give integers from 1 (best) to 3"),
  ("comparison", GOOD | {"ranks": [1, 2, 4]}, "ranks: [1, 2, 4]"),
  ("comparison", GOOD | {"ranks": [2, 2, 3]}, "ranks: [2, 2, 3]"),
  ("comparison", GOOD | {"ranks": [1, 2.0, 3]}, "ranks: [1, 2.0, 3]"),
  ("comparison", GOOD | {"ranks": [True, 2, 3]}, "ranks: [True, 2, 3]"),
  ("comparison", GOOD | {"ranks": 1}, "completions, ranks: lists are expected, not a list and a number"),
  ("comparison", GOOD | {"completions": ["a", "", "c"]}, "completions[1]: empty"),
  ("comparison", GOOD | {"ratings": [{}]}, "ratings: a list of 3 objects"),
  ("comparison", GOOD | {"ratings": [{}, {"overall": 8}, {}]}, "ratings[1].overall: 8; give an integer from 1 to 7"),
  ("comparison", GOOD | {"ratings": [{}, {}, {"opinion": 1}]}, "ratings[2].opinion: 1; give true or false"),
  (
    "comparison",
    GOOD | {"ratings": [{"overal": 1}, {}, {}]},
    "ratings[0].overal: unknown field; did you mean 'overall'",
  ),
]


@pytest.mark.parametrize(("kind", "row", "what"), BAD, ids=[what for _, _, what in BAD])
def test_a_bad_record_is_named_by_file_line_and_field(tmp_path, kind, row, what):
  good = {"demonstration": {"prompt": "p", "completion": "c"}, "comparison": GOOD, "text": {"text": "t"}}
  path = tmp_path / "x.jsonl"
  path.write_text(json.dumps(good.get(kind, {"prompt": "p"})) + "\n" + json.dumps(row) + "\n")
  with pytest.raises(UserError) as error:
    records.read(path, kind)
  assert str(error.value).startswith(f"{path}:2: {what}")
  assert "\n" not in str(error.value)


def test_all_problems_of_a_file_are_listed_at_once(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_bytes(b'{"prompt": ""}\n\n{"prompt": "p"}\n{"promp": "p"}\n{"prompt": \n\xff\n')
  with pytest.raises(UserError) as error:
    records.read(path, "prompt")
  places = [line.removeprefix(f"{path}:").split(" ")[0] for line in str(error.value).split("\n")]
  assert places == ["1:", "2:", "4:", "4:", "5:", "6:"]


def test_a_long_list_of_problems_is_cut(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text('{"prompt": ""}\n' * 50)
  with pytest.raises(UserError) as error:
    records.read(path, "prompt")
  lines = str(error.value).split("\n")
  assert len(lines) == 21 and lines[-1] == "... and 30 more problems"


def test_files_that_cannot_be_read(tmp_path):
  (tmp_path / "empty.jsonl").write_text("")
  (tmp_path / "no.gz").write_text("plain")
  (tmp_path / "cut.gz").write_bytes(gzip.compress(b'{"prompt": "p"}\n' * 100)[:-20])
  for name, what in [
    ("none.jsonl", "no such file"),
    ("empty.jsonl", "no records"),
    ("no.gz", "read"),
    ("cut.gz", "read"),
  ]:
    with pytest.raises(UserError, match=what):
      records.read(tmp_path / name, "prompt")
  with pytest.raises(UserError, match="unknown kind of record 'prompts'"):
    records.read(tmp_path / "empty.jsonl", "prompts")


def test_a_byte_order_mark_and_a_missing_last_newline_are_fine(tmp_path):
  (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "p"}\r\n{"prompt": "q"}')
  assert records.read(tmp_path / "x.jsonl", "prompt") == [Prompt("p"), Prompt("q")]


def only_user_errors(call: Callable[[], object]) -> None:
  try:
    call()
  except UserError as error:
    assert str(error)


@FUZZ
@given(content=st.binary(max_size=300), kind=st.sampled_from(list(KINDS)), zipped=st.booleans())
def test_any_bytes_give_records_or_a_user_error(tmp_path, content, kind, zipped):
  path = tmp_path / ("x.gz" if zipped else "x.jsonl")
  path.write_bytes(content)
  only_user_errors(lambda: records.read(path, kind))


json_values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
  max_leaves=8,
)
fields = st.sampled_from(["prompt", "completion", "completions", "ranks", "ratings", "text", "id", "x"])


@FUZZ
@given(row=st.dictionaries(fields, json_values | st.just("ok"), max_size=6), kind=st.sampled_from(list(KINDS)))
def test_any_json_gives_records_or_a_user_error(row, kind):
  only_user_errors(lambda: records.parse([row], kind))
