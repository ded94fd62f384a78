"""Text to token ids and back, behind one small protocol.

A row of training data is `bos + encode(prompt) + encode(completion) + (eos[0],)`, built from the parts and
never from the joined text, and a sampled response is kept as ids: what the model is trained on, samples and
is scored on are the same ids everywhere.  `decode` is for reading only.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from instructjax.errors import UserError

USUAL_EOS = ("<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<eos>")
MIN_PIECES = 260
END_OF_TEXT = "<|endoftext|>"


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


def load(source: str | Path | Mapping[str, Any]) -> Tokenizer:
  """The tokenizer of a GGUF metadata dict, a model folder, a `tokenizer.json` or a SentencePiece `.model`.

  Raises UserError where the source is none of these.
  """
  if isinstance(source, Mapping):
    return from_gguf(source)
  path = Path(source)
  if path.is_dir():
    return from_folder(path)
  if not path.is_file():
    raise UserError(
      f"{path}: no such tokenizer; give a folder, a tokenizer.json, a SentencePiece .model or a .gguf model"
    )
  if path.suffix == ".json":
    return from_folder(path.parent) if path.name == "tokenizer.json" else from_json(path)
  if path.suffix == ".model":
    return from_sentencepiece(path)
  raise UserError(f"{path}: a tokenizer is a tokenizer.json or a SentencePiece .model, not '{path.suffix}'")


def fit(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
  """The tokenizer beside a model of `vocab_size`: ids that only the model knows are banned.

  Raises UserError where the model has fewer ids than the tokenizer.
  """
  if vocab_size < tokenizer.vocab_size:
    raise UserError(
      f"the tokenizer has {tokenizer.vocab_size} ids but the model only {vocab_size}: they do not belong "
      "together; give the tokenizer that the model was trained with, or set the model's vocab_size"
    )
  extra = tuple(range(tokenizer.vocab_size, vocab_size))
  return tokenizer._replace(banned=tokenizer.banned + extra, vocab_size=vocab_size)


# --- byte-level BPE and everything else that the `tokenizers` package reads ---


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
  """The byte-level BPE in the metadata of a GGUF file (keys `tokenizer.ggml.*` as they stand in the file).

  Raises UserError as `byte_level` does.
  """
  tokenizer = byte_level(metadata)
  field = lambda key, default=None: metadata.get(f"tokenizer.ggml.{key}", default)
  eos = (int(field("eos_token_id")),)
  bos = (int(field("bos_token_id")),) if field("add_bos_token") else ()
  text = json.dumps([field("pre", "gpt-2"), field("tokens"), field("merges"), field("token_type")])
  return _wrap(tokenizer, eos, _control(field("token_type")), bos, _hash(text.encode()))


def _control(kinds: Sequence[int] | None) -> list[int]:
  return [i for i, kind in enumerate(kinds or []) if kind == 3]  # 3: control token


def gguf_metadata(path: str | Path) -> dict[str, Any]:
  """What a GGUF file says about its tokenizer, under the file's own keys."""
  import gguf

  fields = gguf.GGUFReader(path).fields
  return {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}


def byte_level(metadata: Mapping[str, Any]) -> Any:
  """The same as a `tokenizers.Tokenizer`.

  Raises UserError for another kind of tokenizer or another pre-tokenizer than those below.
  """
  import tokenizers as hf
  from tokenizers import decoders, models, pre_tokenizers

  field = lambda key, default=None: metadata.get(f"tokenizer.ggml.{key}", default)
  missing = [key for key in ("model", "tokens", "merges", "eos_token_id") if field(key) is None]
  if missing:
    raise UserError(f"no tokenizer.ggml.{missing[0]} in the GGUF metadata; give the model's tokenizer.json")
  kind, pre = field("model"), field("pre", "gpt-2")
  if kind != "gpt2":
    raise UserError(f"tokenizer.ggml.model is {kind!r}; only 'gpt2' (byte-level BPE) is read out of a GGUF file")
  by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  if pre == "smollm":
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
  elif pre == "gpt-2":
    splitter = by_bytes
  else:
    raise UserError(f"tokenizer.ggml.pre is {pre!r}; known are 'gpt-2' and 'smollm': give the model's tokenizer.json")
  names = field("tokens")
  merges = [tuple(pair.split(" ", 1)) for pair in field("merges")]
  tokenizer = hf.Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
  tokenizer.pre_tokenizer = splitter
  tokenizer.decoder = decoders.ByteLevel()
  control = _control(field("token_type"))
  tokenizer.add_special_tokens([hf.AddedToken(names[i], normalized=False, special=True) for i in control])
  return tokenizer


