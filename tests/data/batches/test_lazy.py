"""Text that is tokenised when a row is asked for gives the same rows as text in memory."""

import gzip
import json
import os
import sys
import types

import numpy as np
import pytest
from letters import letters

from instructjax.data.batches import lazy, packing, pipeline
from instructjax.data.records import files, records, sources
from instructjax.errors import UserError

TEXTS = ["abc", "de", "", "f" * 30, "ghijklmnop", "q"]
RECORDS = [{"text": text or "x"} for text in TEXTS]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("INSTRUCTJAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "text.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in RECORDS))
  return path


def parquet(path, rows, group=2):
  pyarrow = pytest.importorskip("pyarrow")
  pyarrow_parquet = pytest.importorskip("pyarrow.parquet")
  pyarrow_parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def same(rows, expected):
  assert [(rows[i].ids.tolist(), rows[i].start) for i in range(len(rows))] == [
    (r.ids.tolist(), r.start) for r in expected
  ]


@pytest.mark.parametrize("bos", [(), (7,)])
@pytest.mark.parametrize("length", [3, 8, 20])
def test_rows_are_those_of_memory_token_for_token(file, bos, length):
  tokenizer, memory, texts = letters(bos), sources.load(file, "text"), lazy.texts(str(file))
  index = lazy.index(texts, tokenizer)
  same(
    lazy.windows(texts, index, tokenizer, length), pipeline.text(memory, tokenizer, length=length)
  )
  pieces = lazy.pieces(texts, index, tokenizer, length)
  same(pieces, pipeline.documents(memory, tokenizer, length=length))
  assert pieces.sizes.tolist() == [len(pieces[i].ids) for i in range(len(pieces))]
  packed = packing.pack(pieces, length, pieces.sizes)
  expected = packing.pack(pipeline.documents(memory, tokenizer, length=length), length)
  assert [numbers.tolist() for numbers in packed.bins] == [
    numbers.tolist() for numbers in expected.bins
  ]


def test_several_files_and_kinds_are_one_source(file, tmp_path):
  parquet(tmp_path / "more.parquet", RECORDS[::-1])
  source = f"{file},{tmp_path / 'more.parquet'}"
  texts = lazy.texts(source)
  assert list(texts) == sources.load(source, "text") == [texts[i] for i in range(12)]
  assert lazy.index(texts, letters()).fingerprint == records.fingerprint(
    sources.load(source, "text")
  )


