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


def find(target: str) -> tuple[Callable[..., Any], Path]:
  """(the function, the file it stands in).

  Raises UserError where there is no such file, module or function, and where importing it fails.
  """
  place, _, name = target.rpartition(":")
  module = _module(place)
  function = getattr(module, name, None)
  if not callable(function):
    known = sorted(
      word for word, value in vars(module).items() if callable(value) and not word.startswith("_")
    )
    raise UserError(
      f"{target}: {place} has no function {name!r}; it has {', '.join(known) or 'none'}"
    )
  return function, Path(getattr(module, "__file__", None) or place).resolve()


def _module(place: str) -> ModuleType:
  """A module by its file or its name.  Its folder joins the end of the import path, as its
  neighbours may be imported.
  """
  file = Path(place)
  folder = str(file.resolve().parent if place.endswith(".py") else Path.cwd())
  if place.endswith(".py") and not file.is_file():
    raise UserError(
      f"{place}: no such file; give the path of a Python file from here, {Path.cwd()}"
    )
  if folder not in sys.path:
    sys.path.append(folder)
  try:
    if not place.endswith(".py"):
      return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(f"instructjax_user_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # of a .py file there always are
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look there
    spec.loader.exec_module(module)
    return module
  except Exception as error:
    if (
      isinstance(error, ModuleNotFoundError)
      and error.name
      and f"{place}.".startswith(f"{error.name}.")
    ):
      raise UserError(
        f"{place}: Python finds no module '{error.name}'; give the path of a .py file, or install "
        "it"
      ) from error
    where = (
      f"{error.filename}:{error.lineno}"
      if isinstance(error, SyntaxError)
      else innermost(error, Path(folder))
    )
    raise UserError(f"{place}: importing it raised {described(error)} at {where}") from error


def described(error: Exception) -> str:
  """The kind and the first line of an error."""
  text = str(error).strip().partition("\n")[0]
  return f"{type(error).__name__}: {text}" if text else type(error).__name__


def innermost(error: Exception, folder: Path) -> str:
  """file:line of the deepest frame of the user's code (under `folder`), else of the deepest one."""
  frames = traceback.extract_tb(error.__traceback__)
  ours = Path(__file__).resolve().parent
  theirs = [
    f
    for f in frames
    if ours not in Path(f.filename).resolve().parents and "importlib" not in f.filename
  ]
  inside = [
    f
    for f in theirs
    if folder in Path(f.filename).resolve().parents and "site-packages" not in f.filename
  ]
  found = (inside or theirs or list(frames))[-1]
  return f"{found.filename}:{found.lineno}"
