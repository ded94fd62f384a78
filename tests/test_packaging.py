"""The package that is built holds every folder of code, and configs/ beside them."""

import importlib.metadata
import tomllib
from pathlib import Path

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
