"""Records that are written and read again, and every way in which a line can be wrong."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructjax.data.records import files, formats, records, sources
from instructjax.data.records.records import Demonstration, Prompt
from instructjax.errors import UserError

FUZZ = settings(
  deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
  lambda text: text.strip()
)
maybe = st.none() | words
flags = st.none() | st.dictionaries(st.sampled_from(records.ANNOTATIONS), st.booleans())


def ranked(k):
  """The fields of a comparison of k texts."""
  ranks = st.lists(st.integers(1, k), min_size=k, max_size=k).filter(lambda ranks: min(ranks) == 1)
  rating = st.fixed_dictionaries(
    {}, optional={"overall": st.integers(1, 7), "hallucination": st.booleans()}
  )
  numbers = {"temperature": st.floats(0, 10), "seed": st.integers()}
  source = st.fixed_dictionaries({"model": words}, optional=numbers)
  optional = {"labeler": maybe, "use_case": maybe, "ratings": st.none() | st.tuples(*[rating] * k)}
  optional["sources"] = st.none() | st.tuples(*[source] * k)
  # Equal texts with different ranks are a problem of their own.
  texts = st.lists(words, min_size=k, max_size=k, unique=True).map(tuple)
  required = {"prompt": words, "completions": texts, "ranks": ranks.map(tuple)}
  return st.fixed_dictionaries(required, optional=optional)


KINDS = {
  "demonstration": st.fixed_dictionaries(
    {"prompt": words, "completion": words}, optional={"id": maybe, "user": maybe}
  ),
  "comparison": st.integers(2, 9).flatmap(ranked),
  "prompt": st.fixed_dictionaries(
    {"prompt": words},
    optional={
      "use_case": maybe,
      "organisation": maybe,
      "consent": st.none() | st.booleans(),
      "annotations": flags,
    },
  ),
  "few_shot": st.fixed_dictionaries(
    {
      "instruction": words,
      "pairs": st.lists(
        st.fixed_dictionaries({"input": words, "output": words}),
        min_size=2,
        max_size=4,
        unique_by=lambda pair: pair["input"],
      ).map(tuple),
    },
    optional={"user": maybe, "consent": st.none() | st.booleans()},
  ),
  "text": st.fixed_dictionaries({"text": words}, optional={"source": maybe}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
@FUZZ
@given(data=st.data())
def test_what_is_written_comes_back(tmp_path, kind, name, data):
  rows = [
    records.KINDS[kind](**row) for row in data.draw(st.lists(KINDS[kind], min_size=1, max_size=4))
  ]
  records.write(tmp_path / name, rows)
  assert records.read(tmp_path / name, kind) == rows
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_source_that_is_a_text_names_the_model():
  (comparison,) = records.parse(
    [GOOD | {"sources": ["sft", {"model": "ppo", "temperature": 1, "seed": 0}, "gpt"]}],
    "comparison",
  )
  assert comparison.sources == (
    {"model": "sft"},
    {"model": "ppo", "temperature": 1, "seed": 0},
    {"model": "gpt"},
  )
  assert records.as_row(comparison)["sources"][0] == {"model": "sft"}


def test_the_same_records_have_the_same_fingerprint_and_other_ones_another():
  a, b = Demonstration("a", "b"), Demonstration("a", "c")
  assert records.fingerprint([a, b]) == records.fingerprint(iter([a, b]))
  different = ([a, b], [b, a], [a], [Demonstration("a", "b", id="1")])
  assert len({records.fingerprint(rows) for rows in different}) == 4


GOOD = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 2]}
BAD = [
  (
    "demonstration",
    {"prompt": "p"},
    "completion: missing; a demonstration needs the fields prompt, completion",
  ),
  ("demonstration", {"prompt": "p", "completion": None}, "completion: missing"),
  ("demonstration", {"prompt": "p", "completion": " \n"}, "completion: empty"),
  ("demonstration", {"prompt": 3, "completion": "c"}, "prompt: text is expected, this is a number"),
  (
    "demonstration",
    {"prompt": "p", "completion": "c", "usecase": "x"},
    "usecase: unknown field; did you mean 'use_case'",
  ),
  (
    "demonstration",
    {"prompt": "p", "completion": "c", "id": 7.5},
    "id: text is expected, this is a number",
  ),
  ("demonstration", {"prompt": "p", "completion": "\ud800"}, "completion: half a surrogate pair"),
  ("prompt", {"prompt": "p", "consent": "yes"}, "consent: 'yes'; give true or false"),
  (
    "prompt",
    {"prompt": "p", "organisation": True},
    "organisation: text is expected, this is true or false",
  ),
  (
    "prompt",
    {"prompt": "p", "annotations": []},
    "annotations: an object of true and false is expected, this is a list",
  ),
  (
    "prompt",
    {"prompt": "p", "annotations": {"ambigous": True}},
    "annotations.ambigous: unknown field; did you mean 'ambiguous'",
  ),
  (
    "prompt",
    {"prompt": "p", "annotations": {"ambiguous": 1}},
    "annotations.ambiguous: 1; give true or false",
  ),
  ("text", {"text": "t", "consent": True}, "consent: unknown field"),
  ("text", {"text": ["t"]}, "text: text is expected, this is a list"),
  ("prompt", {"prompt": True}, "prompt: text is expected, this is true or false"),
  ("prompt", [1], "a JSON object is expected, this is a list"),
  (
    "comparison",
    GOOD | {"completions": ["a"], "ranks": [1]},
    "completions: 1 of them; a comparison has 2 to 9",
  ),
  (
    "comparison",
    GOOD | {"completions": list("abcdefghij"), "ranks": [1] * 10},
    "completions: 10 of them",
  ),
  ("comparison", GOOD | {"ranks": [1, 2]}, "ranks: 2 of them for 3 completions"),
  ("comparison", GOOD | {"ranks": [0, 1, 2]}, "ranks: [0, 1, 2]; give integers from 1 (best) to 3"),
  ("comparison", GOOD | {"ranks": [1, 2, 4]}, "ranks: [1, 2, 4]"),
  ("comparison", GOOD | {"ranks": [2, 2, 3]}, "ranks: [2, 2, 3]"),
  ("comparison", GOOD | {"ranks": [1, 2.0, 3]}, "ranks: [1, 2.0, 3]"),
  ("comparison", GOOD | {"ranks": [True, 2, 3]}, "ranks: [True, 2, 3]"),
  (
    "comparison",
    GOOD | {"ranks": 1},
    "completions, ranks: lists are expected, not a list and a number",
  ),
  ("comparison", GOOD | {"completions": ["a", "", "c"]}, "completions[1]: empty"),
  ("comparison", GOOD | {"ratings": [{}]}, "ratings: a list of 3 objects"),
  (
    "comparison",
    GOOD | {"ratings": [{}, {"overall": 8}, {}]},
    "ratings[1].overall: 8; give an integer from 1 to 7",
  ),
  (
    "comparison",
    GOOD | {"ratings": [{}, {}, {"opinion": 1}]},
    "ratings[2].opinion: 1; give true or false",
  ),
  (
    "comparison",
    GOOD | {"ratings": [{}, {"toxicity": 3}, {}]},
    "ratings[1].toxicity: 3; give an integer from 0 to 2",
  ),
  (
    "comparison",
    GOOD | {"ratings": [{"relative_toxicity": True}, {}, {}]},
    "ratings[0].relative_toxicity: True; give",
  ),
  (
    "comparison",
    GOOD | {"sources": ["m"]},
    "sources: a list of 3 is expected, one a completion: a text, or an object",
  ),
  ("comparison", GOOD | {"sources": ["m", " ", "m"]}, "sources[1]: empty"),
  ("comparison", GOOD | {"sources": [{}, "m", "m"]}, "sources[0].model: missing"),
  (
    "comparison",
    GOOD | {"sources": ["m", "m", {"model": 1}]},
    "sources[2].model: text is expected, this is a number",
  ),
  (
    "comparison",
    GOOD | {"sources": [{"model": "m", "temperature": -1}, "m", "m"]},
    "sources[0].temperature: -1; give",
  ),
  (
    "comparison",
    GOOD | {"sources": [{"model": "m", "seed": 1.5}, "m", "m"]},
    "sources[0].seed: 1.5; give an integer",
  ),
  (
    "comparison",
    GOOD | {"sources": [{"model": "m", "temperatur": 1}, "m", "m"]},
    "sources[0].temperatur: unknown",
  ),
  (
    "comparison",
    GOOD | {"ratings": [{"overal": 1}, {}, {}]},
    "ratings[0].overal: unknown field; did you mean 'overall'",
  ),
]


@pytest.mark.parametrize(("kind", "row", "message"), BAD, ids=[message for _, _, message in BAD])
def test_a_bad_record_is_named_by_file_line_and_field(tmp_path, kind, row, message):
  good = {
    "demonstration": {"prompt": "p", "completion": "c"},
    "comparison": GOOD,
    "text": {"text": "t"},
  }
  path = tmp_path / "x.jsonl"
  path.write_text(json.dumps(good.get(kind, {"prompt": "p"})) + "\n" + json.dumps(row) + "\n")
  with pytest.raises(UserError) as error:
    records.read(path, kind)
  assert str(error.value).startswith(f"{path}:2: {message}")
  assert "\n" not in str(error.value)


def test_all_problems_of_a_file_are_listed_at_once(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_bytes(b'{"prompt": ""}\n\n{"prompt": "p"}\n{"promp": "p"}\n{"prompt": \n\xff\n')
  with pytest.raises(UserError) as error:
    records.read(path, "prompt")
  places = [line.removeprefix(f"{path}:").split(" ")[0] for line in str(error.value).split("\n")]
  assert places == ["1:", "2:", "4:", "4:", "5:", "6:"]


def test_a_long_list_of_problems_of_one_sort_is_one_line(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text('{"prompt": ""}\n' * 50)
  with pytest.raises(UserError) as error:
    records.read(path, "prompt")
  assert str(error.value) == (
    f"{path}:1: prompt: empty; give a text or take the record out (and 49 more like this)"
  )


def test_files_that_cannot_be_read(tmp_path):
  (tmp_path / "empty.jsonl").write_text("")
  for name, message in [("none.jsonl", "no such file"), ("empty.jsonl", "no records")]:
    with pytest.raises(UserError, match=message):
      records.read(tmp_path / name, "prompt")
  with pytest.raises(UserError, match="a folder; give its files"):
    records.read(tmp_path, "prompt")
  with pytest.raises(UserError, match="unknown kind of record 'prompts'"):
    records.read(tmp_path / "empty.jsonl", "prompts")


def test_a_byte_order_mark_and_a_missing_last_newline_are_fine(tmp_path):
  (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "p"}\r\n{"prompt": "q"}')
  assert records.read(tmp_path / "x.jsonl", "prompt") == [Prompt("p"), Prompt("q")]


# --- any input: every line is a record or has a problem, and nothing else ever happens ---


def assert_accounted(path, kind, content: bytes) -> None:
  """Asserts that `examine` gives a record or a problem with its number for each line of a file.

  Where a file is no JSONL, it is refused as a whole, or its elements are read or named.
  """
  path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
  rows, problems = sources.examine(path, kind)
  assert all(problem.startswith(f"{path}") and problem.isprintable() for problem in problems)
  try:
    is_lines = files.holds_lines(content, True, str(path))
  except UserError as error:
    assert not rows
    # Compressed bytes within compressed ones are looked at no further.
    assert problems == [str(error)] or path.suffix == ".gz"
    return
  if not is_lines:
    assert rows or problems
    return
  lines = content.removeprefix(b"\xef\xbb\xbf").rstrip().split(b"\n")
  places = {f"{path}:{number}" for number in range(1, len(lines) + 1)}
  if len(problems) == 1 and not problems[0].removeprefix(f"{path}:")[0].isdigit():
    # Its first rows are of another layout or kind, which is said once.
    assert not rows
    return
  bad = {":".join(problem.split(":")[:2]) for problem in problems}
  good = {record.place for record in rows}
  assert bad | good == places and not bad & good


kinds = st.sampled_from(list(KINDS))
json_values = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(st.characters())
  | st.sampled_from(["\ud800", "\0", "\n"]),
  lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4)
  ),
  max_leaves=8,
)
names = [field for kind in records.KINDS.values() for field in kind.__dataclass_fields__]
row = st.dictionaries(
  st.sampled_from(names) | st.text(), json_values | st.just("ok") | st.just(True), max_size=6
)
line = st.one_of(
  row.map(lambda row: json.dumps(row).encode()),
  json_values.map(
    lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
  ),
  st.binary(max_size=30),
)


@FUZZ
@given(
  lines=st.lists(line, max_size=5),
  kind=kinds,
  name=st.sampled_from(["x.jsonl", "x.jsonl.gz"]),
  mark=st.booleans(),
)
def test_any_lines_are_records_or_problems(tmp_path, lines, kind, name, mark):
  assert_accounted(tmp_path / name, kind, b"\xef\xbb\xbf" * mark + b"\n".join(lines))


@FUZZ
@given(content=st.binary(max_size=300), kind=kinds, at=st.integers(0, 60), zipped=st.booleans())
def test_any_bytes_and_any_broken_gz_are_problems(tmp_path, content, kind, at, zipped):
  whole = gzip.compress(b'{"prompt": "p"}\n' * 3, mtime=0)
  path = tmp_path / "x.gz"
  path.write_bytes(content if not zipped else whole[:at] + content[:3] + whole[at + 2 :])
  rows, problems = sources.examine(path, kind)
  assert rows or problems
  assert all(problem.startswith(f"{path}") for problem in problems)
  assert_accounted(tmp_path / "x.jsonl", kind, content)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    (b"[" * 100_000, "nested too deeply"),
    (b'{"prompt": ' + b'{"a": ' * 50_000, "nested too deeply"),
    (b'{"prompt": "a", "prompt": "b"}', "prompt: occurs twice in one object; keep one"),
    (
      b'{"prompt": "a", "annotations": {"ambiguous": true, "ambiguous": false}}',
      "ambiguous: occurs twice",
    ),
    (b'{"prompt": ' + b"9" * 10_000 + b"}", "not JSON"),
    (b'{"prompt": 1e999}', "prompt: text is expected, this is a number"),
    (b'{"prompt": "a\0b"}', "not JSON"),
    (b'\xff\xfe{\0"\0', "not UTF-8 at byte 0"),
    (b'{"prompt": "\\ud83d"}', "prompt: half a surrogate pair"),
    (
      b'{"prompt": "a", "x\\ny:9: forged\\u001b[31m\\ud800": 1}',
      "x\\ny:9: forged\\x1b[31m\\ud800: unknown field",
    ),
    (b'{"prompt": "a", "' + b"k" * 100_000 + b'": 1}', "kkkk"),
    (b'{"prompt": "a"}{"prompt": "b"', "not JSON"),
    (b'{"prompt": "a"} "b"', "not JSON"),
    (b'{"prompt": None}', "not JSON (Expecting value at character 12); JSON spells true, false"),
    (b"{'prompt': 'a'}", "not JSON (Expecting property name"),
    # A byte order mark inside, where two files were joined.
    (b"\xef\xbb\xbf" + b'{"prompt": "a"}', "not JSON"),
    (b"", "an empty line; take it out"),
  ],
  ids=lambda value: "" if isinstance(value, bytes) else value[:20],
)
def test_lines_that_break_readers(tmp_path, line, message):
  path = tmp_path / "x.jsonl"
  path.write_bytes(b'{"prompt": "first"}\n' + line + b'\n{"prompt": "last"}\n')
  rows, problems = sources.examine(path, "prompt")
  assert [record.prompt for record in rows] == ["first", "last"]
  (problem,) = problems
  assert problem.startswith(f"{path}:2: {message}")
  assert problem.isprintable() and len(problem) < len(str(path)) + 450


def test_numbers_and_lists_of_any_size_give_a_short_message():
  deep = [1]
  for _ in range(500):
    deep = [deep]
  for ranks in ([10**5000, 1], [deep, 1], [float("nan"), 1], ["x" * 10_000, 1], [1] * 100_000):
    with pytest.raises(UserError) as error:
      records.parse([{"prompt": "p", "completions": ["a", "b"], "ranks": ranks}], "comparison")
    assert len(str(error.value)) < 500
  with pytest.raises(UserError, match=r"ratings\[0\].overall: a number; give an integer"):
    records.parse([GOOD | {"ratings": [{"overall": 10**5000}, {}, {}]}], "comparison")


def test_a_name_that_no_file_can_have():
  _, problems = sources.examine("a\0b", "prompt")
  assert len(problems) == 1 and "cannot be read" in problems[0]
  assert sources.examine("/", "prompt")[1]


@FUZZ
@given(row=row, kind=kinds)
def test_any_row_gives_records_or_a_user_error(row, kind):
  try:
    assert records.parse([row], kind)
  except UserError as error:
    assert str(error)


# --- further fields of prompts ---


def test_a_prompt_keeps_its_further_fields(tmp_path):
  row = {"prompt": "2 + 2?", "answer": "4", "tests": [{"in": 1}], "user": "u", "fields": 1}
  (record,) = records.parse([row], "prompt")
  further = {"answer": "4", "tests": [{"in": 1}], "fields": 1}
  assert record == Prompt("2 + 2?", user="u", fields=further)
  assert records.as_row(record) == row
  records.write(tmp_path / "x.jsonl", [record])
  assert records.read(tmp_path / "x.jsonl", "prompt") == [record]
  assert records.fingerprint([record]) != records.fingerprint([Prompt("2 + 2?", user="u")])


@pytest.mark.parametrize(
  ("field", "problem"),
  [
    ({"usr": "x"}, "usr: unknown field; did you mean 'user'?"),
    ({"answer": ["\ud83d"]}, "answer: half a surrogate pair"),
    ({"answer": {"\ud83d": 1}}, "answer: half a surrogate pair"),
    ({"answer": float("inf")}, "answer: inf is no number that JSON has"),
    ({"answer": {1, 2}}, "answer: holds a set"),
    ({"k" * 101: 1}, "k" * 101 + ": unknown field"),
  ],
)
def test_further_fields_that_cannot_be_kept(field, problem):
  records_read, problems = records.scan([{"prompt": "a"} | field], "prompt")
  assert not records_read and len(problems) == 1
  assert problems[0].startswith(f"data:1: {problem}")


def test_a_further_field_may_not_be_nested_without_end():
  value = 1
  for _ in range(21):
    value = [value]
  _, problems = records.scan([{"prompt": "a", "answer": value}], "prompt")
  assert problems == ["data:1: answer: nested more than 20 deep; make it flatter"]


def test_only_prompts_have_further_fields():
  _, problems = records.scan([{"prompt": "a", "completion": "b", "answer": 1}], "demonstration")
  assert len(problems) == 1 and problems[0].startswith("data:1: answer: unknown field")


def test_a_mapping_of_the_prompt_keeps_the_other_columns():
  row = {"question": "2 + 2?", "answer": "4", "id": 7, "users": 3, "image": b"x", "n": {"a": None}}
  spell = formats.mapped({"prompt": "question"})
  assert records.parse([row], "prompt", spell) == [
    Prompt("2 + 2?", fields={"answer": "4", "n": {"a": None}})
  ]
