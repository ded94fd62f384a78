"""The notebook: short, and executed as it stands in its fast form."""

import importlib.util
import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

NOTEBOOK = Path(__file__).parent.parent / "colab" / "quickstart.ipynb"


def code() -> list[str]:
  cells = json.loads(NOTEBOOK.read_text())["cells"]
  return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_notebook_is_short_and_holds_no_output():
  assert sum(len([line for line in cell.splitlines() if line.strip()]) for cell in code()) < 90
  cells = json.loads(NOTEBOOK.read_text())["cells"]
  assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the kernel's own machinery
def test_notebook_runs(tmp_path, monkeypatch):
  nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
  monkeypatch.setenv("INSTRUCTJAX_FAST", "1")
  monkeypatch.setenv("INSTRUCTJAX_WORKDIR", str(tmp_path / "run"))
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbclient.NotebookClient(
    notebook, timeout=2400, resources={"metadata": {"path": str(tmp_path)}}
  ).execute()
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert results["rm"]["pair_accuracy"]["value"] > 0.5
  assert (tmp_path / "run" / "report.html").is_file()
  printed = json.dumps(notebook.cells[-1]["outputs"])
  assert all(name in printed for name in ("base", "sft", "ppo", "ptx"))


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
  cell = code()[0]
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
