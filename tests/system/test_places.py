"""Paths of this machine and addresses of buckets."""

from pathlib import Path

import pytest
from etils import epath

from instructjax.errors import UserError
from instructjax.system import atomic, places


def test_an_address_is_told_from_a_path():
  schemes = {
    "gs://bucket/run": "gs",
    "gs:/bucket/run": "gs",  # what a Path makes of it
    "s3://bucket/run": "s3",
    "runs/sft": "",
    "/runs/a:/b": "",
    "C:/runs": "",
    "./gs:/x": "",
    "": "",
  }
  assert {place: places.scheme(place) for place in schemes} == schemes


def test_a_directory_is_a_path_or_one_of_etils(bucket):
  assert places.directory("runs/sft") == Path("runs/sft")
  for address in ("gs://bucket/run", Path("gs://bucket/run"), epath.Path("gs://bucket/run")):
    folder = places.directory(address)
    assert isinstance(folder, epath.Path)
    assert str(folder) == str(places.absolute(address)) == "gs://bucket/run"
    assert str(folder / "a" / "b") == "gs://bucket/run/a/b"
  assert places.absolute("runs/sft") == Path.cwd() / "runs" / "sft"


def test_other_addresses_are_refused():
  message = r"s3://bucket/run: runs are written .* give a path, or mount"
  with pytest.raises(UserError, match=message):
    places.directory("s3://bucket/run")
  with pytest.raises(UserError, match=r"--out=gs://b/x: .*give a path, or mount the bucket"):
    places.require_local("gs://b/x", "--out")


def test_missing_packages_are_named(monkeypatch):
  monkeypatch.setattr(places, "PACKAGES", ("json", "no_such_package", "no_such.package.inside"))
  message = r"gs://b/x: no_such_package and no_such.package.inside open .*'instructjax\[gcs\]'"
  with pytest.raises(UserError, match=message):
    places.directory("gs://b/x")


def test_an_object_is_written_whole_or_not_at_all(bucket):
  path = places.directory("gs://bucket/run/config.json")
  atomic.replace(path, "before")
  with pytest.raises(RuntimeError), atomic.replacing(path) as file:
    file.write(b"half")
    raise RuntimeError
  assert bucket.file("gs://bucket/run/config.json").read_text() == "before"
  assert bucket.writes == ["gs://bucket/run/config.json"]


def test_an_error_of_a_client_is_one_line(bucket):
  class HttpError(Exception):
    """The clients of buckets have types of their own."""

  path = places.directory("gs://bucket/run")
  message = r"^gs://bucket/run: cannot be reached \(403\); check the name"
  with pytest.raises(UserError, match=message), places.reaching(path):
    raise HttpError("403\nand more")
  with pytest.raises(FileNotFoundError), places.reaching(path):
    raise FileNotFoundError
  with pytest.raises(HttpError), places.reaching(Path("run")):
    raise HttpError


def test_a_folder_is_filled_by_programs_that_know_paths_only(bucket, tmp_path):
  for place in ("gs://bucket/run/adapter", str(tmp_path / "adapter")):
    folder = places.directory(place)
    with places.filling(folder) as local:
      assert isinstance(local, Path)
      (local / "a").write_bytes(b"1")
    assert (folder / "a").read_bytes() == b"1"
    places.remove(folder)
    assert not folder.exists()
    places.remove(folder)
