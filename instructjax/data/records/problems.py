"""Problems of data as a user can read them: a few each by itself, thousands of one sort in a line.

Two problems are of one sort if they differ in numbers alone: of a line, an element or a character.
"""

from __future__ import annotations

import dataclasses

LISTED = 20  # problems, or sorts of them, that are listed
SORTS = 1000  # that are told apart, so that the memory has a limit

_WITHOUT_DIGITS = str.maketrans("", "", "0123456789")


@dataclasses.dataclass
class Problems:
  """The problems so far; `add` takes one more.

  first   the first of all, which are listed each by itself where there are no more
  sorts   of each sort the first problem and how many there are
  others  problems of sorts that came when there were too many
  """

  count: int = 0
  first: list[str] = dataclasses.field(default_factory=list)
  sorts: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
  others: int = 0

  def add(self, problem: str) -> None:
    """Adds a problem, a line that begins with its place."""
    self.count += 1
    if len(self.first) < LISTED:
      self.first.append(problem)
    sort = problem.translate(_WITHOUT_DIGITS)
    if sort in self.sorts:
      first, count = self.sorts[sort]
      self.sorts[sort] = first, count + 1
    elif len(self.sorts) < SORTS:
      self.sorts[sort] = problem, 1
    else:
      self.others += 1

  def lines(self, limit: int = LISTED) -> list[str]:
    """Returns what to print: every problem, or where there are too many a line for each sort."""
    if self.count <= limit:
      return list(self.first)
    listed = list(self.sorts.values())[:limit]
    lines = [
      first if count == 1 else f"{first} (and {count - 1} more like this)"
      for first, count in listed
    ]
    rest = self.count - sum(count for _, count in listed)
    if rest:
      lines.append(f"... and {rest} more {'problem' if rest == 1 else 'problems'}")
    return lines
