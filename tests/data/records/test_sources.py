"""Sources: files, prepared TFDS data sets through their random-access reader, and the hub."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from instructjax.data.records import formats, sources
from instructjax.data.records.records import Demonstration
from instructjax.errors import UserError


def test_a_file_is_read_in_its_spelling(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text('{"instruction": "Say a.", "input": "", "output": "a"}\n')
  (demonstration,) = sources.load(path, "demonstration", formats.SPELLINGS["alpaca"])
  assert demonstration.completion == "a"
  assert "Say a." in demonstration.prompt


# --- TFDS ---


class Datasets(types.ModuleType):
  """A stand-in for tensorflow_datasets: its `data_source`, over rows in memory."""

  def __init__(self, rows):
    super().__init__("tensorflow_datasets")
    self.rows, self.calls = rows, []

  def data_source(self, name, *, split, data_dir, download):
    self.calls.append((name, split, data_dir, download))
    if name == "absent":
      raise ValueError("Dataset absent: could not find data\nand more lines")
    return self.rows


@pytest.fixture
def tfds(monkeypatch):
  module = Datasets(
    [{"prompt": b"a", "completion": np.bytes_(b"b").tolist()}, {"prompt": b"c", "completion": "d"}]
  )
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
  return module


def test_tfds_rows_become_records_without_a_download(tfds, tmp_path):
  rows = sources.load("tfds:mine/config@validation", "demonstration", folder=str(tmp_path))
  assert rows == [Demonstration("a", "b"), Demonstration("c", "d")]
  assert tfds.calls == [("mine/config", "validation", str(tmp_path), False)]


def test_a_bad_tfds_row_is_named(tfds):
  tfds.rows.append({"prompt": b"x"})
  with pytest.raises(UserError, match="tfds:mine@train:3: completion: missing"):
    sources.load("tfds:mine", "demonstration")


def test_a_data_set_that_is_not_prepared_has_a_remedy(tfds):
  with pytest.raises(UserError) as caught:
    sources.load("tfds:absent", "demonstration")
  assert "could not find data" in str(caught.value) and "download_and_prepare" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_without_the_package_the_message_names_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(UserError, match=r"pip install tensorflow-datasets"):
    sources.load("tfds:mine", "demonstration")


def test_plain_values():
  value = {"a": np.asarray([1, 2]), "b": [b"x", ("y", np.float32(0.5))], "c": None}
  assert sources.plain(value) == {"a": [1, 2], "b": ["x", ["y", 0.5]], "c": None}


# --- the hub ---


@pytest.fixture
def hub(monkeypatch, tmp_path):
  import huggingface_hub

  def fetch(repo, file, repo_type):
    assert (repo, repo_type) == ("owner/name", "dataset")
    if file == "absent.jsonl":
      raise OSError("404\nlong story")
    return str(tmp_path / file)

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
  return tmp_path


def test_a_hub_file_is_read(hub):
  (hub / "x.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
  assert sources.load("hub:owner/name/x.jsonl", "demonstration") == [Demonstration("a", "b")]


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("hub:owner", "give OWNER/NAME/path/file.jsonl"),
    ("hub:owner/name/absent.jsonl", r"cannot be fetched \(404\)"),
  ],
)
def test_hub_errors_are_one_line(hub, source, message):
  with pytest.raises(UserError, match=message) as caught:
    sources.load(source, "demonstration")
  assert "\n" not in str(caught.value)


# --- hub data sets through the `datasets` library ---


def test_a_hub_data_set_with_configuration_and_split(monkeypatch):
  calls = []
  module = types.ModuleType("datasets")
  module.load_dataset = lambda *args, **more: (
    calls.append((args, more)) or [{"prompt": "a", "completion": "b"}]
  )
  monkeypatch.setitem(sys.modules, "datasets", module)
  assert sources.load("hub:owner/name/sub@test", "demonstration") == [Demonstration("a", "b")]
  assert sources.load("hub:owner/name", "demonstration") == [Demonstration("a", "b")]
  assert calls == [
    (("owner/name", "sub"), {"split": "test"}),
    (("owner/name", None), {"split": "train"}),
  ]


def test_without_the_datasets_library_a_file_is_the_remedy(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(
    UserError, match=r"pip install 'instructjax\[hub\]', or give OWNER/NAME/path/file.jsonl"
  ):
    sources.load("hub:owner/name", "demonstration")


# --- several files, Parquet, buckets ---


def test_commas_and_patterns_join_files_and_name_each(tmp_path):
  pq = pytest.importorskip("pyarrow.parquet")
  pa = pytest.importorskip("pyarrow")
  for name, text in (("a1.jsonl", "1"), ("a2.jsonl", "2")):
    (tmp_path / name).write_text(f'{{"prompt": "{text}"}}\n')
  rows = [{"prompt": str(i)} for i in range(3, 8)]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet", row_group_size=2)
  rows_of_all = sources.load(f"{tmp_path}/a*.jsonl, {tmp_path}/b.parquet", "prompt")
  assert [row.prompt for row in rows_of_all] == ["1", "2", "3", "4", "5", "6", "7"]
  pq.write_table(
    pa.Table.from_pylist([*rows, {"prompt": ""}]), tmp_path / "b.parquet", row_group_size=2
  )
  (tmp_path / "a1.jsonl").write_text("x\n")
  _, problems = sources.examine(f"{tmp_path}/a*.jsonl,{tmp_path}/b.parquet", "prompt")
  assert [problem.split(": ")[0] for problem in problems] == [
    f"{tmp_path}/a1.jsonl:1",
    f"{tmp_path}/b.parquet:6",
  ]


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("{}/*.json", "no file has such a name"),
    ("{}/a.jsonl,", "between two commas"),
    ("{}/no.parquet", "no such file; give a Parquet file"),
    ("{}/bad.parquet", "cannot be read .*; give a Parquet file"),
    ("tfds-dir:{}", "holds no dataset_info.json"),
    ("gs://bucket/x.jsonl", "gcsfs|cannot be re"),
    ("x://y/z.jsonl", "x:"),
  ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, source, message):
  (tmp_path / "bad.parquet").write_bytes(b"no parquet")
  (tmp_path / "a.jsonl").touch()
  if source.startswith("gs:") and importlib.util.find_spec("gcsfs"):
    pytest.skip("gcsfs would go to the network")
  with pytest.raises(UserError, match=message) as caught:
    sources.load(source.format(tmp_path), "prompt")
  assert "\n" not in str(caught.value)


def test_bytes_that_are_no_utf8_are_a_problem_of_their_row(tfds):
  tfds.rows[1]["completion"] = b"\xff"
  with pytest.raises(UserError, match="tfds:mine@train:2: completion: half a surrogate pair"):
    sources.load("tfds:mine", "demonstration")
