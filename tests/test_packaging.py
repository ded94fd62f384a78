"""The package that is built holds every folder of code, and configs/ beside them."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import instructjax

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOOL = SETTINGS["tool"]["setuptools"]


def test_the_packages_are_the_folders_of_code():
  folders = {path.parent.relative_to(ROOT) for path in (ROOT / "instructjax").rglob("__init__.py")}
  names = {".".join(folder.parts) for folder in folders}
  assert sorted(TOOL["packages"]) == sorted(names | {"instructjax.configs"})
  assert TOOL["packages"] == sorted(TOOL["packages"])


def test_every_folder_of_code_is_a_package():
  code = {path.parent for path in (ROOT / "instructjax").rglob("*.py")}
  assert all((folder / "__init__.py").is_file() for folder in code)


def test_configs_stand_at_the_top_and_are_importable():
  assert TOOL["package-dir"] == {"instructjax.configs": "configs"}
  assert (ROOT / "configs" / "__init__.py").is_file()


def test_the_files_beside_the_code_are_carried():
  """Each file of the package that is no code matches a pattern of package-data."""
  package = ROOT / "instructjax"
  carried = {
    path for pattern in TOOL["package-data"]["instructjax"] for path in package.glob(pattern)
  }
  files = {
    path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
  }
  assert {path for path in files if path.suffix != ".py"} <= carried


def test_the_extras_of_devices_are_names_that_jax_has():
  extras = SETTINGS["project"]["optional-dependencies"]
  of_jax = importlib.metadata.metadata("jax").get_all("Provides-Extra")
  for name in ("tpu", "cuda", "cuda12", "cuda13"):
    (requirement,) = extras[name]
    package, _, rest = requirement.partition("[")
    assert package == "jax"
    assert rest.partition("]")[0] in of_jax


def test_the_version_is_the_same_everywhere():
  version = instructjax.__version__
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert project["version"] == version
  assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
  assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_promised_modules_are_there_and_load_when_they_are_named():
  program = (
    "import sys, instructjax\n"
    "assert 'jax' not in sys.modules\n"
    "instructjax.losses.ranking\n"
    "assert set(instructjax.__all__) <= set(dir(instructjax))\n"
  )
  subprocess.run([sys.executable, "-c", program], check=True)
  assert instructjax.__all__ == sorted(instructjax.__all__)
  for name in instructjax.__all__:
    assert getattr(instructjax, name).__name__ == f"instructjax.{name}"
  misspelt = "loses"
  with pytest.raises(AttributeError, match="no attribute 'loses'"):
    getattr(instructjax, misspelt)
