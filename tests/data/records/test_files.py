"""From files to rows: every layout gives the same rows, and what is no such file is said once."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructjax.data.batches import pipeline
from instructjax.data.records import decoding, files, formats, named, places, records, sources
from instructjax.data.records.problems import Problems
from instructjax.data.records.records import Comparison, Demonstration, RecordError
from instructjax.data.tokens import tokenizers
from instructjax.errors import UserError

FUZZ = settings(
  deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ROWS = [{"prompt": "One?", "completion": "1"}, {"prompt": "Two – or\nmore?", "completion": "2"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(path, content=None):
  """The (place, value) pairs of a file, whose content is written first; errors as their texts."""
  if content is not None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
  pairs = []
  for place, value in files.rows(path):
    shown = str(value) if isinstance(value, RecordError) else value
    pairs.append((place.removeprefix(str(path)), shown))
  return pairs


def refusal(path, content):
  """The one sentence with which a file is refused."""
  with pytest.raises(UserError) as error:
    read(path, content)
  text = str(error.value)
  assert "\n" not in text and text.startswith(str(path))
  return text.removeprefix(str(path))


# --- layouts ---


def in_table(rows, separator):
  file = io.StringIO()
  columns = list(dict.fromkeys(name for row in rows for name in row))
  writer = csv.DictWriter(file, columns, delimiter=separator)
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def written(layout, rows):
  if layout == "jsonl":
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  if layout == "array":
    return json.dumps(rows)
  if layout == "array in lines":
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
  if layout == "pretty array":
    return json.dumps(rows, indent=2, ensure_ascii=False)
  if layout == "concatenated":
    return "".join(json.dumps(row) for row in rows)
  if layout == "pretty":
    return "\n".join(json.dumps(row, indent=4) for row in rows)
  return in_table(rows, "," if layout == "csv" else "\t")


LAYOUTS = (
  "jsonl",
  "array",
  "array in lines",
  "pretty array",
  "concatenated",
  "pretty",
  "csv",
  "tsv",
)
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
texts = words.filter(lambda text: text.strip())
rows_of_texts = st.lists(
  st.fixed_dictionaries(
    {"prompt": texts, "completion": texts}, optional={"id": texts, "user": texts}
  ),
  min_size=1,
  max_size=5,
)


@pytest.mark.parametrize("layout", LAYOUTS)
@FUZZ
@given(rows=rows_of_texts, ending=st.sampled_from([*COMPRESS]), piece=st.integers(1, 40))
def test_every_layout_gives_the_same_records(tmp_path, layout, rows, ending, piece):
  """However small the pieces are in which the file is read."""
  stem = f"x.{layout}" if layout in ("csv", "tsv") else "x.json"
  path = tmp_path / f"{stem}{ending}"
  path.write_bytes(COMPRESS[ending](written(layout, rows).encode()))
  with pytest.MonkeyPatch.context() as patch:
    # The layout is found in the first piece, so this one has to hold it.
    head = files._head
    patch.setattr(files, "_head", lambda pieces: head(iter([b"".join(pieces)])))
    assert records.read(path, "demonstration") == [Demonstration(**row) for row in rows]
    layouts = {"jsonl": files._lines, "pretty": files._objects, "concatenated": files._objects}
    make = files._array if "array" in layout else layouts.get(layout)
    if make is not None:
      content = written(layout, rows).encode()
      pieces = [content[start : start + piece] for start in range(0, len(content), piece)]
      assert [value for _, value in make(pieces, "x")] == rows


def test_a_layout_that_goes_beyond_the_first_piece(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "PIECE", 16)
  path = tmp_path / "x.json"
  for layout in LAYOUTS[:6]:
    assert [value for _, value in read(path, written(layout, ROWS))] == ROWS, layout


def test_places_in_every_layout(tmp_path):
  path = tmp_path / "x.json"
  assert [place for place, _ in read(path, LINES)] == [":1", ":2"]
  assert [place for place, _ in read(path, json.dumps(ROWS))] == ["[0]", "[1]"]
  assert [place for place, _ in read(path, json.dumps(ROWS, indent=1))] == ["[0]", "[1]"]
  pretty = "\n".join(json.dumps(row, indent=1) for row in ROWS)
  assert [place for place, _ in read(path, pretty)] == [":1", ":5"]
  assert [place for place, _ in read(path, LINES.replace("\n", "", 1))] == [":1", ":1"]
  # A row of a table stands where it begins, and one with a line break is longer than a line.
  table = in_table([ROWS[1], ROWS[0]], ",")
  assert [place for place, _ in read(tmp_path / "x.csv", table)] == [":2", ":4"]


def test_fields_are_named_after_elements_and_lines():
  line, element = places.line("x.jsonl", 3), places.element("x.json", 1)
  assert places.problem(line, "user: empty; give one") == "x.jsonl:3: user: empty; give one"
  assert places.problem(element, "user: empty; give one") == "x.json[1].user: empty; give one"
  assert places.problem(element, "ranks[0]: no") == "x.json[1].ranks[0]: no"
  assert places.problem(element, "not JSON") == "x.json[1]: not JSON"
  assert (
    places.problem(element, "chosen, rejected: differ") == "x.json[1]: chosen, rejected: differ"
  )
  assert places.of(Demonstration("p", "c"), "x", 4) == "x:5"
  assert places.of(Demonstration("p", "c", place=element), "x", 4) == element


def test_a_bad_element_is_named_by_its_column(tmp_path):
  path = tmp_path / "tasks.json"
  good = {"instruction": "Name a hill.", "input": "", "output": "The Brocken."}
  path.write_text(json.dumps([good, good | {"output": 3}, good], indent=2))
  rows, problems = sources.examine(path, "demonstration", formats.alpaca)
  assert [record.place for record in rows] == [f"{path}[0]", f"{path}[2]"]
  assert len(problems) == 1 and problems[0].startswith(f"{path}[1].output: text is expected")


def test_empty_lines_are_none_at_the_end_alone(tmp_path):
  path = tmp_path / "x.jsonl"
  assert read(path, LINES + "\n \r\n\n") == [(":1", ROWS[0]), (":2", ROWS[1])]
  first, second = LINES.splitlines()
  assert read(path, f"{first}\n\n{second}\n\n") == [
    (":1", ROWS[0]),
    (":2", "an empty line; take it out"),
    (":3", ROWS[1]),
  ]


def test_a_line_may_hold_several_objects(tmp_path):
  path = tmp_path / "x.jsonl"
  first, second = LINES.splitlines()
  assert read(path, f"{first}\n{first} {second}\n{second}") == [
    (":1", ROWS[0]),
    (":2", ROWS[0]),
    (":2", ROWS[1]),
    (":3", ROWS[1]),
  ]


def test_a_repeated_key_is_named_and_the_rest_is_read(tmp_path):
  path = tmp_path / "x.json"
  problem = "a: occurs twice in one object; keep one"
  assert read(path, '[{"a": 1, "a": 2}, {"b": 3}]') == [("[0]", problem), ("[1]", {"b": 3})]
  assert read(path, '{"b":\n3}{"a": {"a": 1, "a": 2}}\n{"c": 4}') == [
    (":1", {"b": 3}),
    (":2", problem),
    (":3", {"c": 4}),
  ]


def test_after_a_broken_object_the_next_line_with_one_is_read(tmp_path):
  path = tmp_path / "x.json"
  content = '{\n "a": 1\n}\n{\n "a": oh\n}\n{\n "a": 3\n}\n{"a": \n'
  assert read(path, content) == [
    (":1", {"a": 1}),
    (":4", "not JSON (Expecting value in line 5); write one object a line"),
    (":7", {"a": 3}),
    (":10", "not JSON (Expecting value in line 11); write one object a line"),
  ]


@pytest.mark.parametrize(
  ("content", "good", "message"),
  [
    ('[{"a": 1}, {"a": oh}, {"a": 3}]', 1, "[1]: not JSON (Expecting value in line 1); nothing"),
    ('[\n{"a": 1},\n{"a": 2,}\n]', 1, "[1]: not JSON"),
    ('[{"a": 1},\n{"a": 2', 1, "[1]: not JSON (Expecting ',' delimiter in line 2); nothing"),
    ('[{"a": 1},', 1, "[1]: cut off, the array does not end"),
    ('[{"a": 1}', 1, "[0]: cut off, the array does not end"),
    ('[{"a": 1}\n{"a": 2}]', 1, "[0]: no comma after it in line 2"),
    ('[{"a": 1}]\n\n{"a": 2}', 1, ":3: more text after the end of the array"),
    (" [ ] ", 0, ": an empty array, no records"),
    ("[" * 100_000, 0, "[0]: nested too deeply"),
    ('[{"a": ' + "9" * 5000 + "}]", 0, "[0]: not JSON (Exceeds the limit"),
    (b'[{"a": 1},\n{"a": "\xff"}]', 0, ":2: not UTF-8 from here on"),
    (b'[{"a": 1},\n{"a": "\xc3', 0, ":2: not UTF-8 from here on"),
  ],
)
def test_where_an_array_ends_early(tmp_path, content, good, message):
  path = tmp_path / "x.json"
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  values = []
  with pytest.raises(UserError) as error:
    values.extend(value for _, value in files.rows(path))
  assert str(error.value).removeprefix(str(path)).startswith(message)
  rows, problems = sources.examine(path, "prompt", records.native)
  assert not rows and problems[-1] == str(error.value)
  # What comes before it is read.
  iterator = files.rows(path)
  assert [next(iterator).value for _ in range(good)] == [{"a": 1}] * good


def test_lists_in_lines_are_no_array(tmp_path):
  path = tmp_path / "x.jsonl"
  assert read(path, "[1, 2]\n[3]\n") == [(":1", [1, 2]), (":2", [3])]
  _, problems = sources.examine(path, "prompt")
  assert problems[1] == f"{path}:2: a JSON object is expected, this is a list"


# --- what is no file of records ---


@pytest.mark.parametrize(
  ("name", "content", "sentence"),
  [
    ("x.jsonl", b"", ":1: an empty file, no records; give one"),
    ("x.jsonl", b"\xef\xbb\xbf \n", ":1: an empty file"),
    ("x.jsonl.gz", b"", ":1: an empty file"),
    ("x.jsonl", LINES.encode("utf-16"), ":1: text in UTF-16; save the file as UTF-8, iconv"),
    ("x.jsonl", LINES.encode("utf-16-le"), ":1: text in UTF-16"),
    ("x.json", json.dumps(ROWS).encode("utf-16-be"), ":1: text in UTF-16"),
    ("x.jsonl", f"{ROWS[0]}\n{ROWS[1]}\n", ":1: as Python prints it, in single quotes"),
    ("x.json", str(ROWS), ":1: as Python prints it, in single quotes"),
    ("x.jsonl", LINES.replace("}\n", "},\n"), ":1: a comma after the object; take the commas out"),
    ("x.jsonl", "version https://git-lfs.github.com/spec/v1\n", ":1: a Git LFS pointer"),
    ("x.jsonl", "\n<!DOCTYPE html><html>404</html>", ":1: a web page and not a file of data"),
    ("x.jsonl.gz", "<html>404</html>", ":1: a web page"),
    ("x.jsonl.gz", LINES, ":1: not gzipped, though its name ends in .gz; rename the file"),
    (
      "x.jsonl.xz",
      gzip.compress(LINES.encode(), mtime=0)[:-9],
      ":1: cut off, the gzip data end early",
    ),
    ("x.jsonl.xz", lzma.compress(LINES.encode())[:-9], ":1: cut off, the xz data end early"),
    ("x.jsonl.bz2", bz2.compress(LINES.encode())[:-9], ":1: cut off, the bzip2 data end early"),
    ("x.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-3] + b"abc", ":1: damaged after 0 whole lines"),
    ("x.jsonl.zst", b"\x28\xb5\x2f\xfd", ":1: compressed with Zstandard, which is not read"),
    ("x.jsonl", b"PK\x03\x04", ":1: a zip archive; unpack it"),
    ("x.jsonl", b"PAR1", ":1: a Parquet file; give it a name that ends in .parquet"),
    ("x.jsonl", b"\x01\x00\x02", ":1: binary data, no text"),
    ("x.jsonl", "prompt,completion\na,b\n", ":1: not JSON, it begins 'prompt,completion'; if this"),
    ("x.jsonl", "Name a tree.\nAn oak.\n", ":1: not JSON, it begins 'Name a tree.'; give one"),
  ],
)
def test_what_a_file_is_that_holds_no_records(tmp_path, name, content, sentence):
  path = tmp_path / name
  assert refusal(path, content).startswith(sentence)
  # Whatever is asked of it, it is said once.
  rows, problems = sources.examine(path, "prompt")
  assert not rows and len(problems) == 1
  with pytest.raises(UserError, match=r"x\.json"):
    sources.kind_of(path)


def test_where_a_compressed_file_is_cut_off(tmp_path):
  path = tmp_path / "x.jsonl.gz"
  content = gzip.compress(b'{"prompt": "p"}\n' * 100_000)
  path.write_bytes(content[:-20])
  count = 0
  with pytest.raises(UserError) as error:
    for _ in files.rows(path):
      count += 1
  assert f"after {count} whole lines" in str(error.value) and count > 90_000


def test_the_content_and_not_the_name_says_how_a_file_is_compressed(tmp_path):
  for compress in (gzip.compress, bz2.compress, lzma.compress):
    assert len(read(tmp_path / "x.jsonl", compress(LINES.encode()))) == 2
  two_members = gzip.compress(LINES.encode()) + gzip.compress(LINES.encode())
  assert len(read(tmp_path / "x.jsonl.gz", two_members)) == 4


@pytest.mark.parametrize("ending", COMPRESS)
def test_what_is_written_with_the_name_of_a_compression_is_compressed(tmp_path, ending):
  path = tmp_path / f"x.jsonl{ending}"
  rows = [Demonstration(**row) for row in ROWS]
  records.write(path, iter(rows))
  assert records.read(path, "demonstration") == rows
  assert path.read_bytes() != LINES.encode() or not ending
  content = path.read_bytes()
  records.write(path, rows)
  assert path.read_bytes() == content


# --- tables ---


def test_tables(tmp_path):
  table = tmp_path / "x.csv"
  content = '\ufeffprompt,completion,id\r\n"Say ""a"", or b",A,7\r\n\r\nc,,\r\n'
  assert read(table, content) == [
    (":2", {"prompt": 'Say "a", or b', "completion": "A", "id": "7"}),
    (":4", {"prompt": "c"}),
  ]
  # Where a comma stands in numbers, spreadsheets take a semicolon.
  assert read(table, "a;b\n1,5;2\n") == [(":2", {"a": "1,5", "b": "2"})]
  assert read(tmp_path / "x.tsv", "a\tb\n1,5\t2\n") == [(":2", {"a": "1,5", "b": "2"})]
  assert read(table, ",a\n0,b\n") == [(":2", {"column 1": "0", "a": "b"})]
  assert read(table, "a,b\n1\n1,2\n") == [
    (":2", "1 cells, the first line names 2"),
    (":3", {"a": "1", "b": "2"}),
  ]
  long = "x" * 200_000
  assert read(table, f"a\n{long}\n") == [(":2", {"a": long})]


@pytest.mark.parametrize(
  ("content", "sentence"),
  [
    ("", ":1: no header"),
    ("\na,b\n", ":1: no header"),
    ("a,b,a\n", ":1: two columns are called 'a'"),
    ('a,b\n1,2\n3,"4\n5,6\n', ":3: no row of a table (unexpected end of data)"),
    ('a,b\n1,"2"3\n', ":2: no row of a table"),
    (b"a,b\n1,2\n3,\xff\n", ":3: not UTF-8 from here on"),
  ],
)
def test_bad_tables(tmp_path, content, sentence):
  assert refusal(tmp_path / "x.csv", content).startswith(sentence)


# --- scanning ---


@FUZZ
@given(data=st.data())
def test_values_are_found_in_pieces_of_any_size(data):
  values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
  )
  all_values = data.draw(st.lists(values, max_size=4))
  gap = data.draw(st.sampled_from([" ", "\n", "\r\n\t "]))
  text = gap.join(json.dumps(value, ensure_ascii=data.draw(st.booleans())) for value in all_values)
  size = data.draw(st.integers(1, 9))
  pieces = [text[start : start + size] for start in range(0, len(text), size)]
  scanner = decoding.Scanner(iter(pieces))
  found = []
  while scanner.next_character():
    found.append(scanner.value())
  assert found == all_values
  assert scanner.line() == 1 + text.count("\n")


def test_no_more_than_a_value_and_a_piece_are_in_memory():
  row = '{"a": "' + "x" * 100 + '"}\n'
  scanner = decoding.Scanner(iter([row * 10] * 1000))
  longest = 0
  count = 0
  while scanner.next_character():
    scanner.value()
    count += 1
    longest = max(longest, len(scanner.text))
  assert count == 10_000 and longest <= 20 * len(row)


def test_an_error_in_the_middle_does_not_read_the_rest():
  pieces = iter(['{"a": oh}', *["x" * 100] * 50])
  with pytest.raises(json.JSONDecodeError):
    decoding.Scanner(pieces).value()
  assert len(list(pieces)) >= 49


# --- problems ---


def test_problems_of_one_sort_are_one_line():
  problems = Problems()
  for line in range(1, 1000):
    problems.add(f"x:{line}: not JSON (Expecting value at character {line}); write one")
  problems.add("x:1000: prompt: empty")
  assert problems.count == 1000
  assert problems.lines() == [
    "x:1: not JSON (Expecting value at character 1); write one (and 998 more like this)",
    "x:1000: prompt: empty",
  ]


def test_few_problems_are_listed_each_and_many_sorts_are_counted():
  few, many = Problems(), Problems()
  for line in range(20):
    few.add(f"x:{line}: a")
  assert few.lines() == [f"x:{line}: a" for line in range(20)]
  for number in range(3000):
    name = "".join(chr(97 + int(digit)) for digit in str(number))
    many.add(f"x:1: {name}")
  lines = many.lines()
  assert len(lines) == 21 and lines[-1] == "... and 2980 more problems"
  assert len(many.sorts) == 1000


# --- the places of records in later messages ---


def test_a_record_knows_where_it_was_read_and_nothing_else_changes(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text(LINES)
  first, second = records.read(path, "demonstration")
  assert (first.place, second.place) == (f"{path}:1", f"{path}:2")
  bare = Demonstration(**ROWS[0])
  assert first == bare and hash(first) == hash(bare) and repr(first) == repr(bare)
  assert records.fingerprint([first]) == records.fingerprint([bare])
  assert "place" not in records.as_row(first)
  path.write_text('{"prompt": "p", "completion": "c", "place": "x"}\n')
  with pytest.raises(UserError, match=":1: place: unknown field"):
    records.read(path, "demonstration")


def test_a_long_prompt_of_the_second_file_is_named_there(tmp_path):
  """And not at line 2 of both together."""
  row = {"prompt": "short", "completions": ["a", "b"], "ranks": [1, 2]}
  first, second = tmp_path / "m1.jsonl", tmp_path / "m2.json"
  first.write_text(json.dumps(row) + "\n")
  second.write_text(json.dumps([row, row | {"prompt": "x" * 200}]))
  source = f"{first},{second}"
  loaded: list[Comparison] = sources.load(source, "comparison")
  tokenizer = tokenizers.by_reference("bytes")
  with pytest.raises(UserError) as error:
    pipeline.comparisons(loaded, tokenizer, prompt=64, response=8, name=source)
  assert str(error.value).startswith(f"{second}[1].prompt: 200 tokens, the limit is 64")


def test_a_tree_is_named_by_the_line_of_its_message(tmp_path):
  """Record 1 of this file is made of the messages of its lines 2 to 4."""
  message = {"message_id": "0", "parent_id": None, "role": "prompter", "text": "Hm?"}
  asked = message | {"message_id": "1", "text": "Why?"}
  answers = [
    {"message_id": str(2 + rank), "parent_id": "1", "role": "assistant", "text": t, "rank": rank}
    for rank, t in enumerate(["So.", "No."])
  ]
  path = tmp_path / "trees.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in [message, asked, *answers]))
  (comparison,) = sources.load(path, "comparison", named.LAYOUTS["oasst"])
  assert comparison.place == f"{path}:2"


# --- folders of `datasets` ---


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "set").mkdir()
  (tmp_path / "set" / "dataset_info.json").write_text("{}")
  (tmp_path / "set" / "state.json").write_text("{}")
  return tmp_path / "set"


def test_a_folder_of_datasets_is_not_taken_for_tfds(folder, monkeypatch):
  module = types.ModuleType("datasets")
  monkeypatch.setattr(module, "load_from_disk", lambda place: ROWS, raising=False)
  monkeypatch.setitem(sys.modules, "datasets", module)
  rows = sources.load(folder, "demonstration")
  assert rows == [Demonstration(**row) for row in ROWS] and rows[1].place == f"{folder}:2"
  with pytest.raises(UserError, match="this folder has no splits; leave @test out"):
    sources.load(f"{folder}@test", "demonstration")
  monkeypatch.setattr(module, "load_from_disk", lambda place: {"test": ROWS, "valid": []})
  (folder / "state.json").rename(folder / "dataset_dict.json")
  assert len(sources.load(f"{folder}@test", "demonstration")) == 2
  with pytest.raises(UserError, match=r"set@train: no such split; there are test, valid"):
    sources.load(folder, "demonstration")
  monkeypatch.setattr(module, "load_from_disk", lambda place: Path("no arrow").read_bytes())
  with pytest.raises(UserError, match="set: cannot be opened by the datasets library"):
    sources.load(folder, "demonstration")


def test_a_folder_of_datasets_without_the_library(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(
    UserError, match=r"save_to_disk .* not installed; run pip install 'instructjax"
  ):
    sources.load(folder, "demonstration")


def test_a_real_folder_of_datasets(tmp_path):
  datasets = pytest.importorskip("datasets")
  datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
  both = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
  both.save_to_disk(str(tmp_path / "both"))
  expected = [Demonstration(**row) for row in ROWS]
  assert sources.load(tmp_path / "one", "demonstration") == expected
  assert sources.load(tmp_path / "both", "demonstration") == expected
