"""The data that a configuration names, as rows to draw from: several sources by their weights,
lazily read, packed.

config.data.NAME may be one source or a mixture, "0.7*a.jsonl + 0.3*tfds:c4" (`data.mixture`);
config.data.pack packs rows (`data.packing`), config.data.lazy reads text when it is drawn
(`data.lazy`).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from instructjax import sharding
from instructjax.data.batches import lazy, mixture, packing, pipeline
from instructjax.data.batches.mixture import Mixture, Rows
from instructjax.data.records import sources, spellings
from instructjax.data.records.records import fingerprint
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.types import PyTree

Config = Any  # ml_collections.ConfigDict: its fields are those of the file in configs/


class Part(NamedTuple):
  """The records of one source and their weight in a mixture."""

  weight: float
  source: str
  records: Any  # a list, or `lazy.Texts`


def read(config: Config, name: str, kind: str, *, lazily: bool = False) -> list[Part]:
  """The sources of getattr(config.data, name).  Raises UserError where the field is empty, and for every bad
  record; those of text that is read lazily are found by `texts`.
  """
  text = getattr(config.data, name)
  if not text:
    raise UserError(
      f"config.data.{name} is empty; give a JSONL file of {kind}s, a Parquet file, tfds:NAME or "
      "hub:OWNER/NAME/file.jsonl"
    )
  spelling = spellings.choose(config.data.spelling, kind, config.data.fields)
  said = f"{config.data.spelling} {config.data.fields}"
  load = partial(lazy.texts, said=said) if lazily else partial(sources.load, kind=kind)
  return [
    Part(weight, source, load(source, spelling=spelling)) for weight, source in mixture.parse(text)
  ]


def records(parts: Sequence[Part]) -> list:
  """Those of all sources, one after the other."""
  return [record for part in parts for record in part.records]


def rows(parts: Sequence[Part], make: Callable[[Part], Rows]) -> Rows:
  """What `make` makes of each source: rows, or a mixture where there are several."""
  found = tuple(make(part) for part in parts)
  return (
    Mixture(found, tuple(part.weight for part in parts))
    if len(found) > 1
    else found[0]
    if found
    else []
  )


def packed(
  config: Config, part: Part, found: Rows, length: int, what: str, sizes: Any = None
) -> Rows:
  """The rows of a source, packed where config.data.pack says so; then it says how full they are."""
  if not config.data.pack:
    return found
  bins = packing.pack(found, length, sizes)
  if jax.process_index() == 0:
    print(
      f"{part.source}: {len(found):,} {what} in {len(bins):,} rows of {length} tokens, "
      f"{100 * bins.share:.1f} % full",
      file=sys.stderr,
      flush=True,
    )
  return bins


def texts(
  config: Config, parts: Sequence[Part], tokenizer: Tokenizer, length: int
) -> tuple[Rows, str]:
  """(rows of `length` tokens, fingerprint) of text: windows of all documents joined, or documents
  packed.
  """
  prints: list[str] = []

  def make(part: Part) -> Rows:
    if not isinstance(part.records, lazy.Texts):
      if not config.data.pack:
        return pipeline.text(part.records, tokenizer, length=length, name=part.source)
      return packed(
        config,
        part,
        pipeline.documents(part.records, tokenizer, length=length),
        length,
        "pieces of text",
      )
    index = lazy.index(part.records, tokenizer)
    prints.append(index.fingerprint)
    if not config.data.pack:
      return lazy.windows(part.records, index, tokenizer, length)
    pieces = lazy.pieces(part.records, index, tokenizer, length)
    return packed(config, part, pieces, length, "pieces of text", pieces.sizes)

  found = rows(parts, make)
  if not prints:
    return found, fingerprint(records(parts))
  return found, prints[0] if len(prints) == 1 else hashlib.sha256(
    "".join(prints).encode()
  ).hexdigest()


def stream(
  config: Config, found: Rows, length: int, size: int, mine: Sequence[int]
) -> Callable[[int], Any]:
  """Batches of demonstrations or text, packed or not; `mine` as `pipeline.stream`."""
  pad = packing.pad_packed if config.data.pack else pipeline.pad_demonstrations
  return pipeline.stream(found, partial(pad, length=length), size=size, seed=config.seed, mine=mine)


def placed(batches: Callable[[int], PyTree]) -> Callable[[int], PyTree]:
  """The same batches on the devices; each process makes the rows of its own
  (`sharding.local_rows`).
  """

  def batch(i: int) -> PyTree:
    found = sharding.place_rows(batches(i))
    return found if sharding.is_sharded() else jax.device_put(found)

  return batch