def from_json(path: str | Path, eos: Sequence[int | str] = ()) -> Tokenizer:
  """A `tokenizer.json`.  `eos` are ids or names; without any, the usual names are tried in order.

  Raises UserError for a file that cannot be read and where no end-of-text token is found.
  """
  import tokenizers as hf

  path = Path(path)
  text = _read(path)
  try:
    tokenizer = hf.Tokenizer.from_str(text)
  except Exception as error:
    raise UserError(f"{path}: not a tokenizer.json of the tokenizers package ({error})") from error
  usual = [name for name in USUAL_EOS if tokenizer.token_to_id(name) is not None]
  wanted = [tokenizer.token_to_id(name) if isinstance(name, str) else name for name in eos or usual[:1]]
  ids = [i for i in wanted if i is not None]
  if not ids or len(ids) < len(wanted):
    raise UserError(f"{path}: no end-of-text token {list(eos) or list(USUAL_EOS)}; name one that it has with `eos`")
  control = [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]
  before = [i for i in tokenizer.encode("", add_special_tokens=True).ids if i not in ids]
  return _wrap(tokenizer, ids, control, before, _hash(text.encode()))


def from_folder(folder: str | Path) -> Tokenizer:
  """The tokenizer of a Hugging Face model folder: `tokenizer.json`, else `tokenizer.model`.

  The end-of-text ids are those of `generation_config.json`, `config.json` or `tokenizer_config.json`, the
  first that names any.  Raises UserError where there is neither file.
  """
  folder = Path(folder)
  if not (folder / "tokenizer.json").is_file():
    if (folder / "tokenizer.model").is_file():
      return from_sentencepiece(folder / "tokenizer.model")
    raise UserError(f"{folder}: holds neither tokenizer.json nor tokenizer.model; give the folder of a model")
  eos: list[int | str] = []
  for name, key in (
    ("generation_config.json", "eos_token_id"), ("config.json", "eos_token_id"), ("tokenizer_config.json",
    "eos_token")
  ):  # fmt: skip
    if eos or not (folder / name).is_file():
      continue
    try:
      value = json.loads(_read(folder / name)).get(key)
    except ValueError as error:
      raise UserError(f"{folder / name}: malformed JSON ({error}); mend or delete it") from None
    value = value.get("content") if isinstance(value, dict) else value
    eos = value if isinstance(value, list) else [] if value is None else [value]
  return from_json(folder / "tokenizer.json", eos)


def _wrap(tokenizer, eos: Sequence[int], control: Sequence[int], bos: Sequence[int], fingerprint: str) -> Tokenizer:
  """The protocol over a `tokenizers.Tokenizer`; control tokens that do not end a text are banned."""
  tokenizer.no_padding()
  tokenizer.no_truncation()
  encode = _joinable(lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids))
  size = tokenizer.get_vocab_size(with_added_tokens=True)
  return _finish(
    encode, lambda ids: tokenizer.decode(ids, skip_special_tokens=False), size, eos, control, bos,
    fingerprint, piece=tokenizer.id_to_token,
  )  # fmt: skip


# --- SentencePiece ---


