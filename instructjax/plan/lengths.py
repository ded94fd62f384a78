"""How long prompts and responses are: seeded draws, for benchmarks and plans.

    full      every prompt and every response is as long as its limit
    uniform   1 to the limit, all equally likely
    paper     short with a long tail, as in the paper (Ouyang et al. 2022, Table 9)
    FILE      JSON lines {"prompt": tokens, "response": tokens}, in their order and around again

Nothing of JAX is imported, so that a script for another library may draw the same lengths.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from instructjax.errors import UserError

NAMES = ("full", "uniform", "paper")
FIELDS = ("prompt", "response")
LIMIT = 1024  # tokens at which the distributions below are cut


class Lengths(NamedTuple):
  """Tokens of N prompts and of their responses, all at least 1.

  A response is as long as its schedule says (`types.Prompts.ends`).
  """

  prompt: np.ndarray  # [N] int32
  response: np.ndarray  # [N] int32


class Lognormal(NamedTuple):
  """Lengths whose logarithm is normal, cut at `LIMIT` tokens."""

  median: float
  sigma: float  # the standard deviation of the logarithm


# The widths give the means after the cut: of prompts 166 tokens, of responses 100.
PROMPT = Lognormal(median=62.0, sigma=1.6017)
RESPONSE = Lognormal(median=50.0, sigma=1.2091)

# Maps (number of the draw, rows) to the lengths of that draw.
Draw = Callable[[int, int], Lengths]


def draws(source: str, prompt: int, response: int, seed: int = 0) -> Draw:
  """Returns the draws of a source whose prompts and responses have these limits in tokens.

  Draw i is always the same, and any draw may be asked for at any time.

  Raises:
    UserError: for a file that is not there, or that has something else in it; the message names
      file, line and field.
  """
  limits = (prompt, response)

  def full(number: int, rows: int) -> Lengths:
    return Lengths(*[np.full(rows, limit, np.int32) for limit in limits])

  def uniform(number: int, rows: int) -> Lengths:
    rng = np.random.default_rng([seed, number])
    return Lengths(*[rng.integers(1, limit + 1, rows, np.int32) for limit in limits])

  def paper(number: int, rows: int) -> Lengths:
    rng = np.random.default_rng([seed, number])
    columns = []
    for shape, limit in zip((PROMPT, RESPONSE), limits, strict=True):
      tokens = np.minimum(rng.lognormal(np.log(shape.median), shape.sigma, rows), LIMIT)
      columns.append(scaled(tokens, limit))
    return Lengths(*columns)

  match source:
    case "full":
      return full
    case "uniform":
      return uniform
    case "paper":
      return paper
  return cycle(read(Path(source), prompt, response))


def scaled(tokens: np.ndarray, limit: int) -> np.ndarray:
  """Lengths up to `LIMIT` as lengths up to another limit: rounded, and at least 1."""
  rounded = np.rint(tokens * limit / LIMIT).astype(np.int32)
  return np.clip(rounded, 1, limit)


def cycle(rows: Lengths) -> Draw:
  """Draws that go through rows in their order, and begin again after the last."""

  def draw(number: int, count: int) -> Lengths:
    places = np.arange(number * count, (number + 1) * count) % len(rows.prompt)
    return Lengths(rows.prompt[places], rows.response[places])

  return draw


def read(path: Path, prompt: int, response: int) -> Lengths:
  """Reads JSON lines of lengths under limits.  Raises UserError as `draws` says."""
  try:
    text = path.read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    problem = error.strerror if isinstance(error, OSError) else "it is no text"
    raise UserError(
      f"--lengths={path}: cannot be read ({problem}); choose {', '.join(NAMES)} or a file of JSON "
      'lines {"prompt": tokens, "response": tokens}'
    ) from error
  limits = {"prompt": prompt, "response": response}
  columns: dict[str, list[int]] = {field: [] for field in FIELDS}
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    row = _object(line, f"{path}:{number}")
    for field in FIELDS:
      columns[field].append(_tokens(row, field, limits[field], f"{path}:{number}"))
  if not columns["prompt"]:
    raise UserError(f'{path}: it has no lines; give JSON lines {{"prompt": 12, "response": 34}}')
  return Lengths(*[np.asarray(columns[field], np.int32) for field in FIELDS])


def _object(line: str, place: str) -> dict[str, Any]:
  """The object of a line.  Raises UserError for anything else."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{place}: this is no JSON ({error})") from error
  if not isinstance(row, dict):
    raise UserError(f'{place}: an object {{"prompt": 12, "response": 34}} is expected')
  unknown = sorted(set(row) - set(FIELDS))
  if unknown:
    raise UserError(f"{place}: {unknown[0]}: unknown field; there are {' and '.join(FIELDS)}")
  return row


def _tokens(row: dict[str, Any], field: str, limit: int, place: str) -> int:
  """A length of a line.  Raises UserError where it is missing, no number, or out of its range."""
  if field not in row:
    raise UserError(f"{place}: {field}: missing; it is a number of tokens")
  value = row[field]
  # `True` is an integer to Python.
  if not isinstance(value, int) or isinstance(value, bool):
    raise UserError(f"{place}: {field}: a whole number of tokens is expected, this is {value!r}")
  if not 1 <= value <= limit:
    raise UserError(
      f"{place}: {field}: {value} tokens, where 1 to {limit} fit; raise the limit of a {field}"
    )
  return value
