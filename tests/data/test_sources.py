"""Sources: files, prepared TFDS data sets through their random-access reader, and files of hub data sets."""

import sys
import types

import numpy as np
import pytest

from instructjax.data import formats, sources
from instructjax.data.records import Demonstration
from instructjax.errors import UserError


def test_a_file_is_read_in_its_spelling(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text('{"instruction": "Say a.", "input": "", "output": "a"}\n')
  (found,) = sources.load(path, "demonstration", formats.SPELLINGS["alpaca"])
  assert found.completion == "a" and "Say a." in found.prompt


# --- TFDS ---


class Datasets(types.ModuleType):
  """Stands in for tensorflow_datasets: `data_source` as its documentation has it, over rows in memory."""

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
  module = Datasets([{"prompt": b"a", "completion": np.bytes_(b"b").tolist()}, {"prompt": b"c", "completion": "d"}])
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
  return module


def test_tfds_rows_become_records_without_a_download(tfds, tmp_path):
  found = sources.load("tfds:mine/config@validation", "demonstration", folder=str(tmp_path))
  assert found == [Demonstration("a", "b"), Demonstration("c", "d")]
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


def test_without_the_package_the_message_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(UserError, match=r"pip install 'instructjax\[tfds\]'"):
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
    ("hub:owner/name", "give OWNER/NAME/path/file.jsonl"),
    ("hub:owner/name/absent.jsonl", r"cannot be fetched \(404\)"),
  ],
)
def test_hub_errors_are_one_line(hub, source, message):
  with pytest.raises(UserError, match=message) as caught:
    sources.load(source, "demonstration")
  assert "\n" not in str(caught.value)
