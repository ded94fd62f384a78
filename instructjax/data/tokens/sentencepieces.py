"""SentencePiece models: reading them, and training them on any text."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from instructjax.data.tokens.vocabulary import Tokenizer, finish, joinable, named, sha256
from instructjax.errors import UserError
from instructjax.system import atomic

MODEL_TYPES = ("bpe", "unigram")
NORMALIZATIONS = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
NO_SYMBOL = re.compile("[\0\u2581\ud800-\udfff]")
LONGEST = 1 << 18  # letters of a sentence; four bytes each at most
RESERVED = re.compile("[\n\r\t\0]")  # SentencePiece passes over a line that holds one


def from_sentencepiece(path: str | Path) -> Tokenizer:
  """A SentencePiece `.model`.  Control, unknown and unused pieces are banned; `<s>` precedes a row
  where there is one.

  Raises UserError for a file that cannot be read and for a model without an end-of-text piece.
  """
  import sentencepiece

  path = Path(path)
  try:
    model = path.read_bytes()
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
  except OSError as error:
    raise UserError(
      f"{path}: cannot be read ({error}); give the path of a SentencePiece .model"
    ) from None
  except RuntimeError as error:
    raise UserError(f"{path}: not a SentencePiece .model ({error})") from None
  if sp.eos_id() < 0:
    raise UserError(f"{path}: has no end-of-text piece; train the model with one (eos_id >= 0)")
  size = sp.get_piece_size()
  control = [i for i in range(size) if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i)]
  bos = [sp.bos_id()] if sp.bos_id() >= 0 else []
  specials = {sp.id_to_piece(i): i for i in range(size) if sp.is_control(i) or sp.is_unknown(i)}
  encode = named(joinable(lambda text: list(sp.encode(text))), specials)
  return finish(
    encode, sp.decode, size, [sp.eos_id()], control, bos, sha256(model), piece=sp.id_to_piece
  )


# --- training ---


@dataclasses.dataclass(frozen=True)
class Training:
  """How a model is trained.  As it stands nothing is lost: no normalisation, and a piece for every
  byte.

  model_type      bpe or unigram
  byte_fallback   a piece for each of the 256 bytes; without it a character that the text lacks becomes `unk`
  coverage        share of the text's characters that get a piece of their own; the others are left to the bytes
  normalization   identity, nfkc, nmt_nfkc, nfkc_cf or nmt_nfkc_cf: text then comes back normalised, not as it was
  symbols         always one piece wherever they stand, drawn and shown as any other
  control         names of special tokens, for chat templates: never drawn, not shown
  eos, pad, unk   names of ids 1, 0 and 2; `bos`, where it is not empty, is id 3 and precedes every row
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
    for name, known in (("model_type", MODEL_TYPES), ("normalization", NORMALIZATIONS)):
      if getattr(self, name) not in known:
        raise UserError(f"{name} {getattr(self, name)!r}: known are {', '.join(known)}")
    if not 0.98 <= self.coverage <= 1:  # SentencePiece's own limits
      raise UserError(f"coverage {self.coverage}: a share of the text's characters, .98 to 1")
    special = [self.eos, self.pad, self.unk, *([self.bos] if self.bos else []), *self.control]
    names = [*special, *self.symbols]
    wrong = next(
      (name for name in names if not name or names.count(name) > 1 or NO_SYMBOL.search(name)), None
    )
    wrong = next((name for name in special if not name.isprintable() or " " in name), wrong)
    if wrong is not None:
      raise UserError(
        f"the piece {wrong!r} is empty, named twice or holds U+2581, SentencePiece's space, or "
        "what no piece can; name each "
        "once, special tokens without spaces"
      )
    least = 1 + len(names) + 256 * self.byte_fallback
    if self.vocab_size < least:
      raise UserError(
        f"vocab_size {self.vocab_size}: at least {least} "
        f"({'256 bytes, ' if self.byte_fallback else ''}{len(names)} named "
        "pieces and one of the text)"
      )


def train(texts: Iterable[str], target: str | Path, settings: Training = Training()) -> Tokenizer:
  """Trains a SentencePiece model on texts, line by line, and writes it to `target` (a `.model`).

  Raises UserError where there is no text, it does not fill the vocabulary, or `target` cannot be
  written.
  """
  import sentencepiece

  target, s = Path(target), settings
  if target.suffix != ".model":
    raise UserError(f"{target}: the name of a SentencePiece model must end in .model")
  rows = list(sentences(texts))  # what is wrong with them is said before the training
  if not rows:
    raise UserError("no text to train a tokenizer on; give text files or records with texts")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(rows),
      model_writer=model,
      vocab_size=s.vocab_size,
      model_type=s.model_type,
      byte_fallback=s.byte_fallback,
      character_coverage=s.coverage,
      normalization_rule_name=s.normalization,
      user_defined_symbols=list(s.symbols),
      control_symbols=list(s.control),
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=3 if s.bos else -1,
      pad_piece=s.pad,
      eos_piece=s.eos,
      unk_piece=s.unk,
      bos_piece=s.bos or "<s>",
      split_digits=True,
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      max_sentence_length=4 * LONGEST,
      num_threads=s.threads,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise UserError(
      f"no tokenizer of {s.vocab_size} pieces comes out of this text ({_reason(error)}); set "
      "another vocab_size, or give "
      "more text"
    ) from None
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace(target, model.getvalue())
  except OSError as error:
    raise UserError(f"{target}: cannot be written ({error}); name another --out") from error
  return from_sentencepiece(target)


def sentences(texts: Iterable[str]) -> Iterator[str]:
  """The texts as SentencePiece can learn from all of them: cut at what makes it pass over a line,
  and where one is too long.
  """
  for text in texts:
    for part in RESERVED.split(text):
      yield from (
        part[at : at + LONGEST]
        for at in range(0, len(part), LONGEST)
        if part[at : at + LONGEST].strip()
      )


def _reason(error: Exception) -> str:
  """What SentencePiece says, without the place in its source."""
  return (
    str(error).strip().splitlines()[-1].rpartition("] ")[2].rstrip(". ") or "it does not say why"
  )
