"""From records to batches of fixed shape: ids once, padding per batch, any batch by its number.

Each kind of record has a function to ids (`demonstrations`, `comparisons`, `prompts`, `text`),
which checks every length before anything runs, and one to a batch (`pad_demonstrations`, ...).
`stream` puts rows in a shuffled, endless order:

  rows = pipeline.demonstrations(records, tokenizer, prompt=24, response=40)
  batches = pipeline.stream(rows, partial(pipeline.pad_demonstrations, length=64), size=16, seed=0)
  batches(0), batches(1), ...     # batch i is a function of i: to resume is to remember an integer

A row is bos + prompt + separator and completion + eos, encoded part by part (see `tokenizers`).

Dimensions: B rows, K completions, T tokens, P prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from instructjax.data.batches.mixture import Rows, endless
from instructjax.data.records.records import Comparison, Demonstration, Prompt, Text, report
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.types import Comparisons, Demonstrations, Prompts

SEPARATOR = " "  # between a prompt and its completion


# A numpy array in the place of a jax.Array: padding makes batches on the host, `sharding` puts them
# on the devices
Host = Any


class Row(NamedTuple):
  """The ids of one row; those from `start` on are predicted and carry loss, or those that `mask`
  marks.
  """

  ids: Int[np.ndarray, " T"]
  start: int
  mask: Bool[np.ndarray, " T"] | None = None  # of a chat, where several replies carry loss


class Group(NamedTuple):
  """The rows of one prompt's completions and their ranks."""

  rows: tuple[Row, ...]
  ranks: tuple[int, ...]


# --- records to ids ---


def demonstrations(
  records: Sequence[Demonstration],
  tokenizer: Tokenizer,
  *,
  prompt: int,
  response: int,
  separator: str = SEPARATOR,
  end_cut: bool = False,
  name: str = "demonstrations",
  template: chat.Template | None = None,
) -> list[Row]:
  """Rows of at most `prompt` + `response` tokens.

  A longer response is cut; it then closes with an end-of-text token only if `end_cut`.  Raises
  UserError naming each prompt that is longer than `prompt` tokens and each completion that holds
  an end-of-text token. With a `template` the record is rendered as a chat, and every reply of
  the assistant carries loss.
  """
  problems: list[str] = []
  rows = []
  for line, record in enumerate(records, 1):
    place = f"{name}:{line}: completion"
    if template is not None:
      text = record.completion
      rows.append(
        _chat_row(record, text, tokenizer, template, prompt, response, end_cut, place, problems)
      )
      continue
    head = _prompt(record.prompt, tokenizer, prompt, f"{name}:{line}: prompt", problems)
    rows.append(
      _row(head, record.completion, tokenizer, response, separator, end_cut, place, problems)
    )
  report(problems)
  return rows


def comparisons(
  records: Sequence[Comparison],
  tokenizer: Tokenizer,
  *,
  prompt: int,
  response: int,
  separator: str = SEPARATOR,
  end_cut: bool = True,
  name: str = "comparisons",
  template: chat.Template | None = None,
) -> list[Group]:
  """The rows of every completion, as `demonstrations`; a cut one ends too: the score is read at its
  end.
  """
  problems: list[str] = []
  groups = []
  for line, record in enumerate(records, 1):
    places = [f"{name}:{line}: completions[{k}]" for k in range(len(record.completions))]
    if template is None:
      head = _prompt(record.prompt, tokenizer, prompt, f"{name}:{line}: prompt", problems)
      rows = [
        _row(head, text, tokenizer, response, separator, end_cut, place, problems)
        for text, place in zip(record.completions, places, strict=True)
      ]
    else:
      rows = [
        _chat_row(record, text, tokenizer, template, prompt, response, end_cut, place, problems)
        for text, place in zip(record.completions, places, strict=True)
      ]
    groups.append(Group(tuple(rows), tuple(record.ranks)))
  report(problems)
  return groups


