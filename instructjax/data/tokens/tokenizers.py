"""Tokenizers by what they are read from.

This may be a model folder, a `tokenizer.json`, the metadata of a GGUF file, or a SentencePiece
`.model`. The tokenizer of bytes needs no file.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.data.tokens.sentencepieces import from_sentencepiece
from instructjax.data.tokens.vocabulary import (
  Continuation,
  Decode,
  Encode,
  Tokenizer,
  adds_space,
  beginning,
  finish,
  fit,
  following,
  named,
  read_text,
  sha256,
)
from instructjax.errors import UserError
from instructjax.models import gguf
from instructjax.system import jsons, plain_json
from instructjax.system.plain_json import shown

# Names of the end-of-text token, tried in this order where a tokenizer.json stands alone.
USUAL_EOS = ("<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<eos>")
END_OF_TEXT = "<|endoftext|>"
BYTES = "bytes"  # the tokenizer that needs no file
CONTROL = 3  # the type of a control token in a GGUF file
NOTHING = object()  # in the place of a step that is left out
# The files of a model folder that may name its end-of-text tokens, and the key; the first wins.
EOS_FIELDS = (
  ("generation_config.json", "eos_token_id"),
  ("config.json", "eos_token_id"),
  ("tokenizer_config.json", "eos_token"),
)


def by_reference(reference: str) -> Tokenizer:
  """Returns a tokenizer as users and runs name it.

  The reference is BYTES, a .gguf model, a folder, a tokenizer.json or a SentencePiece .model.

  Raises:
    UserError: if it is none of these.
  """
  if reference == BYTES:
    return of_bytes()
  return load(source(reference))


def source(reference: str) -> Path | dict[str, Any]:
  """Returns where a tokenizer is read from: a path, or the metadata of a .gguf model."""
  if reference.endswith(".gguf") and Path(reference).is_file():
    return gguf_metadata(reference)
  return Path(reference)


def of_bytes() -> Tokenizer:
  """Returns the tokenizer of bytes: each byte of the UTF-8 text is an id, and 256 ends a text."""
  end = 256
  specials = {END_OF_TEXT: end}

  def encode_bytes(text: str) -> list[int]:
    return list(text.encode())

  def decode(ids: Sequence[int]) -> str:
    # A sampled text may be cut within a character.
    return bytes(i for i in ids if i < end).decode("utf-8", "replace")

  # No id is banned, and none begins a row.
  return Tokenizer(
    encode=named(encode_bytes, specials),
    decode=decode,
    vocab_size=end + 1,
    eos=(end,),
    banned=(),
    bos=(),
    fingerprint=BYTES,
    specials=specials,
  )


def load(source: str | Path | Mapping[str, Any]) -> Tokenizer:
  """Returns the tokenizer of a model folder, a file, or GGUF metadata.

  The file is a `tokenizer.json` or a SentencePiece `.model`.

  Raises:
    UserError: if the source is none of these.
  """
  if isinstance(source, Mapping):
    return from_gguf(source)
  path = Path(source)
  if path.is_dir():
    return from_folder(path)
  if not path.is_file():
    raise UserError(
      f"{path}: no such tokenizer; give a folder, a tokenizer.json, a SentencePiece .model or a "
      ".gguf model"
    )
  if path.name == "tokenizer.json":
    # The files beside it name its end-of-text tokens.
    return from_folder(path.parent)
  if path.suffix == ".json":
    return from_json(path)
  if path.suffix == ".model":
    return from_sentencepiece(path)
  raise UserError(
    f"{path}: a tokenizer is a tokenizer.json or a SentencePiece .model, not '{path.suffix}'"
  )


# --- byte-level BPE and everything else that the `tokenizers` package reads ---


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
  """Returns the byte-level BPE in the metadata of a GGUF file.

  Its keys `tokenizer.ggml.*` are those of the file.

  Raises:
    UserError: for the same reasons as in `byte_level`.
  """
  tokenizer = byte_level(metadata)
  token_types = _gguf_field(metadata, "token_type")
  eos = (_gguf_id(metadata, "eos_token_id"),)
  bos: tuple[int, ...] = ()
  if _gguf_field(metadata, "add_bos_token"):
    bos = (_gguf_id(metadata, "bos_token_id"),)
  # All that decides the ids of a text.
  identity = [
    _gguf_field(metadata, "pre", "gpt-2"),
    _gguf_field(metadata, "tokens"),
    _gguf_field(metadata, "merges"),
    token_types,
  ]
  fingerprint = sha256(jsons.text(identity, ascii_only=True).encode())
  place = "the GGUF metadata"
  return _wrap(tokenizer, eos, _control_ids(token_types), bos, fingerprint, place)


def _gguf_field(metadata: Mapping[str, Any], key: str, default: Any = None) -> Any:
  return metadata.get(f"tokenizer.ggml.{key}", default)


def _gguf_list(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
  """Returns a list of the metadata whose entries are of one type; what is left out is empty."""
  value = _gguf_field(metadata, key)
  if value is None:
    return []
  if not isinstance(value, list) or not all(isinstance(entry, kind) for entry in value):
    words = {str: "texts", int: "whole numbers"}[kind]
    raise UserError(f"tokenizer.ggml.{key} is {shown(value)}; a list of {words} is expected")
  return value


def _gguf_id(metadata: Mapping[str, Any], key: str) -> int:
  """Returns the id of a token that the metadata list."""
  value = _gguf_field(metadata, key)
  size = len(_gguf_list(metadata, "tokens", str))
  if isinstance(value, bool) or not isinstance(value, int):
    raise UserError(f"tokenizer.ggml.{key} is {shown(value)}; the id of a token is expected")
  if not 0 <= value < size:
    raise UserError(
      f"tokenizer.ggml.{key}: end-of-text id {value} is outside of the tokenizer's {size} ids; "
      "the file is damaged"
    )
  return value


def _control_ids(token_types: Sequence[int] | None) -> list[int]:
  return [i for i, token_type in enumerate(token_types or []) if token_type == CONTROL]


def gguf_metadata(path: str | Path) -> dict[str, Any]:
  """Returns what a GGUF file says about its tokenizer, under the keys of the file.

  Raises:
    UserError: if it is not a GGUF file that can be read.
  """
  try:
    stat = Path(path).stat()
  except (ValueError, OSError) as error:
    raise UserError(f"{path}: not a readable GGUF file ({error}); fetch it again") from error
  return _gguf_metadata(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2)
def _gguf_metadata(path: str | Path, changed: int, size: int) -> dict[str, Any]:
  """Reads a file only once, because that takes seconds.

  Time of the last change and size are arguments so that a new file under the same name is read.
  """
  reader = gguf.opened(Path(path))
  contents = gguf.contents(reader, Path(path))
  return {name: value for name, value in contents.items() if name.startswith("tokenizer.")}


def byte_level(metadata: Mapping[str, Any]) -> Any:
  """Returns the byte-level BPE of GGUF metadata as a `tokenizers.Tokenizer`.

  Raises:
    UserError: if a field is missing, or for any other kind of tokenizer or of pre-tokenizer than
      those that are handled here.
  """
  import tokenizers as hf
  from tokenizers import decoders, models, pre_tokenizers

  for key in ("model", "tokens", "merges", "eos_token_id"):
    if _gguf_field(metadata, key) is None:
      raise UserError(
        f"no tokenizer.ggml.{key} in the GGUF metadata; give the model's tokenizer.json"
      )
  kind = _gguf_field(metadata, "model")
  if kind != "gpt2":
    raise UserError(
      f"tokenizer.ggml.model is {shown(kind)}; only 'gpt2' (byte-level BPE) is read out of a "
      "GGUF file"
    )
  pre = _gguf_field(metadata, "pre", "gpt-2")
  by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  if pre == "smollm":
    # SmolLM splits numbers into digits before anything else.
    digits = pre_tokenizers.Digits(individual_digits=True)
    splitter = pre_tokenizers.Sequence([digits, by_bytes])
  elif pre == "gpt-2":
    splitter = by_bytes
  else:
    raise UserError(
      f"tokenizer.ggml.pre is {shown(pre)}; known are 'gpt-2' and 'smollm': give the model's "
      "tokenizer.json"
    )
  names = _gguf_list(metadata, "tokens", str)
  vocab = {name: i for i, name in enumerate(names)}
  # A merge is written as its two parts with a space between.
  merges = [tuple(pair.split(" ", 1)) for pair in _gguf_list(metadata, "merges", str)]
  control = _control_ids(_gguf_list(metadata, "token_type", int))
  if control and control[-1] >= len(names):
    raise UserError(
      f"tokenizer.ggml.token_type names a control token {control[-1]} of {len(names)} tokens; the "
      "file is damaged"
    )
  try:
    tokenizer = hf.Tokenizer(models.BPE(vocab, merges))
  # The package raises a bare Exception for a merge of pieces that are no tokens.
  except Exception as error:
    raise UserError(
      f"tokenizer.ggml.merges cannot be used ({_first_line(error)}); give the model's "
      "tokenizer.json"
    ) from error
  tokenizer.pre_tokenizer = splitter
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(
    [hf.AddedToken(names[i], normalized=False, special=True) for i in control]
  )
  return tokenizer


def from_json(path: str | Path, eos: Sequence[int | str] = ()) -> Tokenizer:
  """Returns the tokenizer of a `tokenizer.json`.

  `eos` are ids or names of end-of-text tokens. If there are none, the usual names are tried in
  order.

  Raises:
    UserError: if the file cannot be read, or has no such end-of-text token.
  """
  import tokenizers as hf

  path = Path(path)
  text = read_text(path)  # the fingerprint is that of the whole file
  try:
    tokenizer = hf.Tokenizer.from_str(text)
  except KeyboardInterrupt:
    raise
  # The package raises a bare Exception, and for some files what Rust calls a panic, which is none.
  except BaseException as error:
    reason = _first_line(error)
    raise UserError(f"{path}: not a tokenizer.json of the tokenizers package ({reason})") from error
  if not eos:
    usual = [name for name in USUAL_EOS if tokenizer.token_to_id(name) is not None]
    wanted: Sequence[int | str] = usual[:1]
  else:
    wanted = eos
  ids: list[int] = []
  for name in wanted:
    token_id = tokenizer.token_to_id(name) if isinstance(name, str) else name
    if isinstance(token_id, int) and not 0 <= token_id < 2**31:
      raise UserError(f"{path}: end-of-text id {shown(token_id)} is outside of any vocabulary")
    if token_id is not None:
      ids.append(token_id)
  # All of those that the caller names must be there, and at least one if they name none.
  if not ids or len(ids) < len(wanted):
    raise UserError(
      f"{path}: no end-of-text token {list(eos) or list(USUAL_EOS)}; name one that it has with "
      "`eos`"
    )
  added = tokenizer.get_added_tokens_decoder()
  control = [i for i, token in added.items() if token.special]
  # What the tokenizer puts around an empty text begins a row, but for the end-of-text token.
  around = _encoded(tokenizer, "", str(path), special=True)
  bos = [i for i in around if i not in ids]
  return _wrap(tokenizer, ids, control, bos, sha256(text.encode()), str(path))


def from_folder(folder: str | Path) -> Tokenizer:
  """Returns the tokenizer of a Hugging Face folder: `tokenizer.json`, or else `tokenizer.model`.

  The end-of-text ids of a `tokenizer.json` are those of `generation_config.json`, `config.json` or
  `tokenizer_config.json`, the first file that names any.

  Raises:
    UserError: if there is neither file, or one of these cannot be read.
  """
  folder = Path(folder)
  if not (folder / "tokenizer.json").is_file():
    if (folder / "tokenizer.model").is_file():
      return from_sentencepiece(folder / "tokenizer.model")
    raise UserError(
      f"{folder}: holds neither tokenizer.json nor tokenizer.model; give the folder of a model"
    )
  return from_json(folder / "tokenizer.json", _folder_eos(folder))


def _folder_eos(folder: Path) -> list[int | str]:
  """Returns the ids or names of end-of-text tokens that a folder names, if any."""
  for name, key in EOS_FIELDS:
    path = folder / name
    if not path.is_file():
      continue
    value = plain_json.read_object(path, "make it readable", "fix or delete it").get(key)
    if isinstance(value, dict):  # a name with its treatment of white space
      value = value.get("content")
    if value is None:
      continue
    eos = value if isinstance(value, list) else [value]
    for token in eos:
      # To Python True is a whole number.
      if isinstance(token, bool) or not isinstance(token, int | str):
        raise UserError(
          f"{path}: '{key}' is {shown(value)}; the id or the name of a token, or several, are "
          "expected"
        )
    if eos:
      return eos
  return []


def _encoded(tokenizer: Any, text: str, place: str, *, special: bool = False) -> list[int]:
  """Returns the ids of a text.

  Raises:
    UserError: where the tokenizer contradicts itself, for one names an unknown token that it lacks.
  """
  try:
    return list(tokenizer.encode(text, add_special_tokens=special).ids)
  # The package raises a bare Exception.
  except Exception as error:
    raise UserError(
      f"{place}: the tokenizer fails at {text[:40]!r} ({_first_line(error)})"
    ) from error


def _first_line(error: BaseException) -> str:
  """Returns the first line of what an error of the package says, which has several at times."""
  return str(error).strip().partition("\n")[0]


def _wrap(
  tokenizer: Any,
  eos: Sequence[int],
  control: Sequence[int],
  bos: Sequence[int],
  fingerprint: str,
  place: str,
) -> Tokenizer:
  """Returns our protocol over a `tokenizers.Tokenizer`.

  Control tokens that do not end a text are banned.
  """
  # Padding and cutting are the pipeline's; a file may have them on.
  tokenizer.no_padding()
  tokenizer.no_truncation()
  encode, decode = _functions(tokenizer, place)
  continuation = None
  if adds_space(encode):
    description = _without_prefix(plain_json.decode(tokenizer.to_str()))
    bare = type(tokenizer).from_str(jsons.text(description))
    encode_bare, decode_bare = _functions(bare, place)
    continuation = Continuation(following(encode, encode_bare), decode_bare)
    decode = _without_space(decode, encode)
    encode = beginning(encode, encode_bare)
  return finish(
    encode,
    decode,
    tokenizer.get_vocab_size(with_added_tokens=True),
    eos,
    control,
    bos,
    fingerprint,
    piece=tokenizer.id_to_token,
    continuation=continuation,
  )


def _functions(tokenizer: Any, place: str) -> tuple[Encode, Decode]:
  """Returns encode and decode of a `tokenizers.Tokenizer`; `place` says where it is from."""

  def encode(text: str) -> list[int]:
    return _encoded(tokenizer, text, place)

  def decode(ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)

  return encode, decode


def _without_space(decode: Decode, encode: Encode) -> Decode:
  """Returns a `decode` that takes the space which `encode` puts before a text."""
  if decode(encode("a")) != " a":  # the decoder takes it already
    return decode

  def decode_begin(ids: Sequence[int]) -> str:
    return decode(ids).removeprefix(" ")

  return decode_begin


def _without_prefix(part: Any) -> Any:
  """Returns the JSON of a tokenizer, or of a part of it, that neither puts nor takes a first space.

  The space comes from the normalizer Prepend, or from the pre-tokenizers Metaspace and ByteLevel;
  the decoders Metaspace and Strip take it.
  """
  if isinstance(part, list):
    kept = [_without_prefix(step) for step in part]
    return [step for step in kept if step is not NOTHING]
  if not isinstance(part, dict):
    return part
  kind = part.get("type")
  if kind == "Prepend" or (kind == "Strip" and part.get("content") == " "):
    return NOTHING
  changed = {}
  for name, value in part.items():
    # The vocabulary and its many merges hold no such step.
    inner = value if name in ("model", "added_tokens") else _without_prefix(value)
    changed[name] = None if inner is NOTHING else inner
  if kind == "Metaspace":
    changed["prepend_scheme"] = "never"
  if "add_prefix_space" in changed:
    changed["add_prefix_space"] = False
  return changed


__all__ = [
  "BYTES",
  "END_OF_TEXT",
  "Tokenizer",
  "by_reference",
  "byte_level",
  "fit",
  "from_folder",
  "from_gguf",
  "from_json",
  "from_sentencepiece",
  "gguf_metadata",
  "load",
  "named",
  "of_bytes",
  "source",
]
