"""The protocol of a tokenizer, text to ids and back, and what its makers share.

A row of training data is `bos + encode(prompt) + encode_next(completion) + (eos[0],)`. It is built
from the parts and never from the joined text, and a sampled response is kept as ids. What the model
is trained on, samples and is scored on are therefore the same ids everywhere; `decode` is for
reading only.

Many tokenizers put a space before every text. Only the beginning of a row has that space:
`encode_next` and `decode_next` are for the text that goes on in it, and put and take none. The
parts of a row then decode to exactly their texts, unless the tokenizer's own normalizer changes
them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from instructjax.errors import UserError

Encode = Callable[[str], list[int]]
Decode = Callable[[Sequence[int]], str]

# Tokens that end a document in pretraining. A chat model ends its turns with another one.
DOCUMENT_ENDS = (
  "<|endoftext|>",
  "<|end_of_text|>",
  "</s>",
  "<eos>",
  "<｜end▁of▁sentence｜>",
)
# The names that tokenizers give to their unknown token.
UNKNOWN = re.compile(r"\W*unk(nown)?(_token)?\W*", re.IGNORECASE)


class Continuation(NamedTuple):
  """How text that goes on in a row becomes ids and text again, where that differs."""

  encode: Encode
  decode: Decode


class Tokenizer(NamedTuple):
  """Two functions, encode and decode, and the ids that matter.

  encode(text) -> ids    of the beginning of a row; a special token's name in the text
                         (`<|im_start|>`) becomes its id
  decode(ids) -> text    leaves out the ids of `bos`, `eos` and `banned`
  vocab_size             every id is below it
  eos                    ids that end a response; the first one closes every completion in training
  banned                 ids that are never sampled (padding, control tokens, ids without a meaning)
  bos                    ids that the model expects before every row; most models have none
  fingerprint            sha256 of what decides the ids, for manifests and checkpoints
  specials               the special tokens by name
  continuation           `encode` and `decode` of what follows in a row, if they differ
  """

  encode: Encode
  decode: Decode
  vocab_size: int
  eos: tuple[int, ...]
  banned: tuple[int, ...]
  bos: tuple[int, ...]
  fingerprint: str
  specials: Mapping[str, int] = MappingProxyType({})
  continuation: Continuation | None = None

  def encode_next(self, text: str) -> list[int]:
    """Returns the ids of a text that goes on in a row."""
    return self.continuation.encode(text) if self.continuation else self.encode(text)

  def decode_next(self, ids: Sequence[int]) -> str:
    """Returns the text of ids that go on in a row, such as those of a response."""
    return self.continuation.decode(ids) if self.continuation else self.decode(ids)


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


def silenced(tokenizer: Tokenizer, silent: Iterable[int]) -> Tokenizer:
  """Returns the tokenizer without the text of some ids."""
  decode = _without(tokenizer.decode, silent)
  continuation = tokenizer.continuation
  if continuation is not None:
    continuation = continuation._replace(decode=_without(continuation.decode, silent))
  return tokenizer._replace(decode=decode, continuation=continuation)


def _without(decode: Decode, silent: Iterable[int]) -> Decode:
  """Returns a `decode` that leaves out some ids, and takes those of an array too."""
  left_out = frozenset(silent)

  def decode_others(ids: Sequence[int]) -> str:
    numbers = [int(token_id) for token_id in ids]
    return decode([i for i in numbers if i not in left_out])

  return decode_others


# --- what its tokens are for ---


def document_end(tokenizer: Tokenizer) -> int:
  """Returns the id that ends a document of pretraining text.

  A chat model often ends its turns with a token (`<|im_end|>`) that its pretraining never saw
  between documents. The id is `eos[0]` unless that is no end of a document and the tokenizer has
  one.
  """
  names = {i: name for name, i in tokenizer.specials.items()}
  first = tokenizer.eos[0]
  if names.get(first) in DOCUMENT_ENDS:
    return first
  for name in DOCUMENT_ENDS:
    if name in tokenizer.specials:
      return tokenizer.specials[name]
  return first


def named_specials(tokenizer: Tokenizer, text: str, ids: Iterable[int]) -> list[str]:
  """Returns the names of the special tokens that a text spells; `ids` are those of the text.

  A user's text may not spell one: it would end or begin something in the middle of a row. An
  unknown character is no such token, although it has its id.
  """
  present = set(tokenizer.specials.values()).intersection(ids)
  if not present:
    return []
  names = [name for name, i in tokenizer.specials.items() if i in present]
  return [name for name in names if name in text or not UNKNOWN.fullmatch(name)]


def refusal(names: Sequence[str]) -> str:
  """Returns what is said of a text that spells special tokens."""
  quoted = ", ".join(map(repr, names))
  return f"holds the special tokens {quoted}; take their names out of the text"


# --- for those that make one ---


def named(
  encode: Encode,
  specials: Mapping[str, int],
  encode_next: Encode | None = None,
) -> Encode:
  """Returns an `encode` that turns the name of a special token into its id.

  What follows such a name is encoded by `encode_next`, where that is another function.
  """
  # The longest name comes first, so that none is found inside of a longer one.
  names = sorted(filter(None, specials), key=len, reverse=True)
  if not names:
    return encode
  follow = encode_next or encode
  name_or_text = re.compile(f"({'|'.join(map(re.escape, names))})")

  def encode_names(text: str) -> list[int]:
    ids: list[int] = []
    # These are the names, and what stands between them.
    for number, part in enumerate(name_or_text.split(text)):
      if part in specials:
        ids.append(specials[part])
      elif part:
        ids += follow(part) if number else encode(part)
    return ids

  return encode_names


def adds_space(encode: Encode) -> bool:
  """Returns whether an `encode` puts a space before every text."""
  # Then both words of "a a" have the ids of " a".
  return encode("a a") == 2 * encode("a")


def beginning(encode: Encode, bare: Encode) -> Encode:
  """Returns the `encode` of the beginning of a row, for a tokenizer that puts a space before it.

  `bare` is the same tokenizer without that space. Some tokenizers put none before a text that
  already begins with one; decoding would then take the text's own.
  """
  takes_the_texts_own = encode(" a") == encode("a") and bare("  a") != bare(" a")
  if not takes_the_texts_own:
    return encode

  def encode_begin(text: str) -> list[int]:
    return bare(f" {text}") if text.startswith(" ") else encode(text)

  return encode_begin


def following(encode: Encode, bare: Encode) -> Encode:
  """Returns the `encode` of what goes on in a row, for a tokenizer that puts a space before a text.

  `bare` is the same tokenizer without that space.
  """
  if bare(" a") != bare("a"):
    return bare

  # This normalizer strips every text, so the space that it puts stands for the text's own.
  def encode_next(text: str) -> list[int]:
    return encode(text[1:]) if text.startswith(" ") else bare(text)

  return encode_next


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
  continuation: Continuation | None = None,
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

  def within_size(decode: Decode) -> Decode:
    # The ids may come from a model that has more of them.
    return lambda ids: decode([i for i in ids if i < size])

  if continuation is not None:
    continuation = continuation._replace(decode=within_size(continuation.decode))
  tokenizer = Tokenizer(
    encode=encode,
    decode=within_size(decode),
    vocab_size=size,
    eos=tuple(eos),
    banned=banned,
    bos=tuple(bos),
    fingerprint=fingerprint,
    specials=specials,
    continuation=continuation,
  )
  return silenced(tokenizer, silent)


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