def prompts(
  records: Sequence[Prompt],
  tokenizer: Tokenizer,
  *,
  prompt: int,
  name: str = "prompts",
  template: chat.Template | None = None,
) -> list[Row]:
  """Rows that hold a prompt only.  Raises UserError naming each one longer than `prompt` tokens."""
  problems: list[str] = []
  heads = []
  for line, record in enumerate(records, 1):
    place = f"{name}:{line}: prompt"
    if template is None:
      heads.append(_prompt(record.prompt, tokenizer, prompt, place, problems))
      continue
    try:
      heads.append(chat.head(template, tokenizer, record.prompt, record.turns))
      _limit(len(heads[-1]), prompt, place, problems)
    except chat.ChatError as problem:
      problems.append(f"{place}: {problem}")
  report(problems)
  return [Row(np.asarray(ids, np.int32), len(ids)) for ids in heads]


def text(
  records: Sequence[Text],
  tokenizer: Tokenizer,
  *,
  length: int,
  tail: bool = False,
  name: str = "text",
) -> list[Row]:
  """Windows of `length` tokens out of all documents, joined by end-of-text tokens; `tail` keeps the
  last, short one.

  Raises UserError where the text does not fill one window and `tail` is False.
  """
  stream = [i for record in records for i in (*tokenizer.encode(record.text), tokenizer.eos[0])]
  step = length - len(tokenizer.bos)
  windows = [(*tokenizer.bos, *stream[at : at + step]) for at in range(0, len(stream), step)]
  if windows and len(windows[-1]) < (len(tokenizer.bos) + 2 if tail else length):
    windows.pop()
  if not windows:
    raise UserError(
      f"{name}: {len(stream)} tokens do not fill a window of {length}; give more text or a shorter "
      "window"
    )
  return [Row(np.asarray(ids, np.int32), 1) for ids in windows]


def documents(records: Sequence[Text], tokenizer: Tokenizer, *, length: int) -> list[Row]:
  """Each document by itself, with its end-of-text token, in pieces of at most `length` tokens: what
  is packed.

  A piece that is too short to predict a token is left out.
  """
  step, bos = length - len(tokenizer.bos), tokenizer.bos
  whole = ([*tokenizer.encode(record.text), tokenizer.eos[0]] for record in records)
  pieces = [(*bos, *ids[at : at + step]) for ids in whole for at in range(0, len(ids), step)]
  return [Row(np.asarray(ids, np.int32), 1) for ids in pieces if len(ids) >= 2]


def _prompt(
  text: str, tokenizer: Tokenizer, limit: int, place: str, problems: list[str]
) -> list[int]:
  ids = [*tokenizer.bos, *tokenizer.encode(text)]
  _limit(len(ids), limit, place, problems)
  if not ids:
    problems.append(f"{place}: no tokens; give a text")
  return ids


def _limit(size: int, limit: int, place: str, problems: list[str]) -> None:
  if size > limit:
    problems.append(
      f"{place}: {size} tokens, the limit is {limit}; shorten it, drop the record or raise the "
      "limit"
    )


def _chat_row(
  record: Demonstration | Comparison,
  completion: str,
  tokenizer: Tokenizer,
  template: chat.Template,
  prompt: int,
  response: int,
  end_cut: bool,
  place: str,
  problems: list[str],
) -> Row:
  """The row of a chat: what stands before the last reply is the prompt, and that reply is cut as
  any completion.
  """
  try:
    ids, mask, start = chat.reply(template, tokenizer, record.prompt, record.turns, completion)
  except chat.ChatError as problem:
    problems.append(f"{place}: {problem}")
    return EMPTY
  _limit(start, prompt, f"{place.rpartition(':')[0]}: prompt", problems)
  if len(ids) - start > response:
    ids, mask = ids[: start + response], mask[: start + response]
    ids[-1] = template.end if end_cut else ids[-1]
  return Row(np.asarray(ids, np.int32), start, np.asarray(mask, bool))


def _row(
  head: list[int],
  completion: str,
  tokenizer: Tokenizer,
  limit: int,
  separator: str,
  end_cut: bool,
  place: str,
  problems: list[str],
) -> Row:
  ids = tokenizer.encode(separator + completion.lstrip() if separator else completion)
  special = set(ids) & {*tokenizer.eos, *tokenizer.banned}
  if special:
    problems.append(
      f"{place}: holds the special tokens {sorted(special)}; take their names out of the text"
    )
  end = [tokenizer.eos[0]]
  if len(ids) + 1 > limit:
    ids, end = (ids[: limit - 1], end) if end_cut else (ids[:limit], [])
  return Row(np.asarray([*head, *ids, *end], np.int32), len(head))


