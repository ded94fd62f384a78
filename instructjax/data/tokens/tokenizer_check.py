"""Does a tokenizer fit a model, and do texts survive it: numbers, and in words what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from instructjax.data.tokens.vocabulary import Tokenizer

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
UNKNOWN = re.compile(r"\W*unk(nown)?(_token)?\W*", re.IGNORECASE)


class Model(NamedTuple):
  """What a model knows of its tokens: the rows of its embedding, and the ids that its files name,
  by file and key.
  """

  rows: int
  named: Mapping[str, tuple[int, ...]] = {}


class Measured(NamedTuple):
  """Texts through a tokenizer.

  texts, words, bytes, tokens, unknown   counts; words stand between white space, bytes are of UTF-8
  used                                   ids that occur
  special                                texts that name a special token; they are in no other figure
  lost                                   (text number from 1, what stood there, what came back) of those that changed
  strange                                the first of these numbers with an unknown token; 0 where there is none
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
  """The figures of texts.  A leading space is not compared: some models add or drop it."""
  unknown = {i for name, i in tokenizer.specials.items() if UNKNOWN.fullmatch(name)}
  names = re.compile("|".join(re.escape(name) for name in tokenizer.specials) or r"(?!)")
  count = words = size = tokens = odd = special = strange = 0
  used: set[int] = set()
  lost = []
  for number, text in enumerate(texts, 1):
    if names.search(text):
      special += 1
      continue
    ids = tokenizer.encode(text)
    back = tokenizer.decode(ids)
    if back not in (text, text.removeprefix(" "), f" {text}"):
      lost.append((number, *_around(text, back)))
    here = sum(i in unknown for i in ids)
    strange = strange or (number if here else 0)
    count, words, size = count + 1, words + len(text.split()), size + len(text.encode())
    tokens, odd = tokens + len(ids), odd + here
    used.update(ids)
  return Measured(count, words, size, tokens, odd, frozenset(used), special, tuple(lost), strange)


def _around(text: str, back: str, width: int = 20) -> tuple[str, str]:
  """What stands in both from shortly before the first difference."""
  at = next((i for i, (a, b) in enumerate(zip(text, back)) if a != b), min(len(text), len(back)))
  start = max(at - width // 2, 0)
  return text[start : start + width], back[start : start + width]


def cases(tokenizer: Tokenizer) -> list[str]:
  """The names of the hard cases that do not come back."""
  return [name for name, text in CASES.items() if measure(tokenizer, [text]).lost]


def misfits(tokenizer: Tokenizer, model: Model) -> list[str]:
  """What does not fit between the ids of a tokenizer and a model: a sentence for each, with the
  remedy.
  """
  rows, size = model.rows, tokenizer.vocab_size
  problems = []
  if size > rows:
    problems.append(
      f"the tokenizer has {size} ids, the model's embedding {rows} rows: {size - rows} ids have "
      "none; give the tokenizer that "
      "the model was trained with"
    )
  parts = {"end-of-text": tokenizer.eos, "beginning-of-text": tokenizer.bos}
  for what, ids in parts.items():
    problems += [
      f"{what} id {i} of the tokenizer has no row among {rows}; give the model's own"
      for i in ids
      if i >= rows
    ]
  for place, ids in model.named.items():
    for i in ids:
      if not 0 <= i < rows:
        problems.append(f"{place} is {i}, the model has {rows} rows; mend the file")
      elif i >= size:
        problems.append(
          f"{place} is {i}, the tokenizer has {size} ids: no text means it; mend the file or give "
          "its tokenizer"
        )
    if "eos" in place and ids and not set(ids) & set(tokenizer.eos):
      problems.append(
        f"{place} is {show(tokenizer, ids)}, a response ends here with "
        f"{show(tokenizer, tokenizer.eos)}; make them agree: in a "
        "folder eos_token_id of generation_config.json is read first"
      )
    if "bos" in place and tokenizer.bos and ids and not set(ids) & set(tokenizer.bos):
      problems.append(
        f"{place} is {show(tokenizer, ids)}, rows begin here with "
        f"{show(tokenizer, tokenizer.bos)}; make the files agree"
      )
  return problems


def losses(found: Measured) -> list[str]:
  """What texts lose: unknown tokens, and characters that come back as others or not at all."""
  problems = []
  if found.unknown:
    problems.append(
      f"{found.unknown} of {found.tokens} tokens are unknown, the first in text {found.strange}; "
      "train the tokenizer with byte "
      "fallback and on text of this kind"
    )
  if found.lost:
    number, was, now = found.lost[0]
    problems.append(
      f"{len(found.lost)} of {found.texts} texts do not come back: in text {number}, {was!r} "
      f"becomes {now!r}; train with "
      "--normalization=identity and byte fallback, or take such characters out of the data"
    )
  return problems


def others(tokenizer: Tokenizer, own: Tokenizer, texts: Iterable[str]) -> list[str]:
  """Whether the tokenizer that a model was trained with gives other ids."""
  for text in (*CASES.values(), *texts):
    ours, theirs = tokenizer.encode(text), own.encode(text)
    if ours != theirs:
      at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs))
      )
      return [
        f"the model's own tokenizer gives other ids: {text[:20]!r} is {ours[at : at + 3]} from "
        f"token {at + 1} on, there "
        f"{theirs[at : at + 3]}; leave --tokenizer out"
      ]
  return []


def show(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
  """Ids with the names of those that are special."""
  names = {i: name for name, i in tokenizer.specials.items()}
  return ", ".join(f"{i} {names[i]!r}" if i in names else str(i) for i in ids) or "none"
