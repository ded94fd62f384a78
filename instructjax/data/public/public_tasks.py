"""Public tasks as instructions, for a baseline like FLAN and T0 (Ouyang et al. 2022, App. C.5).

Every data set of `mappings` that is a task has several wordings of its question in `wordings`. The
answers are those of its mapping. An example is used once, with one of the wordings.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from instructjax.data.public.wordings import WORDINGS
from instructjax.data.records import mappings, records, sources
from instructjax.data.records.mappings import filled
from instructjax.data.records.records import Demonstration, Whole
from instructjax.data.records.sources import Part
from instructjax.errors import UserError

Row = dict[str, Any]
# A spelling with one of the wordings.
Form = Callable[[Row, str], Row]
# No more examples than these count for the share of a task, as in FLAN (Wei et al. 2022).
CAP = 30_000


class Task(NamedTuple):
  """One task of a mixture.

  Attributes:
    name: the address of its source.
    size: how many examples it has.
    taken: how many of them are in the mixture.
    wordings: how many wordings of the question there are.
  """

  name: str
  size: int
  taken: int
  wordings: int


# --- shares ---


def allot(sizes: Sequence[int], examples: int, cap: int) -> list[int]:
  """Returns how many examples each task gives.

  The shares are in proportion to min(size, cap), and no task gives more than it has. What it cannot
  give, the others do, even beyond their cap. Together they give `examples`, or all that there are.

  A cap of 0 means that there is no cap. With `examples` of 0, each task gives min(size, cap).
  """
  weights = np.array([min(size, cap) if cap else size for size in sizes], np.float64)
  if not examples:
    return [int(weight) for weight in weights]
  total = min(examples, sum(sizes))
  # Tasks that give all they have are full. What they leave goes to the others, which may fill some
  # of these in turn, so this is repeated until no task is asked for more than it has.
  full = np.zeros(len(sizes), bool)
  share = np.zeros(len(sizes))
  while True:
    left = total - np.array(sizes)[full].sum()
    share = np.where(full, sizes, left * weights / max(weights[~full].sum(), 1))
    over = ~full & (share > sizes)
    if not over.any():
      break
    full |= over
  # Shares are rounded down, except for the largest fractions, which make up the total. The small
  # number is for shares that are whole numbers but for the rounding of floats.
  counts = np.floor(share + 1e-9).astype(int)
  fractions = share - counts
  rounded_up = np.argsort(-fractions, kind="stable")[: total - counts.sum()]
  counts[rounded_up] += 1
  return counts.tolist()


# --- the mixture ---


def mixture(
  source: str, *, examples: int = 0, cap: int = CAP, seed: int = 0, folder: str | None = None
) -> tuple[list[Demonstration], list[Task]]:
  """Returns demonstrations in a random order, and the tasks that they are from.

  Args:
    source: TFDS tasks and files of demonstrations, as `sources` takes them.
    examples: how many demonstrations to return; 0 for as many as the cap allows.
    cap: see `allot`.
    seed: draws the examples, their wordings and their order.
    folder: where TFDS data sets were prepared.

  Raises:
    UserError: for a source that is no task, and for every bad row among the chosen ones, with its
      place.
  """
  parts = sources.parts(source, folder)
  # Rows are read twice, once to count them, so that a large data set is never in memory as a whole.
  sizes = [sum(1 for _ in part.rows()) for part in parts]
  counts = allot(sizes, examples, cap)
  rng = np.random.default_rng(seed)
  demonstrations: list[Demonstration] = []
  problems: list[str] = []
  tasks = []
  for part, size, count in zip(parts, sizes, counts, strict=True):
    forms = _forms(part)
    chosen = set(rng.choice(size, count, replace=False).tolist())
    part_demonstrations, part_problems = _examples(part, forms, chosen, seed)
    demonstrations += part_demonstrations
    problems += part_problems
    tasks.append(Task(part.name, size, count, len(forms)))
  records.report(problems)
  order = rng.permutation(len(demonstrations))
  return [demonstrations[index] for index in order], tasks


def _forms(part: Part) -> list[Form]:
  """Returns the spellings of a part: our wordings with the answers of its mapping.

  A file of demonstrations has one, in which it is read as it is.
  """
  mapping = part.mapping
  if mapping is None:
    return [records.native]
  # Two names may share a mapping, and then they share their wordings too.
  name = next((name for name in WORDINGS if mappings.TFDS[name] is mapping), None)
  if name is None:
    raise UserError(
      f"{part.name}: no task with wordings; there are {', '.join(WORDINGS)}, or give a file of "
      "demonstrations"
    )
  forms = []
  for wording in WORDINGS[name]:
    ask = filled(wording) if isinstance(wording, str) else wording
    forms.append(_worded(mapping, ask))
  return forms


def _worded(mapping: mappings.Mapping, ask: Callable[[Row], str]) -> Form:
  """Returns the spelling of a mapping with another question."""
  spell = mapping.spell
  # Every mapping reads its rows one at a time.
  assert not isinstance(spell, Whole)

  def spell_with_question(row: Row, kind: str) -> Row:
    return {**spell(row, kind), "prompt": ask(row)}

  return spell_with_question


def _examples(
  part: Part, forms: Sequence[Form], chosen: set[int], seed: int
) -> tuple[list[Demonstration], list[str]]:
  """Returns the demonstrations of the chosen rows, each in one wording, and their problems."""
  demonstrations, problems = [], []
  for index, row in enumerate(part.rows()):
    if index not in chosen:
      continue
    # A hash of the index rather than a draw: the wording of a row does not depend on other rows.
    form = forms[zlib.crc32(f"{seed}/{index}".encode()) % len(forms)]
    rows, row_problems = records.collect([row], "demonstration", form, name=part.name)
    problems += row_problems
    demonstrations += [dataclasses.replace(row, source=row.source or part.name) for row in rows]
  return demonstrations, problems


def write(source: str, out: str, *, examples: int, cap: int, seed: int, folder: str | None) -> str:
  """Writes a mixture and returns the text to print, which has a line for each task.

  Raises:
    UserError: for negative numbers, for what `mixture` refuses, and if `out` cannot be written.
  """
  if examples < 0 or cap < 0:
    raise UserError(f"--examples={examples} --cap={cap}: numbers from 0 on are expected, 0 for all")
  demonstrations, tasks = mixture(source, examples=examples, cap=cap, seed=seed, folder=folder)
  try:
    records.write(out, demonstrations)
  except OSError as error:
    raise UserError(f"--out={out}: cannot be written ({error}); choose another place") from error
  lines = []
  for task in tasks:
    wordings = "as they are" if task.wordings == 1 else f"{task.wordings} wordings"
    lines.append(f"{task.name}: {task.taken} of {task.size} examples, {wordings}")
  lines.append(f"{out}: {len(demonstrations)} demonstrations of {len(tasks)} tasks")
  return "\n".join(lines)
