"""Tokenizers by what they are read from: a folder, a `tokenizer.json`, GGUF metadata, a
SentencePiece `.model`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.data.tokens.sentencepieces import from_sentencepiece
from instructjax.data.tokens.vocabulary import (
  Tokenizer,
  finish,
  fit,
  joinable,
  named,
  read_text,
  sha256,
)
from instructjax.errors import UserError

USUAL_EOS = ("<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<eos>")
END_OF_TEXT = "<|endoftext|>"
BYTES = "bytes"  # the tokenizer that needs no file


def by_reference(reference: str) -> Tokenizer:
  """A tokenizer as users and runs name it: BYTES, a .gguf model, a folder, a tokenizer.json or a
  SentencePiece .model.

  Raises UserError where it is none of these.
  """
  return of_bytes() if reference == BYTES else load(source(reference))


def source(reference: str) -> Path | dict[str, Any]:
  """Where a tokenizer is read from: a path, or the metadata of a .gguf model."""
  if reference.endswith(".gguf") and Path(reference).is_file():
    return gguf_metadata(reference)
  return Path(reference)


def of_bytes() -> Tokenizer:
  """Every byte of the UTF-8 text is an id; 256, <|endoftext|>, ends a text."""
  specials = {END_OF_TEXT: 256}
  encode = named(lambda text: list(text.encode()), specials)
  decode = lambda ids: bytes(i for i in ids if i < 256).decode("utf-8", "replace")
  return Tokenizer(encode, decode, 257, (256,), (), (), BYTES, specials)


def load(source: str | Path | Mapping[str, Any]) -> Tokenizer:
  """The tokenizer of a GGUF metadata dict, a model folder, a `tokenizer.json` or a SentencePiece
  `.model`.

  Raises UserError where the source is none of these.
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
  if path.suffix == ".json":
    return from_folder(path.parent) if path.name == "tokenizer.json" else from_json(path)
  if path.suffix == ".model":
    return from_sentencepiece(path)
  raise UserError(
    f"{path}: a tokenizer is a tokenizer.json or a SentencePiece .model, not '{path.suffix}'"
  )


# --- byte-level BPE and everything else that the `tokenizers` package reads ---


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
  """The byte-level BPE in the metadata of a GGUF file (keys `tokenizer.ggml.*` as they stand in the
  file).

  Raises UserError as `byte_level` does.
  """
  tokenizer = byte_level(metadata)
  field = lambda key, default=None: metadata.get(f"tokenizer.ggml.{key}", default)
  eos = (int(field("eos_token_id")),)
  bos = (int(field("bos_token_id")),) if field("add_bos_token") else ()
  text = json.dumps([field("pre", "gpt-2"), field("tokens"), field("merges"), field("token_type")])
  return _wrap(tokenizer, eos, _control(field("token_type")), bos, sha256(text.encode()))


def _control(kinds: Sequence[int] | None) -> list[int]:
  return [i for i, kind in enumerate(kinds or []) if kind == 3]  # 3: control token


def gguf_metadata(path: str | Path) -> dict[str, Any]:
  """What a GGUF file says about its tokenizer, under the file's own keys.  Raises UserError where
  it is no such file.
  """
  try:
    stat = Path(path).stat()
    return _gguf_metadata(path, stat.st_mtime_ns, stat.st_size)
  except (ValueError, OSError, IndexError) as error:
    raise UserError(f"{path}: not a readable GGUF file ({error}); fetch it again") from error