# --- ids to batches ---


def longest(rows: Sequence[Row] | Sequence[Group], multiple: int = 8) -> int:
  """The length that holds every row, rounded up: the `length` of the padding functions."""
  return -(-max(map(size_of, rows)) // multiple) * multiple


def size_of(row: Row | Group) -> int:
  """The tokens of a row, or of the longest one of a group."""
  return max(len(one.ids) for one in row.rows) if isinstance(row, Group) else len(row.ids)


def pad_demonstrations(rows: Sequence[Row], *, length: int) -> Demonstrations:
  """[B, T] right padded; `mask` is True from each row's start to its end, or where the row's own
  is.
  """
  tokens, valid = _right([row.ids for row in rows], length)
  mask: Host = valid & (np.arange(length) >= np.asarray([row.start for row in rows])[:, None])
  for i, row in enumerate(rows):
    if row.mask is not None:
      mask[i, : len(row.mask)] = row.mask
  return Demonstrations(tokens=tokens, valid=valid, mask=mask)


def pad_comparisons(groups: Sequence[Group], *, k: int, length: int) -> Comparisons:
  """[B, K, T] right padded; a prompt with fewer than `k` completions is filled up with rank 0.

  Raises UserError where one has more.
  """
  most = max(len(group.rows) for group in groups)
  if most > k:
    raise UserError(f"{most} completions do not fit in batches of k = {k}; raise k")
  ids = [row.ids for group in groups for row in group.rows + (EMPTY,) * (k - len(group.rows))]
  tokens, valid = _right(ids, length)
  shape = (len(groups), k, length)
  rank: Host = np.asarray(
    [group.ranks + (0,) * (k - len(group.ranks)) for group in groups], np.int32
  )
  return Comparisons(tokens=tokens.reshape(shape), valid=valid.reshape(shape), rank=rank)


def pad_prompts(rows: Sequence[Row], *, length: int) -> Prompts:
  """[B, P] left padded."""
  tokens, valid = _right([row.ids[::-1] for row in rows], length)
  flipped: list[Host] = [np.ascontiguousarray(x[:, ::-1]) for x in (tokens, valid)]
  return Prompts(*flipped)


EMPTY = Row(np.zeros(0, np.int32), 0)


def _right(ids: Sequence[np.ndarray], length: int) -> tuple[Host, Host]:
  sizes = np.asarray([len(row) for row in ids])
  if sizes.max() > length:
    raise UserError(
      f"a row of {sizes.max()} tokens does not fit in batches of length {length}; raise the length"
    )
  valid = np.arange(length) < sizes[:, None]
  tokens = np.zeros(valid.shape, np.int32)
  tokens[valid] = np.concatenate(ids)
  return tokens, valid


# --- order ---


def stream(
  rows: Rows,
  pad: Callable[[Sequence[Any]], Any],
  *,
  size: int,
  seed: int,
  mine: Sequence[int] | None = None,
) -> Callable[[int], Any]:
  """Batch number -> batch of `size` rows, in an order shuffled anew each epoch; endless and random
  access.

  An epoch is len(rows) / size batches; a batch may straddle two epochs.  `mine` are the rows of
  every batch that this process makes (`sharding.local_rows`), None all.  Raises UserError where
  there are no rows.
  """
  order = endless(rows, seed)
  places = range(size) if mine is None else [int(at) for at in mine]
  return lambda i: pad([order(i * size + at) for at in places])


def once(
  rows: Sequence[Any], pad: Callable[[Sequence[Any]], Any], *, size: int
) -> Iterator[tuple[Any, int]]:
  """Every row once, in order: (batch, number of real rows); the last one is filled up from the
  first rows.
  """
  for at in range(0, len(rows), size):
    part = list(rows[at : at + size])
    yield pad([*part, *(rows[i % len(rows)] for i in range(size - len(part)))]), len(part)
