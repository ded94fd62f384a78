"""The paper's Tables 1 and 6 to 11 for any records, and how many completions were ranked together.

  1  use cases, in percent              8   prompts per customer
  6  sizes by split and source          9   prompt lengths by data set
  7  annotations, in percent            10  prompt lengths by use case
                                        11  prompt and demonstration lengths by source

Demonstrations are the data set SFT, comparisons RM and prompts PPO, as in the paper (Ouyang et al.
2022).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from instructjax.data.curation.contents import group_of, prompt_text
from instructjax.data.curation.hygiene import SPLITS
from instructjax.data.records import preferences
from instructjax.data.records.records import ANNOTATIONS, Comparison, Demonstration, Labelled
from instructjax.system.tables import Table

# The paper's name for the data set of each kind of record, in its order.
DATA_SETS = {
  "demonstration": "SFT",
  "comparison": "RM",
  "prompt": "PPO",
  "few_shot": "few-shot",
}
# Table 1: percent of the RM data.
USE_CASES = {
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
Length = Callable[[str], int]  # of a text


class Part(NamedTuple):
  """The records of one split of one data set."""

  data: str  # SFT, RM, PPO or few-shot
  split: str  # train, valid, test, or all
  rows: Sequence[Labelled]


def split_name(path: str | Path) -> str:
  """Returns the split that the name of a file, or of its folder, speaks of, or else "all"."""
  path = Path(path)
  name = f"{path.parent.name} {path.name}".lower()
  words = re.sub(r"[\W_]", " ", name).split()
  # The file's name counts more than the folder's, and its end more than its beginning.
  for word in reversed(words):
    if word in SPLITS:
      return word
  return "all"


def use_case(record: Labelled) -> str:
  """Returns the use case of a record, in the paper's spelling if it is one of the paper's."""
  if record.use_case is None:
    return NONE
  letters = _letters(record.use_case)
  for name in USE_CASES:
    if _letters(name) == letters:
      return name
  return record.use_case


def _letters(text: str) -> str:
  """Returns only the letters and digits of a text, without upper case: open_qa is Open QA."""
  return "".join(letter for letter in text.casefold() if letter.isalnum())


def tables(
  parts: Sequence[Part],
  length: Length,
  unit: str = "tokens",
  group: str = "user",
) -> list[Table]:
  """Returns all tables. `length` measures a text, and `unit` is what it counts."""
  parts = _merged(parts)
  all_tables = [
    _use_case_table(parts),
    _size_table(parts),
    _annotation_table(parts),
    _customer_table(parts, group),
    *_length_tables(parts, length, unit),
  ]
  comparisons = []
  for part in parts:
    comparisons += [row for row in part.rows if isinstance(row, Comparison)]
  if comparisons:
    all_tables.append(_ranking_table(comparisons))
  return all_tables


def _merged(parts: Iterable[Part]) -> list[Part]:
  """Returns one part for each data set and split, in the paper's order."""
  rows_by_part: dict[tuple[str, str], list] = defaultdict(list)
  for part in parts:
    rows_by_part[part.data, part.split].extend(part.rows)
  data_order = list(DATA_SETS.values())
  split_order = ["all", *SPLITS]

  def order(key: tuple[str, str]) -> tuple[int, int]:
    data, split = key
    return data_order.index(data), split_order.index(split)

  keys = sorted(rows_by_part, key=order)
  return [Part(*key, rows_by_part[key]) for key in keys]


def _use_case_table(parts: Sequence[Part]) -> Table:
  counts_by_set: dict[str, Counter[str]] = {}
  for part in parts:
    counts = counts_by_set.setdefault(part.data, Counter())
    counts.update(use_case(row) for row in part.rows)
  # The paper's use cases come first, in its order, and then those that only the records have.
  present = {name for counts in counts_by_set.values() for name in counts}
  others = sorted(present - {*USE_CASES, NONE})
  names = [*USE_CASES, *others]
  if NONE in present:
    names.append(NONE)
  rows = []
  for name in names:
    # Of each data set the count and its share, and at the end the paper's share.
    cells: list[int | float | None] = []
    for counts in counts_by_set.values():
      count = counts[name]
      cells += [count, _percent(count, counts.total())]
    rows.append((name, *cells, USE_CASES.get(name)))
  columns = ["use case"]
  for data in counts_by_set:
    columns += [data, f"{data} %"]
  columns.append("paper's RM %")
  return Table("Table 1: use cases", tuple(columns), rows)


def _size_table(parts: Sequence[Part]) -> Table:
  rows = []
  for part in parts:
    sources = Counter(row.source or NONE for row in part.rows)
    for source, count in sorted(sources.items()):
      rows.append((part.data, part.split, source, count))
    if len(sources) > 1:  # a sum of one source would repeat it
      rows.append((part.data, part.split, "all sources", len(part.rows)))
  columns = ("data", "split", "source", "size")
  return Table("Table 6: sizes, in records", columns, rows)


def _annotation_table(parts: Sequence[Part]) -> Table:
  rows = []
  for name in ANNOTATIONS:
    cells = [_annotation_percent(part.rows, name) for part in parts]
    # A field that no record has gives no row.
    if any(cell is not None for cell in cells):
      rows.append((name, *cells))
  if not rows:
    rows.append((NONE, *[None] * len(parts)))
  columns = ("annotation", *[f"{part.data} {part.split}" for part in parts])
  return Table("Table 7: annotations, % of the records that have the field", columns, rows)


