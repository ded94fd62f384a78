"""From records to batches of fixed shape, in three steps.

1. Each kind of record has a function that turns it into ids: `demonstrations`, `comparisons`,
   `prompts`, `text` and `documents`. Every length is checked there, before anything runs.
2. Each kind of row has a function that makes a batch of some rows: `pad_demonstrations`,
   `pad_prompts` and, for the groups of comparisons, `branches.pack`.
3. `stream` puts the rows in a shuffled, endless order and pads them batch by batch:

  rows = pipeline.demonstrations(records, tokenizer, prompt=24, response=40)
  batches = pipeline.stream(rows, partial(pipeline.pad_demonstrations, length=64), size=16, seed=0)
  batches(0), batches(1), ...     # batch i is a function of i: to resume is to remember an integer

A row is bos + prompt + separator and completion + eos, without a space more or less. The parts are
encoded one by one and never as a joined text (see `vocabulary`), so that the ids of a prompt are
the same in every row.

Dimensions: B rows, K completions of a group, T tokens, P prompt tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from instructjax.data.batches.counts import Counts
from instructjax.data.batches.mixture import Rows, endless
from instructjax.data.records import places, preferences
from instructjax.data.records.records import (
  Comparison,
  Demonstration,
  Prompt,
  Text,
  report,
)
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.data.tokens.vocabulary import document_end, named_specials, refusal
from instructjax.errors import UserError
from instructjax.settings.subjects import Long, Loss
from instructjax.types import Demonstrations, Prompts

SEPARATOR = " "  # between a prompt and its completion


# A numpy array where the type asks for a jax.Array. Padding makes batches on the host, and
# `sharding` puts them on the devices.
Host = Any
Pad = Callable[[Sequence[Any]], Any]  # rows to a batch


class Row(NamedTuple):
  """The ids of one row, and which of them are predicted and carry loss.

  These are the ids from `start` on, or those that `mask` marks where there is one.
  """

  ids: Int[np.ndarray, " T"]
  start: int
  mask: Bool[np.ndarray, " T"] | None = None  # only of a chat, where several replies carry loss


class Group(NamedTuple):
  """The rows of one prompt's completions, the rank of each, and its overall rating if it counts.

  Where the labels of pairs are no ranking, `labels` has them, and the ranks are all 1.
  """

  rows: tuple[Row, ...]
  ranks: tuple[int, ...]
  ratings: tuple[float, ...] = ()
  labels: Float[np.ndarray, "K K"] | None = None  # `preferences.weights`

  def distinct(self) -> np.ndarray:
    """Returns which pairs of rows differ in a token, [K, K]; as `reward.ranks_of` does."""
    ids = np.array([row.ids.tobytes().hex() for row in self.rows])
    return ids[:, None] != ids[None, :]


# --- records to ids ---


class _Layout(NamedTuple):
  """How a record becomes a row: what all records of one call share."""

  tokenizer: Tokenizer
  template: chat.Template | None  # renders the record as a chat; None for plain text
  prompt: int  # the most tokens of a prompt
  response: int  # the most tokens of a completion, its end included
  separator: str
  end_cut: bool  # whether a completion that was cut ends with an end-of-text token
  long: Long
  counts: Counts
  loss: Loss = "all"  # which replies of a chat carry it


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
  long: Long = "error",
  counts: Counts | None = None,
  loss: Loss = "all",
) -> list[Row]:
  """Returns the row of each demonstration, of at most `prompt` + `response` tokens.

  A longer response is cut, and ends with an end-of-text token only if `end_cut` is set. With a
  `template` the record is rendered as a chat, and every reply of the assistant carries loss but for
  those that the record marks, or, with `loss` "last", the last reply alone. A record whose prompt
  is too long is an error or is left out, as `long` says. What is cut and left out is added to
  `counts`.

  Raises:
    UserError: lists each prompt that is longer than `prompt` tokens and each text that spells a
      special token.
  """
  counts = Counts() if counts is None else counts
  layout = _Layout(tokenizer, template, prompt, response, separator, end_cut, long, counts, loss)
  problems: list[str] = []
  rows: list[Row] = []
  for number, record in enumerate(records):
    place = places.of(record, name, number)
    rows += _rows(record, {"completion": record.completion}, layout, number, place, problems)
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
  long: Long = "error",
  counts: Counts | None = None,
) -> list[Group]:
  """Returns the rows of every completion of each comparison, as `demonstrations` makes them.

  By default a completion that was cut ends with an end-of-text token all the same, because the
  reward model reads the score at the end. Completions that differ only after the cut have the same
  ids; their pairs weigh nothing (`reward.ranks_of`).

  Raises:
    UserError: for the same reasons as in `demonstrations`.
  """
  counts = Counts() if counts is None else counts
  layout = _Layout(tokenizer, template, prompt, response, separator, end_cut, long, counts)
  problems: list[str] = []
  groups = []
  for number, record in enumerate(records):
    completions = {f"completions[{k}]": text for k, text in enumerate(record.completions)}
    place = places.of(record, name, number)
    rows = _rows(record, completions, layout, number, place, problems)
    if not rows:  # its prompt is too long
      continue
    ids = [row.ids.tobytes() for row in rows]
    counts.equal += sum(a == b for a, b in itertools.combinations(ids, 2))
    if record.pairs:
      labels = preferences.weights(record)
      groups.append(Group(tuple(rows), (1,) * len(rows), labels=labels))
    else:
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
  long: Long = "error",
  counts: Counts | None = None,
) -> list[Row]:
  """Returns rows that hold only a prompt, of the records that `counts` does not say are left out.

  Raises:
    UserError: lists each prompt that is longer than `prompt` tokens, unless `long` is "drop", and
      each that spells a special token.
  """
  counts = Counts() if counts is None else counts
  layout = _Layout(tokenizer, template, prompt, 0, "", False, long, counts)
  problems: list[str] = []
  rows = []
  for number, record in enumerate(records):
    place = places.field(places.of(record, name, number), "prompt")
    ids = _prompt_ids(record, layout, place, problems)
    if ids is not None and _is_short(len(ids), layout, number, place, problems):
      rows.append(_row(ids, len(ids)))
  report(problems)
  return rows


def text(
  records: Sequence[Text],
  tokenizer: Tokenizer,
  *,
  length: int,
  tail: bool = False,
  name: str = "text",
) -> list[Row]:
  """Returns windows of `length` tokens of all documents, joined by `document_end` of the tokenizer.

  The last window, which may be shorter, is left out unless `tail` is set.

  Raises:
    UserError: if the text does not fill one window and `tail` is False, and lists each document
      that spells a special token.
  """
  ids: list[int] = []
  for document in document_ids(records, tokenizer, name):
    ids += document
  # Every window begins with `bos`, which leaves room for `step` tokens of the text.
  step = length - len(tokenizer.bos)
  windows = [ids[start : start + step] for start in range(0, len(ids), step)]
  # A single token has no next one to predict.
  least = 2 if tail else step
  if windows and len(windows[-1]) < least:
    windows.pop()
  if not windows:
    raise UserError(
      f"{name}: {len(ids)} tokens do not fill a window of {length}; give more text or a shorter "
      "window"
    )
  return [_row([*tokenizer.bos, *window], 1) for window in windows]


def documents(
  records: Sequence[Text],
  tokenizer: Tokenizer,
  *,
  length: int,
  name: str = "text",
) -> list[Row]:
  """Returns each document with the token that ends it, in pieces of at most `length` tokens.

  Unlike the windows of `text`, a piece never holds two documents. Pieces are what `packing` packs.
  A piece that is too short to predict a token is left out.

  Raises:
    UserError: lists each document that spells a special token.
  """
  step = length - len(tokenizer.bos)
  rows = []
  for ids in document_ids(records, tokenizer, name):
    for start in range(0, len(ids), step):
      piece = [*tokenizer.bos, *ids[start : start + step]]
      if len(piece) >= 2:
        rows.append(_row(piece, 1))
  return rows


def document_ids(
  records: Sequence[Text],
  tokenizer: Tokenizer,
  name: str,
) -> list[list[int]]:
  """Returns the ids of each document and of the token that ends it.

  Raises:
    UserError: lists each document that spells a special token.
  """
  end = document_end(tokenizer)
  problems: list[str] = []
  ids_of_each = []
  for number, record in enumerate(records):
    ids = tokenizer.encode(record.text)
    place = places.field(places.of(record, name, number), "text")
    problems += special_problems(tokenizer, record.text, ids, place)
    ids_of_each.append([*ids, end])
  report(problems)
  return ids_of_each


def special_problems(
  tokenizer: Tokenizer,
  text: str,
  ids: Sequence[int],
  place: str,
) -> list[str]:
  """Returns the problem of a text that spells special tokens; `ids` are those of the text.

  The rule is the same for every text of a user: prompts, completions, messages and documents.
  """
  names = named_specials(tokenizer, text, ids)
  return [f"{place}: {refusal(names)}"] if names else []


def _rows(
  record: Demonstration | Comparison,
  completions: Mapping[str, str],
  layout: _Layout,
  number: int,
  place: str,
  problems: list[str],
) -> list[Row]:
  """Returns a row for each completion of a record, and adds what is wrong to `problems`.

  `completions` maps the field of the record that a completion comes from to its text. `number` is
  the place of the record from 0, and `place` its file and line. There are no rows if the prompt is
  too long or cannot be used.
  """
  if layout.template is not None:
    return _chat_rows(record, completions, layout, number, place, problems)
  # All completions share the ids of the prompt, which is encoded and checked once.
  prompt_place = places.field(place, "prompt")
  prompt_ids = _prompt_ids(record, layout, prompt_place, problems)
  assert prompt_ids is not None  # only a chat may have none
  if not _is_short(len(prompt_ids), layout, number, prompt_place, problems):
    return []
  return [
    _plain_row(prompt_ids, completion, layout, places.field(place, field), problems)
    for field, completion in completions.items()
  ]


def _prompt_ids(
  record: Prompt | Demonstration | Comparison,
  layout: _Layout,
  place: str,
  problems: list[str],
) -> list[int] | None:
  """Returns the ids of a prompt, from `bos` on, or None for a chat that cannot be a prompt."""
  tokenizer = layout.tokenizer
  if layout.template is not None:
    try:
      return chat.head(layout.template, tokenizer, record.prompt, record.turns)
    except chat.ChatError as problem:
      problems.append(f"{place}: {problem}")
      return None
  text = record.prompt
  ids = tokenizer.encode(text)
  problems += special_problems(tokenizer, text, ids, place)
  layout.counts.changed += _is_changed(tokenizer, ids, tokenizer.decode(ids), text)
  ids = [*tokenizer.bos, *ids]
  if not ids:  # the model needs a token to start from
    problems.append(f"{place}: no tokens; give a text")
  return ids


def _is_changed(tokenizer: Tokenizer, ids: Sequence[int], decoded: str, text: str) -> bool:
  """Returns whether the tokenizer does not give a text back as it was.

  Where a line break ends responses, a prompt may have several. Decoding leaves them out, as it does
  with every end of a response, so that nothing can be said of such a text.
  """
  has_ends = not set(tokenizer.eos).isdisjoint(ids)
  return decoded != text and not has_ends


def _is_short(
  size: int,
  layout: _Layout,
  number: int,
  place: str,
  problems: list[str],
) -> bool:
  """Returns whether a prompt of `size` tokens is within the limit, and counts it."""
  layout.counts.prompts += 1
  if size <= layout.prompt:
    return True
  if layout.long == "drop":
    layout.counts.left_out.append(number)
  else:
    problems.append(
      f"{place}: {size} tokens, the limit is {layout.prompt}; shorten it, raise config.data.prompt "
      "or leave such records out with config.data.long=drop"
    )
  return False


def _chat_rows(
  record: Demonstration | Comparison,
  completions: Mapping[str, str],
  layout: _Layout,
  number: int,
  place: str,
  problems: list[str],
) -> list[Row]:
  """Returns the row of each chat that ends with one of the completions.

  Everything before the last reply is the prompt, and the last reply is cut as any completion is.
  """
  template = layout.template
  assert template is not None
  # What is wrong with the prompt is said once, and not for each completion.
  prompt_place = places.field(place, "prompt")
  prompt_ids = _prompt_ids(record, layout, prompt_place, problems)
  if prompt_ids is None:
    return []
  if not _is_short(len(prompt_ids), layout, number, prompt_place, problems):
    return []
  rows = []
  for field, completion in completions.items():
    try:
      ids, mask, start = chat.reply(
        template,
        layout.tokenizer,
        record.prompt,
        record.turns,
        completion,
        layout.loss,
      )
    except chat.ChatError as problem:
      problems.append(f"{places.field(place, field)}: {problem}")
      continue
    end = start + layout.response
    is_cut = len(ids) > end
    if is_cut:
      ids = ids[:end]
      mask = mask[:end]
      if layout.end_cut:
        ids[-1] = template.end  # in the place of the last token that fits
    _count_completion(ids[start:], layout, is_cut)
    # A comparison learns none of them, whatever the record says.
    if isinstance(record, Demonstration):
      learnt = chat.learnt_replies(record.turns, layout.loss)
      layout.counts.unlearnt += len(learnt) - sum(learnt)
    rows.append(_row(ids, start, mask))
  return rows


def _plain_row(
  prompt_ids: list[int],
  completion: str,
  layout: _Layout,
  place: str,
  problems: list[str],
) -> Row:
  """Returns prompt, separator, completion and end-of-text token as one row."""
  tokenizer = layout.tokenizer
  text = layout.separator + completion
  ids = tokenizer.encode_next(text)
  names = special_problems(tokenizer, text, ids, place)
  problems += names
  # Such a token in the middle would teach the model to stop and go on, or what it never samples.
  refused = {*tokenizer.eos, *tokenizer.banned}.intersection(ids)
  if refused and not names:
    problems.append(
      f"{place}: holds the ids {sorted(refused)}, which end a response or are never sampled (a "
      "line break, or characters that the tokenizer does not know); take them out of the text"
    )
  layout.counts.changed += _is_changed(tokenizer, ids, tokenizer.decode_next(ids), text)
  end = tokenizer.eos[0]
  is_cut = len(ids) >= layout.response
  if not is_cut:
    ids = [*ids, end]
  elif layout.end_cut:
    ids = [*ids[: layout.response - 1], end]
  else:
    ids = ids[: layout.response]
  _count_completion(ids, layout, is_cut)
  return _row([*prompt_ids, *ids], len(prompt_ids))


def _count_completion(ids: Sequence[int], layout: _Layout, is_cut: bool) -> None:
  """Counts a completion with these ids."""
  counts = layout.counts
  counts.completions += 1
  counts.cut += is_cut
  counts.endless += is_cut and not layout.end_cut
  counts.empty += not layout.tokenizer.decode_next(ids).strip()


def _row(
  ids: Sequence[int],
  start: int,
  mask: Sequence[bool] | None = None,
) -> Row:
  """Returns a row as arrays."""
  marks = None if mask is None else np.asarray(mask, bool)
  return Row(np.asarray(ids, np.int32), start, marks)


# --- ids to batches ---


def longest(rows: Sequence[Row], multiple: int = 8) -> int:
  """Returns the size of the longest row, rounded up: a `length` for the padding functions."""
  size = max(map(size_of, rows))
  return -(-size // multiple) * multiple


def size_of(row: Row) -> int:
  """Returns the number of tokens of a row."""
  return len(row.ids)


def pad_demonstrations(rows: Sequence[Row], *, length: int) -> Demonstrations:
  """Pads rows on the right into a batch [B, T].

  `mask` is True where the row's own mask is, or else from the row's start to its end.
  """
  tokens, valid = _pad_right([row.ids for row in rows], length)
  starts = np.asarray([row.start for row in rows])
  after_start = np.arange(length) >= starts[:, None]
  mask: Host = valid & after_start
  for i, row in enumerate(rows):
    if row.mask is not None:
      mask[i, : len(row.mask)] = row.mask
  return Demonstrations(tokens=tokens, valid=valid, mask=mask)


def pad_prompts(rows: Sequence[Row], *, length: int) -> Prompts:
  """Pads rows on the left into a batch [B, P], so that every response begins in one column."""
  # Each row is reversed, padded on the right, and reversed again.
  reversed_ids = [row.ids[::-1] for row in rows]
  tokens, valid = _pad_right(reversed_ids, length)
  left_tokens: Host = np.ascontiguousarray(tokens[:, ::-1])
  left_valid: Host = np.ascontiguousarray(valid[:, ::-1])
  return Prompts(tokens=left_tokens, valid=left_valid)


def _pad_right(ids: Sequence[np.ndarray], length: int) -> tuple[Host, Host]:
  """Returns the ids as one array [N, length], and where they are."""
  sizes = np.asarray([len(row) for row in ids])
  if sizes.max() > length:
    raise UserError(
      f"a row of {sizes.max()} tokens does not fit in batches of length {length}; raise the length"
    )
  columns = np.arange(length)
  valid = columns < sizes[:, None]
  tokens = np.zeros(valid.shape, np.int32)
  # Boolean indexing goes row by row, which is the order of the joined ids.
  tokens[valid] = np.concatenate(ids)
  return tokens, valid


# --- order ---


def batches_for(epochs: int, rows: int, size: int) -> int:
  """Returns the batches of `size` rows in which every row comes at least `epochs` times.

  The last batch is filled up with the first rows of the next pass.
  """
  return -(-epochs * rows // size)


def stream(
  rows: Rows,
  pad: Pad,
  *,
  size: int,
  seed: int,
  mine: Sequence[int] | None = None,
) -> Callable[[int], Any]:
  """Returns the function from the number of a batch to that batch of `size` rows.

  The order is endless and shuffled anew in each epoch, and any batch can be asked for at any time.
  An epoch is len(rows) / size batches; a batch may hold rows of two epochs. `mine` are the rows of
  every batch that this process makes (`sharding.local_rows`), None for all of them.

  Raises:
    UserError: if there are no rows.
  """
  row_at = endless(rows, seed)
  columns = range(size) if mine is None else [int(column) for column in mine]

  def batch(i: int) -> Any:
    first = i * size  # in the endless order
    return pad([row_at(first + column) for column in columns])

  return batch


def once(
  rows: Sequence[Any],
  pad: Pad,
  *,
  size: int,
) -> Iterator[tuple[Any, int]]:
  """Yields every row once and in order, as (batch of `size` rows, number of real rows).

  The last batch is filled up with the first rows, so that every batch has the same shape.
  """
  for start in range(0, len(rows), size):
    part = list(rows[start : start + size])
    real = len(part)
    # There may be fewer rows in all than a batch has: then they are repeated.
    part += [rows[i % len(rows)] for i in range(size - real)]
    yield pad(part), real
