"""SentencePiece models: reading them, and training them on any text."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from instructjax.data.tokens.vocabulary import (
  Continuation,
  Tokenizer,
  adds_space,
  beginning,
  finish,
  following,
  named,
  sha256,
)
from instructjax.errors import UserError
from instructjax.system import atomic

MODEL_TYPES = ("bpe", "unigram")
NORMALIZATIONS = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
# No piece can hold NUL, half of a surrogate pair, or the character that stands for a space.
NO_SYMBOL = re.compile("[\0\u2581\ud800-\udfff]")
LONGEST = 1 << 18  # characters of a sentence, of at most four bytes each
# Protocol buffers that are appended to a message overrule its fields. These bytes are a
# `normalizer_spec` (field 3, of 2 or 4 bytes) whose `add_dummy_prefix` (field 3), or that and
# `remove_extra_whitespaces` (field 4), is false.
NO_PREFIX = b"\x1a\x02\x18\x00"
SPACES_AS_THEY_ARE = b"\x1a\x04\x18\x00\x20\x00"
RESERVED = re.compile("[\n\r\t\0]")  # SentencePiece passes over a line that holds one of these


def from_sentencepiece(path: str | Path) -> Tokenizer:
  """Returns the tokenizer of a SentencePiece `.model`.

  Control, unknown and unused pieces are banned. `<s>` precedes a row if the model has it.

  Raises:
    UserError: if the file cannot be read, or the model has no end-of-text piece.
  """
  import sentencepiece

  path = Path(path)
  try:
    model = path.read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  except OSError as error:
    raise UserError(
      f"{path}: cannot be read ({error}); give the path of a SentencePiece .model"
    ) from None
  except RuntimeError as error:
    raise UserError(f"{path}: not a SentencePiece .model ({error})") from None
  eos = processor.eos_id()
  if eos < 0:
    raise UserError(f"{path}: has no end-of-text piece; train the model with one (eos_id >= 0)")
  size = processor.get_piece_size()
  banned = []
  specials = {}
  for i in range(size):
    special = processor.is_control(i) or processor.is_unknown(i)
    if special:
      specials[processor.id_to_piece(i)] = i
    if special or processor.is_unused(i):
      banned.append(i)

  def encode(text: str) -> list[int]:
    return list(processor.encode(text))

  begin, continuation = encode, None
  follow = encode
  if adds_space(encode):
    bare = sentencepiece.SentencePieceProcessor(model_proto=model + NO_PREFIX)
    reader = sentencepiece.SentencePieceProcessor(model_proto=model + SPACES_AS_THEY_ARE)

    def encode_bare(text: str) -> list[int]:
      return list(bare.encode(text))

    begin = beginning(encode, encode_bare)
    follow = following(encode, encode_bare)
    continuation = Continuation(named(follow, specials, follow), reader.decode)
  bos = processor.bos_id()  # below 0 where there is none
  return finish(
    named(begin, specials, follow),
    processor.decode,
    size,
    [eos],
    banned,
    [bos] if bos >= 0 else [],
    sha256(model),
    piece=processor.id_to_piece,
    continuation=continuation,
  )


# --- training ---


@dataclasses.dataclass(frozen=True)
class Training:
  """How a model is trained.

  With the defaults nothing of a text is lost: there is no normalisation, and a piece for every
  byte.

  model_type      bpe or unigram
  byte_fallback   a piece for each of the 256 bytes; without them a character that the text lacks
                  becomes `unk`
  coverage        share of the text's characters that get a piece of their own; the others are left
                  to the bytes
  normalization   identity, nfkc, nmt_nfkc, nfkc_cf or nmt_nfkc_cf; with all but identity a text
                  comes back normalised, not as it was
  symbols         always one piece wherever they stand, sampled and decoded as any other
  control         names of special tokens, for chat templates: never sampled, not decoded
  eos, pad, unk   names of ids 1, 0 and 2; `bos`, where it is not empty, is id 3 and precedes every
                  row
  threads         of the training
  """

  vocab_size: int = 8192
  model_type: str = "bpe"
  byte_fallback: bool = True
  coverage: float = 1.0
  normalization: str = "identity"
  symbols: tuple[str, ...] = ()
  control: tuple[str, ...] = ()
  eos: str = "</s>"
  pad: str = "<pad>"
  unk: str = "<unk>"
  bos: str = ""
  threads: int = 1

  def __post_init__(self):
    choices = {"model_type": MODEL_TYPES, "normalization": NORMALIZATIONS}
    for field, allowed in choices.items():
      value = getattr(self, field)
      if value not in allowed:
        raise UserError(f"{field} {value!r}: known are {', '.join(allowed)}")
    if not 0.98 <= self.coverage <= 1:  # SentencePiece's own limits
      raise UserError(f"coverage {self.coverage}: a share of the text's characters, .98 to 1")
    # A special token must also be a name that can be written in a template.
    specials = [self.eos, self.pad, self.unk]
    if self.bos:
      specials.append(self.bos)
    specials += self.control
    names = [*specials, *self.symbols]
    for name in names:
      impossible = not name or names.count(name) > 1 or NO_SYMBOL.search(name)
      unwritable = name in specials and (not name.isprintable() or " " in name)
      if impossible or unwritable:
        raise UserError(
          f"the piece {name!r} is empty, named twice or holds U+2581, SentencePiece's space, or "
          "what no piece can; name each once, special tokens without spaces"
        )
    bytes_needed = 256 if self.byte_fallback else 0
    least = 1 + len(names) + bytes_needed
    if self.vocab_size < least:
      raise UserError(
        f"vocab_size {self.vocab_size}: at least {least} "
        f"({'256 bytes, ' if self.byte_fallback else ''}{len(names)} named pieces and one of the "
        "text)"
      )


def train(texts: Iterable[str], target: str | Path, settings: Training = Training()) -> Tokenizer:
  """Trains a SentencePiece model on texts, line by line, and writes it to `target` (a `.model`).

  Raises:
    UserError: if there is no text, it does not fill the vocabulary, or `target` cannot be written.
  """
  import sentencepiece

  target = Path(target)
  if target.suffix != ".model":
    raise UserError(f"{target}: the name of a SentencePiece model must end in .model")
  # The texts are read before the training, so that an error in them comes first.
  rows = list(sentences(texts))
  if not rows:
    raise UserError("no text to train a tokenizer on; give text files or records with texts")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(rows),
      model_writer=model,
      vocab_size=settings.vocab_size,
      model_type=settings.model_type,
      byte_fallback=settings.byte_fallback,
      character_coverage=settings.coverage,
      normalization_rule_name=settings.normalization,
      user_defined_symbols=list(settings.symbols),
      control_symbols=list(settings.control),
      pad_id=0,  # padding is zeros in every batch
      eos_id=1,
      unk_id=2,
      bos_id=3 if settings.bos else -1,
      pad_piece=settings.pad,
      eos_piece=settings.eos,
      unk_piece=settings.unk,
      bos_piece=settings.bos or "<s>",
      split_digits=True,  # 2001 is four pieces
      # These three keep every space of a text.
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      max_sentence_length=4 * LONGEST,  # in bytes
      num_threads=settings.threads,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise UserError(
      f"no tokenizer of {settings.vocab_size} pieces comes out of this text ({_reason(error)}); "
      "set another vocab_size, or give more text"
    ) from None
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace(target, model.getvalue())
  except OSError as error:
    raise UserError(f"{target}: cannot be written ({error}); name another --out") from error
  return from_sentencepiece(target)


def sentences(texts: Iterable[str]) -> Iterator[str]:
  """Yields the texts in parts that SentencePiece can all learn from.

  They are cut at the characters that make it pass over a line, and where a line is too long.
  """
  for text in texts:
    for line in RESERVED.split(text):
      for start in range(0, len(line), LONGEST):
        part = line[start : start + LONGEST]
        if part.strip():
          yield part


def _reason(error: Exception) -> str:
  """Returns what SentencePiece says, without the place in its source."""
  last_line = str(error).strip().splitlines()[-1]
  _, _, reason = last_line.rpartition("] ")
  return reason.rstrip(". ") or "it does not say why"
