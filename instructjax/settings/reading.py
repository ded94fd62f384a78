"""Configurations from files and overrides: `--config=configs/sft.py:1.3b
--config.optimizer.lr=1e-5`.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructjax.errors import UserError

Config = Any  # ml_collections.ConfigDict
EMPTIED = (
  "clip",
  "ema_decay",
  "model",
  "top",
  "trunk_dtype",
  "value_clip",
)  # fields for which None has a meaning
ROOT = (
  Path(__file__).resolve().parent.parent.parent
)  # of the clone; configs/ stands beside the package


def load(name: str) -> Config:
  """The configuration of `configs/sft.py:1.3b`, or `sft:1.3b` for short; without `:1.3b` the file's
  own default.

  A file is looked for here and then beside the package.  Raises UserError where it is not there
  or has no such preset.
  """
  import ml_collections

  file, _, preset = name.partition(":")
  path = find(file)
  spec = importlib.util.spec_from_file_location(f"instructjax_config_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise UserError(f"--config={name}: {path} is no Python file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  try:
    config = module.get_config(preset) if preset else module.get_config()
  except (KeyError, AttributeError) as error:
    known = (
      "" if isinstance(error, AttributeError) else "; the file's first lines name those it has"
    )
    raise UserError(f"--config={name}: {path} has no preset {preset!r} ({error}){known}") from error
  return ml_collections.ConfigDict(config).lock()


def find(file: str) -> Path:
  """The path of a configuration file."""
  short = Path("configs") / f"{file}.py"
  tried = [Path(file), ROOT / file] if file.endswith(".py") else [short, ROOT / short]
  for path in tried:
    if path.is_file():
      return path
  known = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
  raise UserError(
    f"--config={file}: no such file ({tried[0]}); there are {', '.join(known)}, or give a path "
    "ending in .py"
  )


def assignments(words: Sequence[str]) -> list[tuple[str, str]]:
  """`--config.a.b=v` or `--config.a.b v` as (a.b, v).  Raises UserError for anything else."""
  found, left = [], list(words)
  while left:
    word = left.pop(0)
    if not word.startswith("--config."):
      raise UserError(f"{word}: no such option; add --help to see those there are")
    name, sign, value = word.removeprefix("--config.").partition("=")
    if not sign and (not left or left[0].startswith("--")):
      raise UserError(f"{word}: give a value, {word}=VALUE")
    found.append((name, value if sign else left.pop(0)))
  return found


def override(config: Config, assignments: Sequence[tuple[str, str]]) -> Config:
  """Sets fields by dotted names.  Raises UserError for an unknown one and for a value of another
  type.
  """
  for name, text in assignments:
    parent, last = config, name.split(".")[-1]
    for depth, part in enumerate(name.split(".")):
      if part not in parent:
        _unknown(".".join(name.split(".")[:depth]), part, list(parent))
      if depth < name.count("."):
        parent = parent[part]
        if not hasattr(parent, "keys"):
          raise UserError(
            f"config.{name}: config.{'.'.join(name.split('.')[: depth + 1])} is a value, it holds "
            "no fields"
          )
    if hasattr(parent[last], "keys"):
      raise UserError(f"config.{name} holds the fields {', '.join(parent[last])}; set one of them")
    parent[last] = convert(name, text, parent[last])
  return config


def convert(name: str, text: str, old: Any) -> Any:
  """A value of the type that the field has; "none" empties a field of EMPTIED and one that is
  empty.
  """
  if text.lower() == "none" and (old is None or name.split(".")[-1] in EMPTIED):
    return None
  if isinstance(old, str):
    return text
  if isinstance(old, bool):
    if text.lower() in ("true", "false"):
      return text.lower() == "true"
    _wrong(name, text, "true or false", old)
  if isinstance(old, tuple) and old:  # of one type, by commas
    return tuple(
      convert(name, part.strip(), old[0]) for part in text.strip("()").split(",") if part.strip()
    )
  value = literal(text)
  if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(old, int) and isinstance(value, float) and value == int(value):
    return int(value)
  if old is not None and type(value) is not type(old):
    _wrong(name, text, named(old), old)
  return value


def literal(text: str) -> Any:
  """A Python literal, or the text itself."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def named(value: Any) -> str:
  """What a user calls the type of a value."""
  names = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "tuple": "a tuple",
  }
  kind = type(value).__name__
  return names.get(kind, kind)


def _wrong(name: str, text: str, wanted: str, old: Any) -> None:
  found = named(literal(text))
  raise UserError(
    f"config.{name}={text}: {wanted} is expected, this is {found}; the value before was {old!r}"
  )


def _unknown(parent: str, part: str, known: list[str]) -> None:
  near = difflib.get_close_matches(part, known, 1)
  hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
  raise UserError(f"config.{parent + '.' if parent else ''}{part}: no such field; {hint}")
