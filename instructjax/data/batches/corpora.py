"""The data that settings name, as rows to draw from: several sources by their weights, lazily read,
packed.

A field such as config.data.text may name one source or a mixture, "0.7*a.jsonl + 0.3*tfds:c4"
(`data.batches.mixture`). With config.data.pack (beside demonstrations, config.data.pack_text)
documents of text are packed (`data.batches.packing`), with config.data.lazy text is read when it is
needed (`data.batches.lazy`).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from instructjax import sharding
from instructjax.data.batches import lazy, mixture, packing, pipeline
from instructjax.data.batches.counts import Counts, sentence
from instructjax.data.batches.counts import facts as facts_of
from instructjax.data.batches.mixture import Mixture, Rows
from instructjax.data.records import sources, spellings
from instructjax.data.records.detect import Notes, sentences
from instructjax.data.records.records import Comparison, Demonstration, Prompt, fingerprint
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizer_check import show
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.data.tokens.vocabulary import document_end
from instructjax.errors import UserError, naming
from instructjax.settings import DataSettings, TextSettings
from instructjax.settings.dpo import PreferenceData
from instructjax.settings.grpo import AnsweredData
from instructjax.settings.ppo import PromptAndTextData
from instructjax.settings.reward import ComparisonData
from instructjax.settings.supervised import DemonstrationData, MixedData
from instructjax.types import PyTree


class Part(NamedTuple):
  """The records of one source and their weight in a mixture."""

  weight: float
  source: str
  records: Any  # a list, or `lazy.Texts`


def read(data: DataSettings, name: str, kind: str, *, lazily: bool = False) -> list[Part]:
  """The sources that the field `config.data.NAME` names, with their records.

  Raises UserError where the field is empty, and for every bad record. Those of text that is read
  lazily are found by `texts`.
  """
  text = getattr(data, name)
  if not text:
    raise UserError(
      f"config.data.{name} is empty; give a JSONL file of {kind}s, a Parquet file, tfds:NAME or "
      "hub:OWNER/NAME/file.jsonl"
    )
  spelling = spellings.choose(data.spelling, kind, data.fields, field=name)
  unknown = [field for field in spellings.fields_of(data.spelling) if not hasattr(data, field)]
  if unknown:
    raise UserError(
      f"config.data.spelling={data.spelling!r}: config.data has no field {unknown[0]!r}"
    )
  empty_completions = isinstance(data, PreferenceData | ComparisonData) and data.empty_completions
  parts = []
  with naming(f"config.data.{name}", text):
    for weight, source in mixture.parse(text):
      if lazily:
        spelling_name = f"{data.spelling} {data.fields}"
        parts.append(Part(weight, source, lazy.texts(source, spelling, spelling_name)))
        continue
      notes = Notes()
      source_records = sources.load(
        source,
        kind,
        spelling,
        notes=notes,
        place="config.data.",
        empty_completions=empty_completions,
      )
      _say_notes(notes, source)
      parts.append(Part(weight, source, source_records))
  return parts


def _say_notes(notes: Notes, source: str) -> None:
  """Says on stderr how a source was read, in one process of several."""
  if jax.process_index() == 0:
    for line in sentences(notes, source):
      print(line, file=sys.stderr, flush=True)


def read_one(data: DataSettings, name: str, kind: str) -> list:
  """The records of a field that names one source, every one of which is used.

  Raises UserError where the field is empty or names a mixture, and for every bad record.
  """
  parts = read(data, name, kind)
  if len(parts) > 1:
    raise UserError(
      f"config.data.{name}={getattr(data, name)}: every record is used here, so weights say "
      "nothing; "
      "give files with commas between"
    )
  return parts[0].records


def records(parts: Sequence[Part]) -> list:
  """The records of all sources, one source after the other."""
  return [record for part in parts for record in part.records]


def rows(parts: Sequence[Part], make: Callable[[Part], Rows]) -> Rows:
  """What `make` makes of each source: rows, or a mixture where there are several."""
  rows_by_part = tuple(make(part) for part in parts)
  if not rows_by_part:
    return []
  if len(rows_by_part) == 1:
    return rows_by_part[0]
  return Mixture(rows_by_part, tuple(part.weight for part in parts))


# --- records in rows ---

# Counts by the name of the source, for manifest.json.
CountsBySource = dict[str, Counts]


def demonstrations(
  data: DemonstrationData | MixedData | ComparisonData,
  records: Sequence[Demonstration],
  tokenizer: Tokenizer,
  template: chat.Template | None,
  name: str,
  counts: CountsBySource,
  *,
  end_cut: bool = False,
) -> list[pipeline.Row]:
  """The rows of demonstrations; what was cut or left out is added to `counts` and said on stderr.

  `end_cut` ends a completion that was cut. Raises UserError for texts that cannot be used.
  """
  if not records:
    return []
  counts[name] = Counts()
  rows = pipeline.demonstrations(
    records,
    tokenizer,
    prompt=data.prompt,
    response=data.response,
    separator=data.separator,
    end_cut=end_cut,
    name=name,
    template=template,
    long=data.long,
    counts=counts[name],
    # Demonstrations that a reward model scores are not learnt.
    loss="all" if isinstance(data, ComparisonData) else data.loss,
  )
  _say(name, counts[name])
  return rows


def comparisons(
  data: ComparisonData | PreferenceData,
  records: Sequence[Comparison],
  tokenizer: Tokenizer,
  template: chat.Template | None,
  name: str,
  counts: CountsBySource,
  *,
  end_cut: bool = True,
) -> tuple[list[pipeline.Group], list[Comparison]]:
  """(the rows of each prompt's completions, their records), counted as `demonstrations` does.

  `end_cut` ends a completion that was cut. Raises UserError for texts that cannot be used.
  """
  if not records:
    return [], []
  counts[name] = Counts()
  groups = pipeline.comparisons(
    records,
    tokenizer,
    prompt=data.prompt,
    response=data.response,
    separator=data.separator,
    end_cut=end_cut,
    name=name,
    template=template,
    long=data.long,
    counts=counts[name],
  )
  _say(name, counts[name])
  return groups, counts[name].kept(list(records))


def prompts(
  data: PromptAndTextData | AnsweredData,
  part: Part,
  tokenizer: Tokenizer,
  template: chat.Template | None,
  counts: CountsBySource,
) -> tuple[list[pipeline.Row], list[Prompt]]:
  """(the rows of a source of prompts, their records), counted and said as `demonstrations` does.

  Raises UserError for texts that cannot be used.
  """
  source_counts = counts[part.source] = Counts()
  rows = pipeline.prompts(
    part.records,
    tokenizer,
    prompt=data.prompt,
    name=part.source,
    template=template,
    long=data.long,
    counts=source_counts,
  )
  _say(part.source, source_counts)
  return rows, source_counts.kept(part.records)


def facts(counts: CountsBySource) -> dict[str, dict[str, int]]:
  """What manifest.json says of the rows."""
  return {name: facts_of(source_counts) for name, source_counts in counts.items()}


def _say(name: str, counts: Counts) -> None:
  """Prints the counts of a source on stderr, in one process of several.

  Raises UserError where every record was left out.
  """
  if counts.prompts and len(counts.left_out) == counts.prompts:
    raise UserError(
      f"{name}: all {counts.prompts} prompts are longer than config.data.prompt; raise it"
    )
  if jax.process_index() == 0:
    print(f"{name}: {sentence(counts)}", file=sys.stderr, flush=True)


def batches_in(epochs: int, rows: int, size: int, name: str) -> int:
  """The batches in which every row comes at least `epochs` times.

  A line on stderr says where the last batch goes on in the next pass. `name` is that of the setting
  of `epochs`. Raises UserError where there are no rows.
  """
  if not rows:
    raise UserError(f"{name}={epochs}: there are no rows to go through; give data")
  batches = pipeline.batches_for(epochs, rows, size)
  again = batches * size - epochs * rows
  if again and jax.process_index() == 0:
    print(
      f"{name}={epochs}: {batches:,} batches of {size} for {rows:,} rows; the last one takes "
      f"{again:,} of the next pass",
      file=sys.stderr,
      flush=True,
    )
  return batches


def packs_text(data: TextSettings) -> bool:
  """Whether documents stand side by side in a row, each by itself."""
  return data.pack_text if isinstance(data, MixedData) else data.pack


def packed(source: str, rows: Rows, length: int, what: str, sizes: Any = None) -> Rows:
  """The rows of a source, packed; a line on stderr says how full they are."""
  bins = packing.pack(rows, length, sizes)
  if jax.process_index() == 0:
    print(
      f"{source}: {len(rows):,} {what} in {len(bins):,} rows of {length} tokens, "
      f"{100 * bins.share:.1f} % full",
      file=sys.stderr,
      flush=True,
    )
  return bins


def texts(
  data: TextSettings, parts: Sequence[Part], tokenizer: Tokenizer, length: int
) -> tuple[Rows, str]:
  """(rows of `length` tokens, fingerprint) of text.

  Rows are windows of all documents joined or, packed, documents side by side.
  """
  pack = packs_text(data)
  lazy_prints: list[str] = []
  if parts:
    _say_document_end(tokenizer)

  def rows_of_source(part: Part) -> Rows:
    what = "pieces of text"
    if isinstance(part.records, lazy.Texts):
      index = lazy.index(part.records, tokenizer)
      lazy_prints.append(index.fingerprint)
      if not pack:
        return lazy.windows(part.records, index, tokenizer, length)
      pieces = lazy.pieces(part.records, index, tokenizer, length)
      return packed(part.source, pieces, length, what, pieces.sizes)
    if not pack:
      return pipeline.text(part.records, tokenizer, length=length, name=part.source)
    documents = pipeline.documents(part.records, tokenizer, length=length, name=part.source)
    return packed(part.source, documents, length, what)

  all_rows = rows(parts, rows_of_source)
  # The records of lazy text are never all in memory; its index was made from a pass over them.
  if not lazy_prints:
    return all_rows, fingerprint(records(parts))
  if len(lazy_prints) == 1:
    return all_rows, lazy_prints[0]
  return all_rows, hashlib.sha256("".join(lazy_prints).encode()).hexdigest()


def _say_document_end(tokenizer: Tokenizer) -> None:
  """Says which token ends a document, where responses end with another one."""
  end, closing = document_end(tokenizer), tokenizer.eos[0]
  if end == closing or jax.process_index() > 0:
    return
  print(
    f"documents of text end with {show(tokenizer, [end])}, responses with "
    f"{show(tokenizer, [closing])}",
    file=sys.stderr,
    flush=True,
  )


def place_batches(batches: Callable[[int], PyTree]) -> Callable[[int], PyTree]:
  """The same batches on the devices; each process makes the rows of its own
  (`sharding.local_rows`).
  """

  def batch(number: int) -> PyTree:
    arrays = sharding.place_rows(batches(number))
    return arrays if sharding.is_sharded() else jax.device_put(arrays)

  return batch
