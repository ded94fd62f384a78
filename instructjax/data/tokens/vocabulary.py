"""The protocol of a tokenizer, text to ids and back, and what its makers share.

A row of training data is `bos + encode(prompt) + encode(completion) + (eos[0],)`, built from the
parts and never from the joined text, and a sampled response is kept as ids: what the model is
trained on, samples and is scored on are the same ids everywhere.  `decode` is for reading only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from instructjax.errors import UserError


class Tokenizer(NamedTuple):
  """Encode, decode and the ids that matter.

  encode(text) -> ids    nothing is added; a special token's name in the text (`<|im_start|>`) becomes its id
  decode(ids) -> text    ids of `bos`, `eos` and `banned` are left out
  vocab_size             every id is below it
  eos                    ids that end a response; the first one closes every completion in training
  banned                 ids that are never sampled (padding, control tokens, ids without a meaning)
  bos                    ids that the model expects before every row; most have none
  fingerprint            sha256 of what decides the ids, for manifests and checkpoints
  specials               the special tokens by name
  """

  encode: Callable[[str], list[int]]
  decode: Callable[[Sequence[int]], str]
  vocab_size: int
  eos: tuple[int, ...]
  banned: tuple[int, ...]
  bos: tuple[int, ...]
  fingerprint: str
  specials: Mapping[str, int] = MappingProxyType({})


def fit(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
  """The tokenizer beside a model of `vocab_size`: ids that only the model knows are banned.

  Raises UserError where the model has fewer ids than the tokenizer.
  """
  if vocab_size < tokenizer.vocab_size:
    raise UserError(
      f"the tokenizer has {tokenizer.vocab_size} ids but the model only {vocab_size}: they do not "
      "belong "
      "together; give the tokenizer that the model was trained with, or set the model's vocab_size"
    )
  extra = tuple(range(tokenizer.vocab_size, vocab_size))
  return tokenizer._replace(banned=tokenizer.banned + extra, vocab_size=vocab_size)


# --- for those that make one ---


def named(
  encode: Callable[[str], list[int]], specials: Mapping[str, int]
) -> Callable[[str], list[int]]:
  """Encode that turns the name of a special token into its id."""
  names = "|".join(re.escape(name) for name in sorted(specials, key=len, reverse=True))
  if not names:
    return encode
  split = re.compile(f"({names})")

  def parsed(text: str) -> list[int]:
    parts = [part for part in split.split(text) if part]
    return [i for part in parts for i in ([specials[part]] if part in specials else encode(part))]

  return parsed


def joinable(encode: Callable[[str], list[int]]) -> Callable[[str], list[int]]:
  """Encode parts as they would stand in the whole text.

  Some models put a space before every text: there " word" would become two spaces, so the text's
  own is dropped.
  """
  adds_a_space = encode("a a") == 2 * encode("a")
  return (lambda text: encode(text.removeprefix(" "))) if adds_a_space else encode


def finish(encode, decode, size, eos, control, bos, fingerprint, *, piece) -> Tokenizer:
  """Check the special ids, ban the control tokens and leave all of them out of decoded text."""
  for i in eos:
    if not 0 <= i < size:
      raise UserError(
        f"end-of-text id {i} is outside of the tokenizer's {size} ids; the tokenizer's files "
        "disagree"
      )
  silenced = set(control) - set(eos)
  banned = tuple(i for i in range(size) if i in silenced or piece(i) is None)
  silent = {*eos, *banned, *bos}
  return Tokenizer(
    encode=encode,
    decode=lambda ids: decode([int(i) for i in ids if int(i) not in silent and int(i) < size]),
    vocab_size=size,
    eos=tuple(eos),
    banned=banned,
    bos=tuple(bos),
    fingerprint=fingerprint,
    specials={name: i for i in sorted(silent) if i < size and (name := piece(i)) is not None},
  )


def read_text(path: Path) -> str:
  """The text of a file.  Raises UserError where there is none."""
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
