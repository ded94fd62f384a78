"""Whether a tokenizer fits a model and whether texts survive it, in numbers and in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from instructjax.data.tokens.vocabulary import UNKNOWN, Tokenizer

# Texts that tokenizers often do not give back as they were.
CASES = {
  "combining marks": "e\u0301 a\u0308 n\u0303o",
  "emoji and their joiners": "👩\u200d👩\u200d👧 👍🏽 🇯🇵 ❤\ufe0f",
  "right to left": "שלום, עולם 123 مرحبا",
  "scripts without spaces": "你好，世界。日本語テキスト 한국어 ไทย",
  "beyond 16 bits": "𝔘𝔫𝔦 𓀀 \U0010fffd",
  "letters that change in lower case": "İ ı ß ẞ ǅ Σς",
  "compatibility forms": "Ａ ﬁ ½ ① ™ x²",
  "odd spaces": "a\u00a0b\u2003c\u3000d\u200be",
  "runs of spaces": "a   b      c ",
  "tabs and lines": "a\tb\n\n\tc\r\nd\n",
  "line and paragraph separators": "a\u2028b\u2029c\u0085d",
  "a byte order mark": "\ufeffa",
  "control characters": "a\x00b\x07c\x7fd",
  "replacement characters": "a\ufffdb\ufffcc",
  "numbers": "3.14159 1,234,567 -0x1F ١٢٣ １２３",
  "code": "if (a[0] < b) { return &x; }  // `#`\n",
  "SentencePiece's space": "a\u2581b",
}
NEVER = re.compile(r"(?!)")  # matches nothing


class Model(NamedTuple):
  """What a model's files say about its tokens.

  `rows` are those of its embedding; `named` are the ids that its files name, by file and key.
  """

  rows: int
  named: Mapping[str, tuple[int, ...]] = {}


class Measured(NamedTuple):
  """What became of some texts.

  texts, words, bytes, tokens, unknown   counts; words stand between white space, bytes are of UTF-8
  used      ids that occur
  special   how many texts name a special token; they are in no other figure
  lost      (number of the text from 1, what stood there, what came back) of the texts that changed
  strange   the number of the first text with an unknown token, or 0 where there is none
  """

  texts: int
  words: int
  bytes: int
  tokens: int
  unknown: int
  used: frozenset[int]
  special: int
  lost: tuple[tuple[int, str, str], ...]
  strange: int


def measure(tokenizer: Tokenizer, texts: Iterable[str]) -> Measured:
  """Returns the figures of texts."""
  unknown_ids = {i for name, i in tokenizer.specials.items() if UNKNOWN.fullmatch(name)}
  # An empty pattern would match every text.
  special_name = NEVER
  if tokenizer.specials:
    special_name = re.compile("|".join(map(re.escape, tokenizer.specials)))
  count = 0
  words = 0
  size = 0  # in bytes
  tokens = 0
  unknown = 0
  special = 0
  strange = 0
  used: set[int] = set()
  lost = []
  for number, text in enumerate(texts, 1):
    # The stages refuse such a text, so its tokens would never be seen.
    if special_name.search(text):
      special += 1
      continue
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    if decoded != text:
      before, after = _around_difference(text, decoded)
      lost.append((number, before, after))
    unknown_here = sum(i in unknown_ids for i in ids)
    if unknown_here and not strange:  # the first such text is the one that is reported
      strange = number
    count += 1
    words += len(text.split())
    size += len(text.encode())
    tokens += len(ids)
    unknown += unknown_here
    used.update(ids)
  return Measured(
    texts=count,
    words=words,
    bytes=size,
    tokens=tokens,
    unknown=unknown,
    used=frozenset(used),
    special=special,
    lost=tuple(lost),
    strange=strange,
  )


def _around_difference(text: str, decoded: str, width: int = 20) -> tuple[str, str]:
  """Returns `width` characters of both, from shortly before the first difference."""
  start = max(_first_difference(text, decoded) - width // 2, 0)
  end = start + width
  return text[start:end], decoded[start:end]


def _first_difference(a: Sequence, b: Sequence) -> int:
  """Returns where two sequences first differ, or the length of the shorter one."""
  for i, (x, y) in enumerate(zip(a, b)):
    if x != y:
      return i
  return min(len(a), len(b))


def cases(tokenizer: Tokenizer) -> list[str]:
  """Returns the names of the hard cases that do not come back as they were."""
  return [name for name, text in CASES.items() if measure(tokenizer, [text]).lost]


def misfits(tokenizer: Tokenizer, model: Model) -> list[str]:
  """Returns a sentence, with the remedy, for each way that a tokenizer does not fit a model."""
  rows = model.rows
  size = tokenizer.vocab_size
  problems = []
  if size > rows:
    problems.append(
      f"the tokenizer has {size} ids, the model's embedding {rows} rows: {size - rows} ids have "
      "none; give the tokenizer that the model was trained with"
    )
  ids_by_role = {"end-of-text": tokenizer.eos, "beginning-of-text": tokenizer.bos}
  for role, ids in ids_by_role.items():
    problems += [
      f"{role} id {i} of the tokenizer has no row among {rows}; give the model's own"
      for i in ids
      if i >= rows
    ]
  # The files of a model may name other ids than its tokenizer has.
  for place, ids in model.named.items():
    problems += _misfits_of_field(place, ids, tokenizer, rows)
  return problems


def _misfits_of_field(
  place: str,
  ids: Sequence[int],
  tokenizer: Tokenizer,
  rows: int,
) -> list[str]:
  """Returns what is wrong with the ids that one field of a model's files names."""
  size = tokenizer.vocab_size
  problems = []
  for i in ids:
    if not 0 <= i < rows:
      problems.append(f"{place} is {i}, the model has {rows} rows; fix the file")
    elif i >= size:
      problems.append(
        f"{place} is {i}, the tokenizer has {size} ids: no text means it; fix the file or give its "
        "tokenizer"
      )
  # A field may name several ids. It agrees with the tokenizer if they share one.
  if "eos" in place and ids and not set(ids) & set(tokenizer.eos):
    problems.append(
      f"{place} is {show(tokenizer, ids)}, a response ends here with "
      f"{show(tokenizer, tokenizer.eos)}; make them agree: in a folder eos_token_id of "
      "generation_config.json is read first"
    )
  # Many models name a beginning of text that their tokenizer never writes.
  if "bos" in place and tokenizer.bos and ids and not set(ids) & set(tokenizer.bos):
    problems.append(
      f"{place} is {show(tokenizer, ids)}, rows begin here with "
      f"{show(tokenizer, tokenizer.bos)}; make the files agree"
    )
  return problems


