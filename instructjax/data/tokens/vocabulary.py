"""The protocol of a tokenizer, text to ids and back, and what its makers share.

A row of training data is `bos + encode(prompt) + encode(completion) + (eos[0],)`. It is built from
the parts and never from the joined text, and a sampled response is kept as ids. What the model is
trained on, samples and is scored on are therefore the same ids everywhere; `decode` is for reading
only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from instructjax.errors import UserError

Encode = Callable[[str], list[int]]
Decode = Callable[[Sequence[int]], str]


class Tokenizer(NamedTuple):
  """Two functions, encode and decode, and the ids that matter.

  encode(text) -> ids    adds nothing; a special token's name in the text (`<|im_start|>`) becomes
                         its id
  decode(ids) -> text    leaves out the ids of `bos`, `eos` and `banned`
  vocab_size             every id is below it
  eos                    ids that end a response; the first one closes every completion in training
  banned                 ids that are never sampled (padding, control tokens, ids without a meaning)
  bos                    ids that the model expects before every row; most models have none
  fingerprint            sha256 of what decides the ids, for manifests and checkpoints
  specials               the special tokens by name
  """

  encode: Encode
  decode: Decode
  vocab_size: int
  eos: tuple[int, ...]
  banned: tuple[int, ...]
  bos: tuple[int, ...]
  fingerprint: str
  specials: Mapping[str, int] = MappingProxyType({})


def fit(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
  """Returns the tokenizer for a model of `vocab_size` ids; those only the model has are banned.

  Raises:
    UserError: if the model has fewer ids than the tokenizer.
  """
  if vocab_size < tokenizer.vocab_size:
    raise UserError(
      f"the tokenizer has {tokenizer.vocab_size} ids but the model only {vocab_size}: they do not "
      "belong together; give the tokenizer that the model was trained with, or set the model's "
      "vocab_size"
    )
  # Many embeddings have more rows than the tokenizer has ids, to be a multiple of some power of 2.
  extra = tuple(range(tokenizer.vocab_size, vocab_size))
  return tokenizer._replace(banned=tokenizer.banned + extra, vocab_size=vocab_size)


# --- for those that make one ---


def named(encode: Encode, specials: Mapping[str, int]) -> Encode:
  """Returns an `encode` that turns the name of a special token into its id."""
  # The longest name comes first, so that none is found inside of a longer one.
  names = sorted(filter(None, specials), key=len, reverse=True)
  if not names:
    return encode
  name_or_text = re.compile(f"({'|'.join(map(re.escape, names))})")

  def encode_names(text: str) -> list[int]:
    ids: list[int] = []
    for part in name_or_text.split(text):  # the names, and what stands between them
      if part in specials:
        ids.append(specials[part])
      elif part:
        ids += encode(part)
    return ids

  return encode_names


def joinable(encode: Encode) -> Encode:
  """Returns an `encode` that gives a part the ids that it would have in the whole text.

  Some models put a space before every text. There " word" would become two spaces, so the text's
  own space is dropped.
  """
  # Then both words of "a a" have the ids of " a".
  adds_a_space = encode("a a") == 2 * encode("a")
  if not adds_a_space:
    return encode

  def encode_part(text: str) -> list[int]:
    return encode(text.removeprefix(" "))

  return encode_part


def finish(
  encode: Encode,
  decode: Decode,
  size: int,
  eos: Sequence[int],
  control: Sequence[int],
  bos: Sequence[int],
  fingerprint: str,
  *,
  piece: Callable[[int], str | None],
) -> Tokenizer:
  """Returns the tokenizer of these functions and ids, with the control tokens banned.

  All special ids are left out of decoded text. `piece` gives the name of an id, or None where no
  text has it.

  Raises:
    UserError: if an end-of-text id is not one of the `size` ids.
  """
  for token_id in eos:
    if not 0 <= token_id < size:
      raise UserError(
        f"end-of-text id {token_id} is outside of the tokenizer's {size} ids; the tokenizer's "
        "files disagree"
      )
  # A control token that ends a text has to be sampled all the same.
  never_sampled = set(control) - set(eos)
  banned = tuple(i for i in range(size) if i in never_sampled or piece(i) is None)
  silent = {*eos, *banned, *bos}
  specials = {}
  for token_id in sorted(silent):
    name = piece(token_id) if token_id < size else None
    if name is not None:
      specials[name] = token_id

  def decode_text(ids: Sequence[int]) -> str:
    # The ids may come from an array, and from a model that has more of them.
    numbers = [int(token_id) for token_id in ids]
    return decode([i for i in numbers if i < size and i not in silent])

  return Tokenizer(
    encode=encode,
    decode=decode_text,
    vocab_size=size,
    eos=tuple(eos),
    banned=banned,
    bos=tuple(bos),
    fingerprint=fingerprint,
    specials=specials,
  )


def read_text(path: Path) -> str:
  """Returns the text of a file.

  Raises:
    UserError: if it cannot be read, or is not UTF-8.
  """
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def sha256(content: bytes) -> str:
  """Returns the SHA-256 hash of some bytes in hexadecimal digits."""
  return hashlib.sha256(content).hexdigest()
