"""The notebooks: each teaches one topic, shows what it printed, and runs from a wheel."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "colab"
# The notebooks that keep what they printed.
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SHOWN = [name for name in NAMES if name != "quickstart"]
BADGE = "https://colab.research.google.com/github/{owner}/instructjax/blob/main/colab/{name}.ipynb"
ADDRESS = "git+https://github.com/{owner}/instructjax"


def cells(name: str, kind: str = "") -> list[dict]:
  notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
  return [cell for cell in notebook["cells"] if kind in ("", cell["cell_type"])]


def source(cell: dict) -> str:
  return "".join(cell["source"])


def is_code(line: str) -> bool:
  """Whether a line is neither empty, nor a comment, nor an import."""
  words = line.split()
  return bool(words) and not words[0].startswith("#") and words[0] not in ("import", "from")


def owners(folder: Path) -> set[str]:
  """The accounts that the notebooks of a folder and its table name."""
  names = set()
  for path in [*folder.glob("*.ipynb"), folder / "README.md"]:
    before, *rest = path.read_text().split("/instructjax")
    for part in rest:
      account = before.rpartition("/")[2]
      if before.endswith((f"github/{account}", f"github.com/{account}")):
        names.add(account)
      before = part
  return names


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_short_and_says_what_it_takes(name):
  assert 10 <= len(cells(name)) <= 25
  code = [source(cell) for cell in cells(name, "code")]
  assert sum(is_code(line) for cell in code for line in cell.splitlines()) < 90
  head = source(cells(name)[0])
  [owner] = owners(FOLDER)
  assert f"({BADGE.format(owner=owner, name=name)})" in head
  assert "**Runtime:**" in head
  text = " ".join(source(cell) for cell in cells(name, "markdown"))
  assert len(text.split()) > 250
  choices = "".join(code[1:]).count("# @param")
  assert choices >= 2


@pytest.mark.parametrize("name", NAMES)
def test_all_notebooks_install_in_the_same_way(name):
  assert source(cells(name, "code")[0]) == source(cells("losses", "code")[0])
  paragraphs = [source(cells(notebook)[0]).rpartition("\n\n")[2] for notebook in (name, "losses")]
  assert paragraphs[0] == paragraphs[1]


def test_one_command_puts_an_account_in_all_notebooks(tmp_path):
  """The command of colab/README.md; no badge and no address is left out."""
  readme = (FOLDER / "README.md").read_text()
  command = readme.partition("```bash\n")[2].partition("\n```")[0]
  [owner] = owners(FOLDER)
  shutil.copytree(FOLDER, tmp_path / "colab")
  command = command.replace("YOU", "somebody")
  subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
  assert owners(tmp_path / "colab") == {"somebody"}
  for name in NAMES:
    changed = (tmp_path / "colab" / f"{name}.ipynb").read_text()
    assert changed.count("somebody") == 2, name
    assert ADDRESS.format(owner="somebody") in changed
    assert BADGE.format(owner="somebody", name=name) in changed
    assert f"/{owner}/" not in changed


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


@pytest.mark.parametrize(
  ("files", "requirement"),
  [((), ADDRESS), (("instructjax-1.2-py3-none-any.whl",), "instructjax-1.2-py3-none-any.whl")],
)
def test_installing_pins_the_jax_that_is_there(files, requirement, tmp_path, monkeypatch):
  """Neither jax nor its plugin is replaced, and a wheel that lies there is preferred."""
  lines = source(cells("losses", "code")[0]).splitlines()
  freeze = '  !pip freeze | grep -iE "^(jax|libtpu)" > pins.txt'
  assert lines[-2:] == [freeze, '  %pip install -q -c pins.txt "{package}" matplotlib']
  monkeypatch.chdir(tmp_path)
  for file in files:
    (tmp_path / file).touch()
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  names = {}
  exec("\n".join(line for line in lines if line not in lines[-2:]), names)
  [owner] = owners(FOLDER)
  assert names["package"] == requirement.format(owner=owner)
  packages = "flax==1\njax==0.10.2\njax-cuda12-plugin==0.10.2\njaxlib==0.10.2\nlibtpu==0.0.42\n"
  filter_command = freeze.partition("| ")[2]
  subprocess.run(["bash", "-c", filter_command], input=packages, text=True, check=True)
  assert (tmp_path / "pins.txt").read_text() == packages.removeprefix("flax==1\n")


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


@pytest.mark.release
@pytest.mark.first
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