def from_sentencepiece(path: str | Path) -> Tokenizer:
  """A SentencePiece `.model`.  Control, unknown and unused pieces are banned; `<s>` precedes a row where
  there is one.

  Raises UserError for a file that cannot be read and for a model without an end-of-text piece.
  """
  import sentencepiece

  path = Path(path)
  try:
    model = path.read_bytes()
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error}); give the path of a SentencePiece .model") from None
  except RuntimeError as error:
    raise UserError(f"{path}: not a SentencePiece .model ({error})") from None
  if sp.eos_id() < 0:
    raise UserError(f"{path}: has no end-of-text piece; train the model with one (eos_id >= 0)")
  size = sp.get_piece_size()
  control = [i for i in range(size) if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i)]
  bos = [sp.bos_id()] if sp.bos_id() >= 0 else []
  specials = {sp.id_to_piece(i): i for i in range(size) if sp.is_control(i) or sp.is_unknown(i)}
  encode = named(_joinable(lambda text: list(sp.encode(text))), specials)
  return _finish(encode, sp.decode, size, [sp.eos_id()], control, bos, _hash(model), piece=sp.id_to_piece)


def train_sentencepiece(source: str | Path, target: str | Path, vocab_size: int, *, threads: int = 1) -> Tokenizer:
  """Train a byte-pair SentencePiece model on the lines of a text file and write it to `target` (a `.model`).

  Nothing is normalised and every byte has a piece, so that every text comes back as it went in (but for
  U+2581, which SentencePiece reads as a space).  Ids: 0 padding, 1 end of text, 2 unknown.  Raises UserError
  where the text is missing or empty or does not fill the vocabulary.
  """
  import sentencepiece

  source, target = Path(source), Path(target)
  if not _read(source).strip():
    raise UserError(f"{source}: no text to train a tokenizer on; give a UTF-8 text file")
  if target.suffix != ".model":
    raise UserError(f"{target}: the name of a SentencePiece model must end in .model")
  if vocab_size < MIN_PIECES:
    raise UserError(f"vocab_size {vocab_size}: at least {MIN_PIECES} (256 bytes, 3 control pieces and one of the text)")
  target.parent.mkdir(parents=True, exist_ok=True)
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      input=str(source), model_writer=model, vocab_size=vocab_size, model_type="bpe", byte_fallback=True,
      character_coverage=1.0, split_digits=True, normalization_rule_name="identity", add_dummy_prefix=False,
      remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, max_sentence_length=1 << 20,
      pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=threads, minloglevel=2,
    )  # fmt: skip
  except RuntimeError as error:
    raise UserError(f"{source}: no tokenizer of {vocab_size} pieces comes out of this text ({error})") from None
  partial = target.with_name(target.name + ".part")
  partial.write_bytes(model.getvalue())
  partial.replace(target)
  return from_sentencepiece(target)


# --- shared ---


def named(encode: Callable[[str], list[int]], specials: Mapping[str, int]) -> Callable[[str], list[int]]:
  """Encode that turns the name of a special token into its id."""
  names = "|".join(re.escape(name) for name in sorted(specials, key=len, reverse=True))
  if not names:
    return encode
  split = re.compile(f"({names})")

  def parsed(text: str) -> list[int]:
    parts = [part for part in split.split(text) if part]
    return [i for part in parts for i in ([specials[part]] if part in specials else encode(part))]

  return parsed


def _joinable(encode: Callable[[str], list[int]]) -> Callable[[str], list[int]]:
  """Encode parts as they would stand in the whole text.

  Some models put a space before every text: there " word" would become two spaces, so the text's own is
  dropped.
  """
  adds_a_space = encode("a a") == 2 * encode("a")
  return (lambda text: encode(text.removeprefix(" "))) if adds_a_space else encode


def _finish(encode, decode, size, eos, control, bos, fingerprint, *, piece) -> Tokenizer:
  """Check the special ids, ban the control tokens and leave all of them out of decoded text."""
  for i in eos:
    if not 0 <= i < size:
      raise UserError(f"end-of-text id {i} is outside of the tokenizer's {size} ids; the tokenizer's files disagree")
  banned = tuple(i for i in range(size) if (i in set(control) and i not in eos) or piece(i) is None)
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


def _read(path: Path) -> str:
  """The text of a file.  Raises UserError where there is none."""
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def _hash(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
