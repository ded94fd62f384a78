"""A user's own Python function by its name: `FILE.py:FUNCTION` or `package.module:FUNCTION`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from instructjax.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent
LONGEST = 300  # characters of a message of the user's code


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
  with guarding(f"{place}: importing it", folder, place):
    return _import_file(file) if is_file else importlib.import_module(place)


def import_file(file: Path) -> ModuleType:
  """Imports a .py file of the user.

  Raises:
    UserError: where it raises anything.
  """
  with guarding(f"{file}: importing it", file.resolve().parent):
    return _import_file(file)


def _import_file(file: Path) -> ModuleType:
  """Imports a .py file as a module of its own name, so that it replaces no other module."""
  spec = importlib.util.spec_from_file_location(f"instructjax_user_{file.stem}", file)
  if spec is None or spec.loader is None:
    raise UserError(f"{file}: no Python file; give one that ends in .py")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses and pickle look there
  spec.loader.exec_module(module)
  return module


@contextlib.contextmanager
def guarding(action: str, folder: Path, module: str = "") -> Iterator[None]:
  """Turns whatever a user's code raises into one UserError with the place in that code.

  Everything that runs code of the user stands in it. What they raise may be anything; sys.exit()
  raises SystemExit, which would end a run as if it had succeeded. Ctrl-C stays what it is, and so
  does a UserError of this package, which says enough.

  Args:
    action: What ran, which begins the message, for one "my.py: importing it".
    folder: The folder of the user's code, where the place is looked for.
    module: The module that is imported, which may be missing itself.
  """
  try:
    yield
  except (UserError, KeyboardInterrupt):
    raise
  except BaseException as error:
    # The name itself, or a package above it, is missing: not something that the module imports.
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{module}.".startswith(f"{missing}."):
      raise UserError(
        f"{module}: Python finds no module '{missing}'; give the path of a .py file, or install it"
      ) from error
    raise UserError(f"{action} raised {described(error)} at {place(error, folder)}") from error


def described(error: BaseException) -> str:
  """Returns the type and the first line of an error."""
  name = type(error).__name__
  if isinstance(error, SystemExit):
    return f"{name}: code for a run must not call sys.exit()"
  text = ""
  # The user's own class may fail at that too.
  with contextlib.suppress(Exception):
    text = str(error).strip().partition("\n")[0]
  return f"{name}: {text[:LONGEST]}" if text else name


def place(error: BaseException, folder: Path) -> str:
  """Returns file:line of what raised an error; of a SyntaxError, where the file is wrong."""
  if isinstance(error, SyntaxError) and error.filename:
    return f"{error.filename}:{error.lineno}"
  return innermost(error, folder)


def innermost(error: BaseException, folder: Path) -> str:
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