def losses(measured: Measured) -> list[str]:
  """Returns what texts lose: characters that are unknown, come back changed, or not at all."""
  problems = []
  if measured.unknown:
    problems.append(
      f"{measured.unknown} of {measured.tokens} tokens are unknown, the first in text "
      f"{measured.strange}; train the tokenizer with byte fallback and on text of this kind"
    )
  if measured.lost:
    number, before, after = measured.lost[0]
    problems.append(
      f"{len(measured.lost)} of {measured.texts} texts do not come back: in text {number}, "
      f"{before!r} becomes {after!r}; train with --normalization=identity and byte fallback, or "
      "take such characters out of the data"
    )
  return problems


def others(tokenizer: Tokenizer, own: Tokenizer, texts: Iterable[str]) -> list[str]:
  """Returns a sentence if the tokenizer that a model was trained with, `own`, gives other ids."""
  # The hard cases come first: there tokenizers of one size differ, even where plain text agrees.
  for text in (*CASES.values(), *texts):
    ids = tokenizer.encode(text)
    own_ids = own.encode(text)
    if ids != own_ids:
      # The first difference says more than that there is one.
      at = _first_difference(ids, own_ids)
      return [
        f"the model's own tokenizer gives other ids: {text[:20]!r} is {ids[at : at + 3]} from "
        f"token {at + 1} on, there {own_ids[at : at + 3]}; leave --tokenizer out"
      ]
  return []


def show(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
  """Returns ids as text, with the names of those that are special."""
  names = {i: name for name, i in tokenizer.specials.items()}
  shown_ids = [f"{i} {names[i]!r}" if i in names else str(i) for i in ids]
  return ", ".join(shown_ids) or "none"
