"""What can be said of a model without opening it."""

import json
import sys

import pytest

from instructjax.errors import UserError
from instructjax.evals import scorers
from instructjax.runs import provenance


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A function that puts a commit of owner/name into the hub's cache, as a download does."""
  constants = pytest.importorskip("huggingface_hub.constants")
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

  def fetched(commit):
    place = tmp_path / "hub" / "models--owner--name"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    (place / "snapshots" / commit / "config.json").write_text("{}")

  return fetched


def test_of_a_hub_id_the_commit_in_the_cache_is_known(hub):
  judge = "classifier:owner/name#POSITIVE"
  assert provenance.digest("owner/name") == ""
  hub("a" * 40)
  assert provenance.digest("owner/name") == "a" * 40 and provenance.digest("owner/other") == ""
  before = scorers.identity(judge)
  assert provenance.doubtful(
    {"source": "owner/name", "files": "a" * 40}, "owner/name#prefix=few.txt"
  )  # another source
  assert not provenance.doubtful({"source": "owner/name", "files": "a" * 40}, "owner/name")
  hub("b" * 40)
  assert provenance.doubtful({"source": "owner/name", "files": "a" * 40}, "owner/name")
  assert scorers.identity(judge) != before  # scores of the old one are not taken for its


@pytest.mark.parametrize(
  "source", ["", "none.gguf", "runs/none", "a--b", "no such:thing", "https://x/y"]
)
def test_of_what_is_not_here_nothing_is_known(source, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert provenance.digest(source) == ""
  assert not provenance.doubtful(None, source)


def test_without_the_library_of_the_hub_nothing_is_known_of_its_models(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  assert provenance.digest("owner/name") == ""


def test_a_python_function_is_its_file(tmp_path):
  (tmp_path / "my.py").write_text("def build():\n  return 1\n")
  before = provenance.digest(f"{tmp_path}/my.py:build")
  (tmp_path / "my.py").write_text("def build():\n  return 2\n")
  assert "" != before != provenance.digest(f"{tmp_path}/my.py:build") != ""


def test_another_model_under_a_name_is_an_error(tmp_path):
  (tmp_path / "manifest.json").write_text(
    json.dumps({"models": {"sft": {"source": "runs/a", "weights": "1"}}})
  )
  provenance.compare(tmp_path, "sft", {"source": "runs/b", "weights": "1"})
  provenance.compare(tmp_path, "ppo", {"source": "runs/b", "weights": "2"})
  with pytest.raises(
    UserError,
    match=r"sft=runs/b has other weights than the sft=runs/a that answered in .* before; give it",
  ):
    provenance.compare(tmp_path, "sft", {"source": "runs/b", "weights": "2"})


def test_another_prefix_before_the_prompts_of_a_model_is_an_error(tmp_path):
  facts = {"source": "m#prefix=a.txt", "weights": "1"}
  models = {"p": facts | {"prefix": "x"}, "old": facts, "bare": facts | {"source": "m"}}
  (tmp_path / "manifest.json").write_text(json.dumps({"models": models}))
  now = lambda prefix: {"source": "m#prefix=b.txt", "weights": "1", "prefix": prefix}
  for name, prefix in {"p": "x", "old": "y"}.items():  # "old" is of a version that noted no prefix
    provenance.compare(tmp_path, name, now(prefix))
  for name, changed in {"p": now("y"), "bare": now("x")}.items():
    with pytest.raises(
      UserError, match=rf"{name}=m#prefix=b.txt has another prefix than the {name}=m"
    ):
      provenance.compare(tmp_path, name, changed)
  with pytest.raises(UserError, match="another prefix"):
    provenance.compare(tmp_path, "p", {"source": "m", "weights": "1"})


def test_every_digest_is_as_long(tmp_path):
  """A run, a folder and a file: 16 digits each; the fingerprint of what is not here is empty."""
  run, folder = tmp_path / "run", tmp_path / "folder"
  for each, name in ((run, "manifest.json"), (folder, "weights")):
    each.mkdir()
    (each / name).write_text("x")
  digests = [provenance.digest(str(path)) for path in (run, folder, folder / "weights")]
  assert [len(digest) for digest in digests] == [16, 16, 16] and len(set(digests)) == 3