def _annotation_percent(rows: Sequence[Labelled], name: str) -> float | None:
  """Returns the percent of the records with an annotation for which it is true."""
  annotated = [row.annotations for row in rows if row.annotations]
  values = [annotations[name] for annotations in annotated if name in annotations]
  return _percent(sum(values), len(values))


def _customer_table(parts: Sequence[Part], group: str) -> Table:
  rows = []
  for part in parts:
    prompts_of: dict[str, set[str]] = defaultdict(set)
    nobody = 0  # records that name no user or organisation
    for row in part.rows:
      name = group_of(row, group)
      if name is None:
        nobody += 1
      else:
        prompts_of[name].add(prompt_text(row))
    sizes = [len(texts) for texts in prompts_of.values()]
    # A user may ask the same prompt again, which counts once.
    mean = round(float(np.mean(sizes)), 2) if sizes else None
    most = max(sizes, default=None)
    rows.append((part.data, part.split, len(sizes), mean, most, nobody))
  columns = (
    "data",
    "split",
    f"{group}s",
    "prompts each",
    "most",
    f"records without {group}",
  )
  return Table(f"Table 8: different prompts per {group}", columns, rows, digits=2)


def _length_tables(
  parts: Sequence[Part],
  length: Length,
  unit: str,
) -> list[Table]:
  """Returns Tables 9, 10 and, where there are demonstrations, 11."""
  by_set: dict[tuple[str, str], list[int]] = defaultdict(list)
  by_case: dict[str, list[int]] = defaultdict(list)
  prompts_by_source: dict[str, list[int]] = defaultdict(list)
  responses_by_source: dict[str, list[int]] = defaultdict(list)
  for part in parts:
    for row in part.rows:
      # To measure a text may take a tokenizer, so each is measured once.
      size = length(prompt_text(row))
      by_set[part.data, part.split].append(size)
      by_case[use_case(row)].append(size)
      if isinstance(row, Demonstration):
        source = row.source or NONE
        prompts_by_source[source].append(size)
        responses_by_source[source].append(length(row.completion))

  # Each row is the names of a group and the measures of its lengths.
  rows_by_set = [(*key, *measures(sizes)) for key, sizes in by_set.items()]
  rows_by_case = [(name, *measures(by_case[name])) for name in sorted(by_case)]
  rows_by_source = []
  for source in sorted(prompts_by_source):
    prompts = measures(prompts_by_source[source])
    responses = measures(responses_by_source[source])
    rows_by_source.append((source, "prompt", *prompts))
    rows_by_source.append((source, "demonstration", *responses))
  length_tables = [
    Table(
      f"Table 9: prompt lengths, in {unit}",
      ("data", "split", *MEASURES),
      rows_by_set,
    ),
    Table(
      f"Table 10: prompt lengths by use case, in {unit}",
      ("use case", *MEASURES),
      rows_by_case,
    ),
  ]
  if rows_by_source:
    table_11 = Table(
      f"Table 11: prompt and demonstration lengths, in {unit}",
      ("source", "measurement", *MEASURES),
      rows_by_source,
    )
    length_tables.append(table_11)
  return length_tables


def measures(sizes: Sequence[int]) -> tuple[Any, ...]:
  """Returns MEASURES of some sizes.

  The standard deviation is that of a sample, with n - 1, and None for a single size.
  """
  if not sizes:
    return (0, *[None] * (len(MEASURES) - 1))
  low, middle, high = np.quantile(sizes, (0.25, 0.5, 0.75))
  deviation = None
  if len(sizes) > 1:
    deviation = round(float(np.std(sizes, ddof=1)), 1)
  # These are in the order of MEASURES.
  return (
    len(sizes),
    round(float(np.mean(sizes)), 1),
    deviation,
    min(sizes),
    float(low),
    float(middle),
    float(high),
    max(sizes),
  )


def _ranking_table(rows: Sequence[Comparison]) -> Table:
  """Returns how many pairs the rankings of each K hold; tied pairs are left out of training."""
  comparisons_of = Counter[int]()
  pairs_of = Counter[int]()
  ties_of = Counter[int]()
  for row in rows:
    k = len(row.completions)
    pairs = int((preferences.weights(row) > 0).sum())
    # Every pair that was compared stands there in both directions.
    compared = int(preferences.compared(row).sum()) // 2
    comparisons_of[k] += 1
    pairs_of[k] += pairs
    ties_of[k] += compared - pairs
  columns_of_counts = (comparisons_of, pairs_of, ties_of)
  table: list[tuple] = []
  for k in sorted(comparisons_of):
    cells = [counts[k] for counts in columns_of_counts]
    table.append((str(k), *cells))
  totals = [counts.total() for counts in columns_of_counts]
  table.append(("all", *totals))
  columns = ("K", "comparisons", "pairs", "tied pairs, left out")
  return Table("Rankings: the paper's K is 4 to 9", columns, table)


def _pairs(n: int) -> int:
  return n * (n - 1) // 2


def _percent(part: int, whole: int) -> float | None:
  return round(100 * part / whole, 1) if whole else None
