"""A user's own Python function by its name: `FILE.py:FUNCTION` or `package.module:FUNCTION`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from instructjax.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent


def find(target: str) -> tuple[Callable[..., Any], Path]:
  """Returns a function and the file in which it is defined.

  Raises:
    UserError: there is no such file, module or function, or importing it failed.
  """
  place, _, name = target.rpartition(":")
  module = _import(place)
  function = getattr(module, name, None)
  if not callable(function):
    functions = sorted(
      word for word, value in vars(module).items() if callable(value) and not word.startswith("_")
    )
    raise UserError(
      f"{target}: {place} has no function {name!r}; it has {', '.join(functions) or 'none'}"
    )
  # Modules that are built into Python have no file.
  file = getattr(module, "__file__", None) or place
  return function, Path(file).resolve()


def _import(place: str) -> ModuleType:
  """Imports a module by its file or its name."""
  is_file = place.endswith(".py")
  file = Path(place)
  if is_file and not file.is_file():
    raise UserError(
      f"{place}: no such file; give the path of a Python file from here, {Path.cwd()}"
    )
  # The module may import its neighbours. Their folder comes last in the import path, so that
  # they cannot hide installed packages.
  folder = file.resolve().parent if is_file else Path.cwd()
  if str(folder) not in sys.path:
    sys.path.append(str(folder))
  try:
    return _import_file(file) if is_file else importlib.import_module(place)
  # A user's module may raise anything while it is imported.
  except Exception as error:
    # The name itself, or a package above it, is missing: not something that the module imports.
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{place}.".startswith(f"{missing}."):
      raise UserError(
        f"{place}: Python finds no module '{missing}'; give the path of a .py file, or install it"
      ) from error
    if isinstance(error, SyntaxError):
      where = f"{error.filename}:{error.lineno}"
    else:
      where = innermost(error, folder)
    raise UserError(f"{place}: importing it raised {described(error)} at {where}") from error


def _import_file(file: Path) -> ModuleType:
  """Imports a .py file as a module of its own name, so that it replaces no other module."""
  spec = importlib.util.spec_from_file_location(f"instructjax_user_{file.stem}", file)
  assert spec is not None and spec.loader is not None  # a .py file always has both
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses and pickle look there
  spec.loader.exec_module(module)
  return module


def described(error: Exception) -> str:
  """Returns the type and the first line of an error."""
  text = str(error).strip().partition("\n")[0]
  name = type(error).__name__
  return f"{name}: {text}" if text else name


def innermost(error: Exception, folder: Path) -> str:
  """Returns file:line of the deepest frame of the user's own code, which is where to look.

  Where no frame is in the user's folder, it is the deepest frame outside this package and the
  import system, and failing that the deepest of all.
  """
  frames = list(traceback.extract_tb(error.__traceback__))
  outside = [frame for frame in frames if not _is_ours(frame.filename)]
  inside = [frame for frame in outside if _is_in(folder, frame.filename)]
  deepest = (inside or outside or frames)[-1]
  return f"{deepest.filename}:{deepest.lineno}"


def _is_ours(filename: str) -> bool:
  """Returns whether a frame belongs to this package or the import system."""
  return PACKAGE in Path(filename).resolve().parents or "importlib" in filename


def _is_in(folder: Path, filename: str) -> bool:
  """Returns whether a frame belongs to the user's folder and not to an installed package."""
  # A virtual environment often is in the user's folder.
  return folder in Path(filename).resolve().parents and "site-packages" not in filename