@functools.lru_cache(maxsize=2)
def _gguf_metadata(path: str | Path, changed: int, size: int) -> dict[str, Any]:
  """Read once: that takes seconds, a piece at a time."""
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
    raise UserError(
      f"no tokenizer.ggml.{missing[0]} in the GGUF metadata; give the model's tokenizer.json"
    )
  kind, pre = field("model"), field("pre", "gpt-2")
  if kind != "gpt2":
    raise UserError(
      f"tokenizer.ggml.model is {kind!r}; only 'gpt2' (byte-level BPE) is read out of a GGUF file"
    )
  by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  if pre == "smollm":
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
  elif pre == "gpt-2":
    splitter = by_bytes
  else:
    raise UserError(
      f"tokenizer.ggml.pre is {pre!r}; known are 'gpt-2' and 'smollm': give the model's "
      "tokenizer.json"
    )
  names = field("tokens")
  merges = [tuple(pair.split(" ", 1)) for pair in field("merges")]
  tokenizer = hf.Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
  tokenizer.pre_tokenizer = splitter
  tokenizer.decoder = decoders.ByteLevel()
  control = _control(field("token_type"))
  tokenizer.add_special_tokens(
    [hf.AddedToken(names[i], normalized=False, special=True) for i in control]
  )
  return tokenizer


def from_json(path: str | Path, eos: Sequence[int | str] = ()) -> Tokenizer:
  """A `tokenizer.json`.  `eos` are ids or names; without any, the usual names are tried in order.

  Raises UserError for a file that cannot be read and where no end-of-text token is found.
  """
  import tokenizers as hf

  path = Path(path)
  text = read_text(path)
  try:
    tokenizer = hf.Tokenizer.from_str(text)
  except Exception as error:
    raise UserError(f"{path}: not a tokenizer.json of the tokenizers package ({error})") from error
  usual = [name for name in USUAL_EOS if tokenizer.token_to_id(name) is not None]
  wanted = [
    tokenizer.token_to_id(name) if isinstance(name, str) else name for name in eos or usual[:1]
  ]
  ids = [i for i in wanted if i is not None]
  if not ids or len(ids) < len(wanted):
    raise UserError(
      f"{path}: no end-of-text token {list(eos) or list(USUAL_EOS)}; name one that it has with "
      "`eos`"
    )
  control = [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]
  before = [i for i in tokenizer.encode("", add_special_tokens=True).ids if i not in ids]
  return _wrap(tokenizer, ids, control, before, sha256(text.encode()))


def from_folder(folder: str | Path) -> Tokenizer:
  """The tokenizer of a Hugging Face model folder: `tokenizer.json`, else `tokenizer.model`.

  The end-of-text ids are those of `generation_config.json`, `config.json` or
  `tokenizer_config.json`, the first that names any.  Raises UserError where there is neither
  file.
  """
  folder = Path(folder)
  if not (folder / "tokenizer.json").is_file():
    if (folder / "tokenizer.model").is_file():
      return from_sentencepiece(folder / "tokenizer.model")
    raise UserError(
      f"{folder}: holds neither tokenizer.json nor tokenizer.model; give the folder of a model"
    )
  eos: list[int | str] = []
  for name, key in (
    ("generation_config.json", "eos_token_id"),
    ("config.json", "eos_token_id"),
    ("tokenizer_config.json", "eos_token"),
  ):
    if eos or not (folder / name).is_file():
      continue
    try:
      value = json.loads(read_text(folder / name)).get(key)
    except ValueError as error:
      raise UserError(f"{folder / name}: malformed JSON ({error}); mend or delete it") from None
    value = value.get("content") if isinstance(value, dict) else value
    eos = value if isinstance(value, list) else [] if value is None else [value]
  return from_json(folder / "tokenizer.json", eos)


def _wrap(
  tokenizer, eos: Sequence[int], control: Sequence[int], bos: Sequence[int], fingerprint: str
) -> Tokenizer:
  """The protocol over a `tokenizers.Tokenizer`; control tokens that do not end a text are banned."""
  tokenizer.no_padding()
  tokenizer.no_truncation()
  encode = joinable(lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids))
  size = tokenizer.get_vocab_size(with_added_tokens=True)
  return finish(
    encode,
    lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
    size,
    eos,
    control,
    bos,
    fingerprint,
    piece=tokenizer.id_to_token,
  )


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
