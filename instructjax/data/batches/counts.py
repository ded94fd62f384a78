"""What becomes of records on their way to rows, in numbers.

Nothing is cut, dropped or changed in silence: whatever makes rows counts it here, the stage prints
one line at its start, and manifest.json keeps the numbers.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Counts:
  """The numbers of one source of records; the functions of `pipeline` add to them.

  prompts      prompts that were read, the ones that were left out among them
  left_out     the places, from 0, of the records whose prompt is too long and that were left out
  completions  completions in rows
  cut          completions that were longer than `response` and were cut
  endless      cut completions without an end-of-text token
  equal        pairs of completions of one prompt with the same ids: such a pair weighs nothing
  empty        completions without any text
  unlearnt     replies before the last one of a chat that carry no loss
  changed      texts that the tokenizer does not give back as they were
  """

  prompts: int = 0
  left_out: list[int] = dataclasses.field(default_factory=list)
  completions: int = 0
  cut: int = 0
  endless: int = 0
  equal: int = 0
  empty: int = 0
  unlearnt: int = 0
  changed: int = 0

  def kept(self, records: list) -> list:
    """Returns the records that were not left out."""
    left_out = set(self.left_out)
    return [record for number, record in enumerate(records) if number not in left_out]


def facts(counts: Counts) -> dict[str, int]:
  """Returns the numbers for manifest.json."""
  numbers: dict[str, int] = {}
  for field in dataclasses.fields(counts):
    value = getattr(counts, field.name)
    numbers[field.name] = value if isinstance(value, int) else len(value)
  return numbers


def sentence(counts: Counts, long: str = "too long and left out") -> str:
  """Returns the numbers as one short line; `long` is what is said of prompts over the limit."""
  words = []
  if counts.completions:
    words.append(f"{counts.completions:,} completions, {counts.cut:,} cut{_endless(counts)}")
    words.append(f"{counts.equal:,} pairs equal, {counts.empty:,} empty")
  words.append(f"{counts.prompts:,} prompts, {len(counts.left_out):,} {long}")
  if counts.unlearnt:
    words.append(f"{counts.unlearnt:,} earlier replies are not learnt")
  if counts.changed:
    words.append(f"{counts.changed:,} texts come back changed (instructjax tokenizer check)")
  return "; ".join(words)


def _endless(counts: Counts) -> str:
  """Returns what to think of cut completions that do not end."""
  if not counts.endless:
    return ""
  if counts.endless == counts.completions:
    return " (none ends, so the model never learns to stop: raise config.data.response)"
  return " (no end of text)"
