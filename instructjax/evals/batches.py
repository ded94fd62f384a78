"""Requests become rows of ids, and rows become batches of few shapes, the longest rows first.

A prompt that several rows begin with (the choices of a question, the samples of a prompt) is read
once for a group of them. The size of a group is chosen for each kind of rows, so that the model
reads as few tokens as possible.

A plan is a function of the requests, the model's context and the budget alone. A run that continues
therefore makes the same batches again, with the same noise, and samples what the uninterrupted run
would have sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from instructjax.data.batches.pipeline import Row
from instructjax.errors import UserError
from instructjax.evals.tasks import Generate, Likelihood, Request

NARROW = 16  # tokens of the narrowest batch, and the step of the next ones
SHORT = 8  # tokens of the narrowest end of rows that share a prompt
MOST = 32  # rows that share a prompt
# A prompt is shared only where that reads less than this share of the tokens of separate rows.
PAYS = 0.8


class Decoding(NamedTuple):
  """How the rows of a batch are continued, see `Generate`."""

  tokens: int
  temperature: float
  stop: tuple[str, ...]
  top_p: float = 1.0
  top_k: int = 0
  is_over: Callable[[str], bool] | None = None


class Entry(NamedTuple):
  """One row of ids for the model, and the place where its answer belongs.

  item, request, sample   the place of the item, of the request within it, and of the sample
  row                     the ids; those from `row.start` on are the continuation to be weighed
  cut                     the tokens that were left out at the beginning
  decoding                None says that the row is weighed and not continued
  """

  item: int
  request: int
  sample: int
  row: Row
  cut: int
  decoding: Decoding | None = None

  @property
  def prompt_length(self) -> int:
    """The number of ids before the continuation."""
    return self.row.start

  @property
  def end_length(self) -> int:
    """The number of ids of the continuation, 0 where the model writes it."""
    return len(self.row.ids) - self.row.start


Group = tuple[Entry, ...]  # entries with the same prompt


class Batch(NamedTuple):
  """Groups of rows of one kind, computed together: `size` groups of `fan` rows.

  The rows of a group share their prompt. There may be fewer groups, and fewer rows in a group: the
  rest is filling.

  width      tokens of the prompts, or of whole rows where `end` is 0
  end        tokens of what follows the prompt; 0 where each row is weighed by itself
  decoding   None says that the rows are weighed
  """

  groups: tuple[Group, ...]
  width: int
  end: int
  size: int
  fan: int
  decoding: Decoding | None

  @property
  def entries(self) -> tuple[Entry, ...]:
    """The rows that were asked for, without the filling."""
    return tuple(entry for group in self.groups for entry in group)


# --- rows ---


def rows(
  requests: Iterable[tuple[int, Sequence[Request]]],
  head: Callable[[str], list[int]],
  encode: Callable[[str], list[int]],
  context: int,
  before: Callable[[str], list[int]] | None = None,
) -> list[Entry]:
  """Returns the rows for pairs of (place of an item, its requests).

  A prompt that does not fit the context loses its beginning.

  Args:
    requests: the pairs.
    head: gives the ids of a prompt, including whatever precedes it.
    encode: gives the ids of a continuation.
    context: the tokens that the model can read.
    before: gives the ids of the context of a likelihood; None is `head`.

  Raises:
    UserError: if an answer alone does not fit, or a continuation has no tokens.
  """
  entries: list[Entry] = []
  for item, requests_of_item in requests:
    for number, request in enumerate(requests_of_item):
      if isinstance(request, Generate):
        row, cut = _generated(request, head, context)
        decoding = _decoding(request)
        # The samples of a request have the same row: they differ in their noise.
        samples = range(request.n)
        entries += [Entry(item, number, sample, row, cut, decoding) for sample in samples]
      else:
        row, cut = _weighed(request, before or head, encode, context)
        entries.append(Entry(item, number, 0, row, cut))
  return entries


def _generated(
  request: Generate,
  head: Callable[[str], list[int]],
  context: int,
) -> tuple[Row, int]:
  """Returns (the row of a `Generate`, how many of its ids were left out)."""
  ids, cut = _shortened(head(request.prompt), [], request.tokens, context)
  # All ids are prompt: the model writes the rest.
  return Row(ids, len(ids)), cut


def _decoding(request: Generate) -> Decoding:
  """Returns how the rows of a request are continued."""
  return Decoding(
    request.tokens,
    request.temperature,
    request.stop,
    request.top_p,
    request.top_k,
    # Sampled answers are drawn whole: what a row draws depends on how often it begins anew.
    request.is_over if request.temperature == 0 else None,
  )


def _weighed(
  request: Likelihood,
  head: Callable[[str], list[int]],
  encode: Callable[[str], list[int]],
  context: int,
) -> tuple[Row, int]:
  """Returns (the row of a `Likelihood`, how many of its ids were left out)."""
  end = encode(request.continuation)
  if not end:
    before = request.context[-40:]
    raise UserError(f"a continuation of no tokens: {request.continuation!r} after {before!r}")
  ids, cut = _shortened(head(request.context), end, len(end), context)
  # The ids from here on are the continuation that is weighed.
  start = len(ids) - len(end)
  return Row(ids, start), cut


def _shortened(
  head: list[int],
  end: list[int],
  answer: int,
  context: int,
) -> tuple[np.ndarray, int]:
  """Returns (the ids of a row that leaves room for the answer, how many ids were left out)."""
  room = context - answer
  if room < 1:
    raise UserError(
      f"an answer of {answer} tokens leaves no room for a prompt in the model's context of "
      f"{context}; ask for fewer tokens"
    )
  cut = max(len(head) - room, 0)
  if cut:
    # The first id stays: a model may expect a beginning-of-text token there.
    head = [head[0], *head[1 + cut :]]
  return np.asarray([*head, *end], np.int32), cut


# --- widths ---


def rounded(number: int, step: int = 1) -> int:
  """Returns a number rounded up to one of few values, at most a ninth above it.

  It is the next multiple of `step` or, if that is larger, of an eighth of the power of two below
  the number.
  """
  exponent = number.bit_length() - 4  # of an eighth of the power of two below the number
  step = max(step, 1 << max(exponent, 0))
  steps = -(-number // step)  # rounded up
  return steps * step


def wide(length: int, most: int) -> int:
  """Returns the width of a batch for rows of a length, `most` at most."""
  return min(rounded(length, NARROW), most)


def _end_width(group: Group) -> int:
  """Returns the room for what follows the prompt in the rows of a group."""
  longest = max(entry.end_length for entry in group)
  return SHORT if longest <= SHORT else rounded(longest, NARROW)


# --- batches ---


class Form(NamedTuple):
  """What the batches of rows of one kind have in common, see `Batch`.

  fan        rows of a group, at most
  end        tokens of what follows the prompt; 0 where each row is weighed by itself
  widest     tokens of a prompt, at most
  decoding   None says that the rows are weighed
  """

  fan: int
  end: int
  widest: int
  decoding: Decoding | None = None


def plan(
  entries: Sequence[Entry],
  budget: int,
  parts: int,
  most: int,
) -> list[Batch]:
  """Returns the batches that compute all rows.

  Args:
    entries: the rows.
    budget: the tokens of a batch, answers and padding included.
    parts: the devices that a batch is split over; a batch has a multiple of so many groups.
    most: the tokens of the model's context.
  """
  # Kinds come in the order of their first rows, so that the plan is the same in every run.
  entries_by_decoding: dict[Decoding | None, list[Entry]] = {}
  for entry in entries:
    entries_by_decoding.setdefault(entry.decoding, []).append(entry)

  batches: list[Batch] = []
  for decoding, alike in entries_by_decoding.items():
    groups = _by_prompt(alike)
    if decoding is None:
      batches += _weighed_batches(groups, budget, parts, most)
      continue
    end = decoding.tokens
    fan = _fan(groups, end, budget // parts)
    form = Form(fan, end, most - end, decoding)
    batches += _batches(groups, form, budget, parts)
  return batches


def _weighed_batches(
  groups: Sequence[Group],
  budget: int,
  parts: int,
  most: int,
) -> Iterator[Batch]:
  """Yields the batches of rows whose continuation is weighed."""
  groups_by_end: dict[int, list[Group]] = {}
  for group in groups:
    end = _end_width(group)
    groups_by_end.setdefault(end, []).append(group)

  separate: list[Group] = []  # groups whose rows are better, or only, computed each by itself
  for end, alike in sorted(groups_by_end.items(), reverse=True):
    # The end is wider than the continuation: a prompt of nearly the context leaves no room for it.
    widest = most - end
    fitting = [group for group in alike if group[0].prompt_length <= widest]
    fan = _fan(fitting, end, budget // parts)
    if fan == 1:
      separate += alike
      continue
    yield from _batches(fitting, Form(fan, end, widest), budget, parts)
    separate += [group for group in alike if group[0].prompt_length > widest]
  yield from _batches(separate, Form(1, 0, most), budget, parts)


def _batches(
  groups: Sequence[Group],
  form: Form,
  budget: int,
  parts: int,
) -> Iterator[Batch]:
  """Yields batches of one form, those with the longest prompts first."""

  def length(group: Group) -> int:
    # A row that is weighed by itself counts as a whole.
    return group[0].prompt_length if form.end else len(group[0].row.ids)

  # The sort is stable: pieces of one length keep their order, and the plan stays the same.
  pieces = sorted(_split(groups, form.fan), key=length, reverse=True)
  start = 0
  while start < len(pieces):
    width = wide(length(pieces[start]), form.widest)
    group_tokens = form.fan * (width + form.end)
    fitting = budget // group_tokens // parts * parts
    # The last batch is hardly larger than what is left, and still has one of few sizes.
    left_of_part = -(-(len(pieces) - start) // parts)
    left = rounded(left_of_part) * parts
    size = max(min(fitting, left), parts)
    selected = tuple(pieces[start : start + size])
    yield Batch(selected, width, form.end, size, form.fan, form.decoding)
    start += size


def _split(groups: Sequence[Group], fan: int) -> list[Group]:
  """Returns the groups in pieces of at most `fan` rows."""
  pieces = []
  for group in groups:
    pieces += [group[start : start + fan] for start in range(0, len(group), fan)]
  return pieces


def _by_prompt(entries: Iterable[Entry]) -> list[Group]:
  """Returns the rows of each prompt, in the order in which the prompts come."""
  groups: dict[bytes, list[Entry]] = {}
  for entry in entries:
    prompt = entry.row.ids[: entry.prompt_length]
    groups.setdefault(prompt.tobytes(), []).append(entry)
  return [tuple(group) for group in groups.values()]


def _fan(groups: Sequence[Group], end: int, budget: int) -> int:
  """Returns the rows of a group with which the model reads the fewest tokens; 1 unless it pays.

  `end` tokens follow the prompt in each row. A group with the longest prompt must fit `budget`, the
  tokens of one device.
  """
  counts = np.array([len(group) for group in groups])
  prompts = np.array([group[0].prompt_length for group in groups])
  # Separate rows read their prompt each, and their own continuation without padding.
  ends = sum(entry.end_length or end for group in groups for entry in group)
  separate = sum(counts * prompts) + ends

  longest = max(prompts, default=0)
  fitting = budget // (rounded(int(longest), NARROW) + end)
  largest = min(max(counts, default=1), MOST, fitting)
  tokens_by_fan = {}
  for fan in range(2, largest + 1):
    pieces = -(-counts // fan)  # the last piece of a group reads `fan` ends too
    piece_tokens = prompts + fan * end
    tokens_by_fan[fan] = (pieces * piece_tokens).sum()
  if not tokens_by_fan:
    return 1
  best = min(tokens_by_fan, key=lambda fan: tokens_by_fan[fan])
  return best if tokens_by_fan[best] < PAYS * separate else 1
