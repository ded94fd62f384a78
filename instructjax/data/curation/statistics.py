"""The paper's Tables 1 and 6 to 11 for any records, and how many completions were ranked together.

  1  use cases, in percent              8   prompts per customer
  6  sizes by split and source          9   prompt lengths by data set
  7  annotations, in percent            10  prompt lengths by use case
                                        11  prompt and demonstration lengths by source

Demonstrations are the data set SFT, comparisons RM, prompts PPO, as in the paper.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from instructjax.data.curation.hygiene import SPLITS, group_of, prompt_text
from instructjax.data.records.records import ANNOTATIONS, Comparison, Demonstration, Labelled
from instructjax.system.tables import Table

DATA_SETS = {"demonstration": "SFT", "comparison": "RM", "prompt": "PPO", "few_shot": "few-shot"}
USE_CASES = {  # Table 1: percent of the RM data
  "Generation": 45.6,
  "Open QA": 12.4,
  "Brainstorming": 11.2,
  "Chat": 8.4,
  "Rewrite": 6.6,
  "Summarization": 4.2,
  "Classification": 3.5,
  "Other": 3.5,
  "Closed QA": 2.6,
  "Extract": 1.9,
}
NONE = "(none given)"
MEASURES = ("count", "mean", "std", "min", "25%", "50%", "75%", "max")
Length = Callable[[str], int]


class Part(NamedTuple):
  """The records of one split of one data set."""

  data: str  # SFT, RM, PPO
  split: str  # train, valid, test, or all
  rows: Sequence[Labelled]


def split_name(path: str | Path) -> str:
  """The split that a file's name (or its folder's) speaks of, else "all"."""
  words = "".join(
    c if c.isalnum() else " " for c in f"{Path(path).parent.name} {Path(path).name}".lower()
  ).split()
  return next((name for word in reversed(words) for name in SPLITS if word == name), "all")


def use_case(record: Labelled) -> str:
  """The use case, in the paper's spelling where it is one of the paper's."""
  if record.use_case is None:
    return NONE
  plain = lambda text: "".join(c for c in text.casefold() if c.isalnum())
  return next(
    (name for name in USE_CASES if plain(name) == plain(record.use_case)), record.use_case
  )


def tables(
  parts: Sequence[Part], length: Length, unit: str = "tokens", group: str = "user"
) -> list[Table]:
  """All tables; `length` measures a text, `unit` is what it counts."""
  parts = _merged(parts)
  found = [
    _use_cases(parts),
    _sizes(parts),
    _annotations(parts),
    _customers(parts, group),
    *_lengths(parts, length, unit),
  ]
  ranked = [row for part in parts for row in part.rows if isinstance(row, Comparison)]
  return [*found, *([_ranked(ranked)] if ranked else [])]


def _merged(parts: Iterable[Part]) -> list[Part]:
  """One part for each data set and split, in the paper's order."""
  rows: dict[tuple[str, str], list] = defaultdict(list)
  for part in parts:
    rows[part.data, part.split].extend(part.rows)
  order = lambda key: ([*DATA_SETS.values()].index(key[0]), ("all", *SPLITS).index(key[1]))
  return [Part(*key, rows[key]) for key in sorted(rows, key=order)]


def _use_cases(parts: Sequence[Part]) -> Table:
  sets = list(dict.fromkeys(part.data for part in parts))
  counts = {
    data: Counter(use_case(row) for part in parts if part.data == data for row in part.rows)
    for data in sets
  }
  others = sorted({name for data in sets for name in counts[data]} - {*USE_CASES, NONE})
  names = [*USE_CASES, *others, *([NONE] if any(NONE in counts[data] for data in sets) else [])]
  rows = []
  for name in names:
    cells = [
      cell
      for data in sets
      for cell in (counts[data][name], _percent(counts[data][name], counts[data].total()))
    ]
    rows.append((name, *cells, USE_CASES.get(name)))
  columns = ("use case", *[name for data in sets for name in (data, f"{data} %")], "paper's RM %")
  return Table("Table 1: use cases", columns, rows)


def _sizes(parts: Sequence[Part]) -> Table:
  rows = []
  for part in parts:
    sources = Counter(row.source or NONE for row in part.rows)
    rows += [(part.data, part.split, source, count) for source, count in sorted(sources.items())]
    rows += [(part.data, part.split, "all sources", len(part.rows))] if len(sources) > 1 else []
  return Table("Table 6: sizes, in records", ("data", "split", "source", "size"), rows)