def test_tokens_are_counted_once(file, cache, monkeypatch):
  tokenizer = letters()
  counted = lazy.index(lazy.texts(str(file)), tokenizer)
  assert counted.counts.tolist() == [4, 3, 2, 31, 11, 2]
  refuse = tokenizer._replace(encode=lambda text: pytest.fail("tokenised again"))
  again = lazy.index(lazy.texts(str(file)), refuse)
  np.testing.assert_array_equal(again.counts, counted.counts)
  assert again.fingerprint == counted.fingerprint
  assert len(list((cache / "counts").iterdir())) == 1
  lazy.index(lazy.texts(str(file)), tokenizer._replace(fingerprint="other"))
  lazy.index(lazy.texts(str(file), spelling_name="another spelling"), tokenizer)
  assert len(list((cache / "counts").iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_counted(file, cache):
  cache.write_text("a file")  # in the place of the folder; permissions do not stop root
  refuse = letters()._replace(encode=lambda text: pytest.fail("tokenised"))
  with pytest.raises(
    UserError,
    match=r"cache/counts: .* cannot be kept there \(Not a directory\); free .* INSTRUCTJAX_CACHE",
  ):
    lazy.index(lazy.texts(str(file)), refuse)


def test_a_full_disk_leaves_no_half_of_a_count(file, cache, monkeypatch):
  def full(file, **arrays):
    file.write(b"half")
    raise OSError(28, "No space left on device")

  with (
    monkeypatch.context() as patch,
    pytest.raises(UserError, match=r"counts: .*\(No space left on device\)"),
  ):
    patch.setattr(np, "savez", full)
    lazy.index(lazy.texts(str(file)), letters())
  assert not list((cache / "counts").iterdir())
  counted = lazy.index(lazy.texts(str(file)), letters())
  (path,) = (cache / "counts").iterdir()
  path.write_bytes(path.read_bytes()[:40])  # a damaged one is made again
  np.testing.assert_array_equal(lazy.index(lazy.texts(str(file)), letters()).counts, counted.counts)


def test_a_damaged_row_group_is_named_with_its_row(tmp_path):
  path = tmp_path / "t.parquet"
  parquet(path, [{"text": "abcdefgh" * 40 + str(i)} for i in range(6)])
  column = sys.modules["pyarrow.parquet"].ParquetFile(path).metadata.row_group(2).column(0)
  content, begin = bytearray(path.read_bytes()), column.dictionary_page_offset
  content[begin : begin + 60] = bytes(60)
  path.write_bytes(content)
  texts = lazy.texts(str(path))
  assert len(texts) == 6 and texts[0].text.endswith("h0")
  with pytest.raises(
    UserError, match=r"t\.parquet:5: cannot be read \(.*\); the file is damaged: put a whole copy"
  ):
    lazy.index(texts, letters())


def test_every_bad_document_is_named(file, tmp_path):
  file.write_text(file.read_text() + '{"txt": "a"}\n\n{"text": ""}\n{"text": "fine"}')
  with pytest.raises(UserError) as error:
    lazy.index(lazy.texts(str(file)), letters())
  lines = str(error.value).split("\n")
  assert [line.removeprefix(str(file)).split(":")[1] for line in lines] == ["7", "7", "8", "9"]
  assert "txt: unknown field" in lines[0]


def test_a_text_that_changed_is_noticed(file):
  tokenizer, texts = letters(), lazy.texts(str(file))
  index = lazy.index(texts, tokenizer)
  changed = lazy.Texts("t", (("t", [{"text": "abcd"}], sources.native),))
  with pytest.raises(
    UserError, match="t: document 1 has 5 tokens and had 4 when they were counted"
  ):
    lazy.windows(changed, index, tokenizer, 4)[0]


def test_what_does_not_fill_a_window(file):
  tokenizer, texts = letters(), lazy.texts(str(file))
  with pytest.raises(UserError, match="53 tokens do not fill a window of 99"):
    lazy.windows(texts, lazy.index(texts, tokenizer), tokenizer, 99)


def test_what_cannot_be_reached_by_number(tmp_path):
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
  with pytest.raises(
    UserError, match=r"a.jsonl.gz: cannot be read lazily; give a JSONL file that is not compressed"
  ):
    lazy.texts(str(tmp_path / "a.jsonl.gz"))
  with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
    lazy.texts(str(tmp_path / "none.jsonl"))
  for name in ("gs://bucket/a.jsonl", "hub:owner/name/a.parquet"):
    with pytest.raises(
      UserError,
      match=f"{name}: cannot be read lazily; give a JSONL file .* on this machine, or leave",
    ):
      lazy.by_number(sources.Part(name, list))


@pytest.mark.parametrize("use", [lazy.windows, lazy.pieces])
def test_an_empty_file_is_named_as_in_memory(file, tmp_path, use):
  (tmp_path / "none.jsonl").write_text("")
  for source in (tmp_path / "none.jsonl", f"{file},{tmp_path / 'none.jsonl'}"):
    with pytest.raises(UserError) as memory:
      sources.load(source, "text")
    with pytest.raises(UserError, match=r"none\.jsonl:1: an empty file, no records") as error:
      texts = lazy.texts(str(source))
      use(texts, lazy.index(texts, letters()), letters(), 8)
    assert str(error.value) == str(memory.value)


@pytest.mark.parametrize(
  ("content", "lines"),
  [
    (b"{}", [b"{}"]),
    (b"{}\n", [b"{}"]),
    (b"\xef\xbb\xbf{}\n\n[]", [b"{}", b"", b"[]"]),
    (b"{}\n\n \r\n", [b"{}"]),
    (b"{}\n\n ", [b"{}"]),
  ],
)
def test_lines_of_a_file(tmp_path, content, lines):
  path = tmp_path / "t.jsonl"
  path.write_bytes(content)
  rows = lazy.Lines(path)
  assert [rows[i] for i in range(len(rows))] == lines
  last = f"{path}:{len(lines)}"
  assert [place for place, _ in files.rows(path)][-1] == last


@pytest.mark.parametrize("content", [b'[{"text": "a"}]', b'{\n"text": "a"}', b"\x1f\x8b"])
def test_other_layouts_are_not_read_by_the_number_of_a_line(tmp_path, content):
  (tmp_path / "t.json").write_bytes(content)
  with pytest.raises(
    UserError, match=r"t\.json: cannot be read lazily; .* data convert writes one"
  ):
    lazy.Lines(tmp_path / "t.json")


def test_prepared_data_sets_are_reached_by_number(monkeypatch):
  module = types.ModuleType("tensorflow_datasets")
  module.data_source = lambda name, *, split, data_dir, download: [
    {"text": row["text"].encode()} for row in RECORDS
  ]
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
  tokenizer, texts = letters(), lazy.texts("tfds:mine")
  memory = sources.load("tfds:mine", "text")
  index = lazy.index(texts, tokenizer)
  same(lazy.windows(texts, index, tokenizer, 8), pipeline.text(memory, tokenizer, length=8))


class Prepared(list):
  """Rows as TFDS gives them, with where they were prepared."""

  def __init__(self, folder, rows):
    super().__init__(rows)
    self.dataset_info = types.SimpleNamespace(data_dir=str(folder))


def test_a_data_set_that_was_prepared_again_or_elsewhere_is_counted_again(tmp_path):
  def counts(name, text):
    rows = Prepared(tmp_path / name, [{"text": text}])
    return lazy.index(
      lazy.Texts("t", (("tfds:t@train", rows, sources.native),)), letters()
    ).counts.tolist()

  for name in "ab":
    (tmp_path / name).mkdir()
    (tmp_path / name / "dataset_info.json").write_text("{}")
  assert counts("a", "abc") == counts("a", "kept") == [4]
  assert counts("b", "abcd") == [5]
  os.utime(tmp_path / "a" / "dataset_info.json", ns=(1, 1))
  assert counts("a", "abcde") == [6]


def test_another_text_of_the_same_size_and_time_is_counted_again(file):
  before = lazy.index(lazy.texts(str(file)), letters())
  stat = file.stat()
  content = file.read_bytes()
  # "abc" and "de" become "ab" and "cde"; the file keeps its size, and gets its time back.
  changed = content.replace(b'"abc"', b'"ab"').replace(b'"de"', b'"cde"')
  assert len(changed) == len(content)
  file.write_bytes(changed)
  os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert file.stat().st_mtime_ns == stat.st_mtime_ns
  after = lazy.index(lazy.texts(str(file)), letters())
  assert before.counts.tolist()[:2] == [4, 3] and after.counts.tolist()[:2] == [3, 4]
  assert after.fingerprint != before.fingerprint


def test_the_same_text_with_another_time_is_not_counted_again(file):
  lazy.index(lazy.texts(str(file)), letters())
  os.utime(file, ns=(1, 1))
  refuse = letters()._replace(encode=lambda text: pytest.fail("tokenised again"))
  lazy.index(lazy.texts(str(file)), refuse)


def test_a_document_that_spells_a_special_token_is_named_before_the_run(file, tmp_path):
  more = tmp_path / "more.jsonl"
  more.write_text('{"text": "ab"}\n{"text": "a#b"}\n')
  texts = lazy.texts(f"{file},{more}")
  with pytest.raises(UserError) as error:
    lazy.index(texts, letters())
  assert f"{more}:2: text: holds the special tokens '#'" in str(error.value)
  chatty = letters()._replace(eos=(3,), specials={"<|im_end|>": 3, "<|endoftext|>": 4})
  index, memory = lazy.index(lazy.texts(str(file)), chatty), sources.load(str(file), "text")
  same(
    lazy.windows(lazy.texts(str(file)), index, chatty, 8),
    pipeline.text(memory, chatty, length=8),
  )
