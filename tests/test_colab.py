"""The notebook: short, and executed as it stands in its fast form."""

import json
from pathlib import Path

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