def _annotations(parts: Sequence[Part]) -> Table:
  rows = []
  for name in ANNOTATIONS:
    cells = []
    for part in parts:
      given = [
        row.annotations[name] for row in part.rows if row.annotations and name in row.annotations
      ]
      cells.append(_percent(sum(given), len(given)))
    rows.append((name, *cells))
  rows = [row for row in rows if set(row[1:]) != {None}] or [(NONE, *[None] * len(parts))]
  columns = ("annotation", *[f"{part.data} {part.split}" for part in parts])
  return Table("Table 7: annotations, % of the records that have the field", columns, rows)


def _customers(parts: Sequence[Part], group: str) -> Table:
  rows = []
  for part in parts:
    prompts: dict[str, set[str]] = defaultdict(set)
    nobody = 0
    for row in part.rows:
      name = group_of(row, group)
      if name is None:
        nobody += 1
      else:
        prompts[name].add(prompt_text(row))
    sizes = [len(texts) for texts in prompts.values()]
    mean = round(float(np.mean(sizes)), 2) if sizes else None
    rows.append((part.data, part.split, len(sizes), mean, max(sizes, default=None), nobody))
  columns = ("data", "split", f"{group}s", "prompts each", "most", f"records without {group}")
  return Table(f"Table 8: different prompts per {group}", columns, rows, digits=2)


def _lengths(parts: Sequence[Part], length: Length, unit: str) -> list[Table]:
  measured = [(part, row, length(prompt_text(row))) for part in parts for row in part.rows]
  by_set: dict[tuple[str, str], list[int]] = defaultdict(list)
  by_case: dict[str, list[int]] = defaultdict(list)
  by_source: dict[tuple[str, str], list[int]] = defaultdict(list)
  for part, row, size in measured:
    by_set[part.data, part.split].append(size)
    by_case[use_case(row)].append(size)
    if isinstance(row, Demonstration):
      by_source[row.source or NONE, "prompt"].append(size)
      by_source[row.source or NONE, "demonstration"].append(length(row.completion))
  cases = [(name, *measures(by_case[name])) for name in sorted(by_case)]
  found = [
    Table(
      f"Table 9: prompt lengths, in {unit}",
      ("data", "split", *MEASURES),
      [(*k, *measures(v)) for k, v in by_set.items()],
    ),
    Table(f"Table 10: prompt lengths by use case, in {unit}", ("use case", *MEASURES), cases),
  ]
  if by_source:
    rows = [
      (*key, *measures(by_source[key]))
      for key in sorted(by_source, key=lambda key: (key[0], key[1] != "prompt"))
    ]
    found.append(
      Table(
        f"Table 11: prompt and demonstration lengths, in {unit}",
        ("source", "measurement", *MEASURES),
        rows,
      )
    )
  return found


def measures(sizes: Sequence[int]) -> tuple[Any, ...]:
  """MEASURES of the sizes; the standard deviation is that of a sample (n - 1), None for a single
  one.
  """
  if not sizes:
    return (0, *[None] * (len(MEASURES) - 1))
  low, mid, high = np.quantile(sizes, (0.25, 0.5, 0.75))
  std = round(float(np.std(sizes, ddof=1)), 1) if len(sizes) > 1 else None
  return (
    len(sizes),
    round(float(np.mean(sizes)), 1),
    std,
    min(sizes),
    float(low),
    float(mid),
    float(high),
    max(sizes),
  )


def _ranked(rows: Sequence[Comparison]) -> Table:
  found: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
  for row in rows:
    k, tied = len(row.ranks), sum(n * (n - 1) // 2 for n in Counter(row.ranks).values())
    for i, count in enumerate((1, k * (k - 1) // 2 - tied, tied)):
      found[k][i] += count
  total = tuple(sum(counts[i] for counts in found.values()) for i in range(3))
  table = [(str(k), *found[k]) for k in sorted(found)] + [("all", *total)]
  return Table(
    "Rankings: the paper's K is 4 to 9",
    ("K", "comparisons", "pairs", "tied pairs, left out"),
    table,
  )


def _percent(part: int, whole: int) -> float | None:
  return round(100 * part / whole, 1) if whole else None
