"""What a stage holds out of the records that it trains on, and what is shared by the two.

`config.data.held_out` splits as `instructjax data clean` does (`curation.hygiene`): by user, or
else by the first message of a chat, so that no chat is trained on and measured too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax

from instructjax.data.batches import corpora
from instructjax.data.curation import hygiene
from instructjax.data.records.records import Labelled
from instructjax.errors import UserError

# What is offered where nothing is held out.
OFFER = 0.05


class Halves(NamedTuple):
  """The rows of one source: those to train on and the held-out ones, with their records."""

  training: list
  training_records: list
  held_out: list
  held_out_records: list


class HeldOut(NamedTuple):
  """Which records of each source are held out, by the name of the source."""

  flags: dict[str, list[bool]]

  def halves(self, part: corpora.Part, rows: Sequence, counts: corpora.CountsBySource) -> Halves:
    """Returns the two halves of what was made of a source, one row of each record that was kept."""
    halves = Halves([], [], [], [])
    if not part.records:
      return halves
    # Prompts that are too long have left neither a row nor a place among the kept records.
    kept = counts[part.source].kept(list(part.records))
    flags = counts[part.source].kept(self.flags[part.source])
    for row, record, is_held_out in zip(rows, kept, flags, strict=True):
      if is_held_out:
        halves.held_out.append(row)
        halves.held_out_records.append(record)
      else:
        halves.training.append(row)
        halves.training_records.append(record)
    return halves


def choose(parts: Sequence[corpora.Part], share: float, seed: int) -> HeldOut:
  """Returns which records of the sources of a run are held out.

  Raises:
    UserError: if none is, or all are.
  """
  rows = corpora.records(parts)
  flags = hygiene.held_out(rows, share, seed)
  if share and rows and len(set(flags)) == 1:
    count = "none" if not flags[0] else "every one"
    raise UserError(
      f"config.data.held_out={share:g}: {count} of {len(rows):,} records would be held out, since "
      "records of one user or one first message stay together; choose another share or "
      "config.seed, or give held-out records in config.data.valid"
    )
  by_source = {}
  start = 0
  for part in parts:
    end = start + len(part.records)
    by_source[part.source] = flags[start:end]
    start = end
  return HeldOut(by_source)


def say(share: float, training: Sequence[Labelled], held_out: Sequence[Labelled]) -> None:
  """Says on stderr, in one process of several, how much is held out and what is shared.

  Nothing is said where nothing is held out.
  """
  if not held_out or jax.process_index() > 0:
    return
  name = "config.data.valid"
  if share:
    name = f"config.data.held_out={share:g}"
    _print(f"{name}: {len(held_out):,} records are held out, {len(training):,} are trained on")
  count = hygiene.shared(held_out, training)
  if count:
    _print(
      f"{name}: {count:,} of {len(held_out):,} held-out records begin as one that is trained on "
      "does (the same first message or group), so they are no test of new prompts; instructjax "
      f"data clean splits so that none does, and so does config.data.held_out={OFFER:g}"
    )


def _print(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def offer(noun: str) -> str:
  """Returns what to say at the end of a run that held nothing out; `noun` is what it left."""
  return (
    f"nothing was held out, so how good the {noun} is on new prompts is unknown: "
    f"config.data.held_out={OFFER:g} holds out a part of the data"
  )
