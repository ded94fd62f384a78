"""Checks of every shape and type in the signatures of the package, on request.

They cost time at each call, and nothing within a compiled function once it is compiled. The tests
run with them.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

VARIABLE = "INSTRUCTJAX_CHECK_SHAPES"


def are_wanted() -> bool:
  """Returns whether the environment asks for the checks."""
  return os.environ.get(VARIABLE, "") not in ("", "0")


def install() -> None:
  """Checks the annotated functions of all modules that are imported after this call.

  Raises:
    ImportError: when beartype is not installed.
  """
  if importlib.util.find_spec("beartype") is None:
    raise ImportError(
      f"{VARIABLE} needs beartype: pip install 'instructjax[check]', or unset the variable"
    )
  from jaxtyping import install_import_hook

  # The checker is imported first: it cannot check its own import.
  from instructjax.system.shape_checker import check

  install_import_hook(checked_modules(), f"{check.__module__}.{check.__name__}")


def checked_modules() -> list[str]:
  """Returns the modules and rooms whose functions are checked.

  `types` is left out: JAX makes its dataclasses of shardings, numpy arrays and other leaves too.
  """
  package = Path(__file__).parent.parent
  names = sorted(path.stem for path in package.iterdir() if path.suffix in ("", ".py"))
  left_out = ("__init__", "__main__", "__pycache__", "types")
  return [f"instructjax.{name}" for name in names if name not in left_out]
