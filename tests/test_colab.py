"""The notebooks: each teaches one topic, shows what it printed, and runs from a wheel."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "colab"
# The notebooks that keep what they printed.
SHOWN = sorted(path.stem for path in FOLDER.glob("*.ipynb") if path.stem != "quickstart")
BADGE = "https://colab.research.google.com/github/OWNER/instructjax/blob/main/colab/"


def cells(name: str, kind: str = "") -> list[dict]:
  notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
  return [cell for cell in notebook["cells"] if kind in ("", cell["cell_type"])]


def source(cell: dict) -> str:
  return "".join(cell["source"])


def is_code(line: str) -> bool:
  """Whether a line is neither empty, nor a comment, nor an import."""
  words = line.split()
  return bool(words) and not words[0].startswith("#") and words[0] not in ("import", "from")


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_is_short_and_says_what_it_takes(name):
  assert 10 <= len(cells(name)) <= 25
  code = [source(cell) for cell in cells(name, "code")]
  assert sum(is_code(line) for cell in code for line in cell.splitlines()) < 90
  head = source(cells(name)[0])
  assert f"({BADGE}{name}.ipynb)" in head
  assert "**Runtime:**" in head
  text = " ".join(source(cell) for cell in cells(name, "markdown"))
  assert len(text.split()) > 250
  assert any("# @param" in cell for cell in code[1:])
  # All of them install in the same way.
  assert code[0] == source(cells("losses", "code")[0])


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_shows_what_a_run_printed(name):
  code = cells(name, "code")
  assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
  outputs = [output for cell in code for output in cell["outputs"]]
  kinds = {output["output_type"] for output in outputs}
  assert "error" not in kinds
  assert all(output.get("name") != "stderr" for output in outputs)
  assert any("image/png" in output.get("data", {}) for output in outputs)
  printed = "".join("".join(output.get("text", "")) for output in outputs)
  assert not any(place in printed for place in ("/work", "/tmp", "/home", "/root"))
  # The minutes that the text states are those that the run printed last.
  minutes = printed.split()[-2]
  assert f"**Time:** {minutes} minutes" in source(cells(name)[0])


def test_the_table_names_every_notebook():
  table = (FOLDER / "README.md").read_text()
  for path in FOLDER.glob("*.ipynb"):
    assert f"]({path.name})" in table, path.name


def test_links_between_notebooks_lead_somewhere():
  for path in FOLDER.glob("*.ipynb"):
    text = "".join(source(cell) for cell in cells(path.stem, "markdown"))
    for link in text.split("](")[1:]:
      target = link.partition(")")[0]
      assert target.startswith("http") or (FOLDER / target).exists(), (path.name, target)


def test_installing_pins_the_jax_that_is_there():
  lines = source(cells("losses", "code")[0]).splitlines()
  commands = [line.strip() for line in lines if line.strip().startswith(("!", "%"))]
  assert commands == [
    '!pip freeze | grep -iE "^(jax|libtpu)" > pins.txt',
    '%pip install -q -c pins.txt "{SOURCE}" matplotlib',
  ]


INSTALL = '%pip install -q "{package}"'


@pytest.mark.parametrize(
  ("packages", "repository", "requirement", "says_older"),
  [
    ({}, "..", "..", False),
    ({"jax": "0.10.2", "jax_cuda12_plugin": "0.10.2"}, "..", "..[cuda12]", False),
    ({"jax": "0.7.2", "jax-cuda13-plugin": "0.7.2"}, "a.whl", "a.whl[cuda13]", True),
    (
      {"jax": "0.11.0.dev1", "libtpu": "0.0.50"},
      "git+https://host/a",
      "instructjax[tpu] @ git+https://host/a",
      False,
    ),
  ],
)
def test_installing_keeps_the_plugin_of_jax(
  packages, repository, requirement, says_older, monkeypatch, capsys
):
  """A jax that is replaced takes its plugin along, so that no accelerator is lost."""
  cell = source(cells("quickstart", "code")[0])
  assert cell.count(INSTALL) == 1
  installed = [SimpleNamespace(name=name, version=number) for name, number in packages.items()]
  monkeypatch.setattr(metadata, "distributions", lambda: installed)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setenv("INSTRUCTJAX_REPOSITORY", repository)
  names = {}
  exec(cell.replace(INSTALL, ""), names)
  assert names["package"] == requirement
  output = capsys.readouterr().out
  assert (output.count("\n") == 1 and packages["jax"] in output) if says_older else output == ""


def execute(name: str, folder: Path) -> list[dict]:
  """Executes a notebook in an empty folder and returns its cells."""
  nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
  notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
  folder.mkdir()
  resources = {"metadata": {"path": str(folder)}}
  nbclient.NotebookClient(notebook, timeout=1800, resources=resources).execute()
  return notebook.cells


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """A folder with the package as its wheel has it, and nothing else of the clone."""
  place = tmp_path_factory.mktemp("wheel")
  sources = place / "sources"
  tracked = subprocess.run(
    ["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True, text=True
  ).stdout
  for name in tracked.split("\0"):
    if name and (ROOT / name).is_file():
      (sources / name).parent.mkdir(parents=True, exist_ok=True)
      (sources / name).write_bytes((ROOT / name).read_bytes())
  command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
  subprocess.run([*command, str(place), str(sources)], check=True)
  [path] = place.glob("instructjax-*.whl")
  with zipfile.ZipFile(path) as archive:
    archive.extractall(place / "package")
  return place / "package"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the kernel's own machinery
@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs_from_a_wheel_in_an_empty_folder(name, wheel, tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(wheel))
  monkeypatch.setenv("INSTRUCTJAX_SIZE", "fast")
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  run = execute(name, tmp_path / "empty")
  assert "minutes" in json.dumps([cell.get("outputs", []) for cell in run[-2:]])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the kernel's own machinery
def test_the_quickstart_runs(wheel, tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(wheel))
  monkeypatch.setenv("INSTRUCTJAX_FAST", "1")
  monkeypatch.setenv("INSTRUCTJAX_WORKDIR", str(tmp_path / "run"))
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  run = execute("quickstart", tmp_path / "empty")
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert results["rm"]["pair_accuracy"]["value"] > 0.5
  assert (tmp_path / "run" / "report.html").is_file()
  printed = json.dumps([cell.get("outputs", []) for cell in run])
  assert all(name in printed for name in ("base", "sft", "ppo", "ptx"))
