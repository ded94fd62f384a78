"""A tokenizer as the files that `transformers`, and what serves its models, open: `tokenizer.json`
and what stands beside it.

Files of a model folder are copied.  The byte-level BPE of a GGUF file, a SentencePiece model and
the tokenizer of bytes become a `tokenizer.json`, which is read back and compared: it must give
the same ids.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.data.tokens import tokenizers
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError

JSON, CONFIG = "tokenizer.json", "tokenizer_config.json"
FILES = (
  JSON,
  CONFIG,
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "chat_template.json",
  "tokenizer.model",
  "vocab.json",
  "merges.txt",
)
END, SPACE = "<|endoftext|>", "\u2581"
PROBES = (
  "",
  " ",
  "a",
  " a",
  "a b",
  "  two  spaces ",
  "Hello, world!\nA second line.\n\n",
  "tabs\tand\r\nends",
  "1234 5.67e-8",
  "naïve café — “quotes” …",
  "日本語のテキスト",
  "مرحبا",
  "🙂👩‍👩‍👧",
  "é e\u0301",
  "don't DON'T",
  "x = f(y)[0] # done",
)


def write(reference: str, tokenizer: Tokenizer, folder: Path, *, context: int) -> None:
  """Writes the files of the tokenizer of a `reference` (a folder, a file, or "bytes") into a model
  folder.

  Raises UserError where a tokenizer.json that gives the same ids cannot be made.
  """
  source = Path(reference)
  if source.name == JSON:
    source = source.parent
  if source.is_dir() and (source / JSON).is_file():
    _copy(source, folder)
    return
  if source.suffix == ".json":
    shutil.copyfile(source, folder / JSON)
    made = _read(source)
  elif source.suffix == ".gguf":
    metadata = tokenizers.gguf_metadata(source)
    made = tokenizers.byte_level(metadata)
    if template := metadata.get("tokenizer.chat_template"):
      (folder / "chat_template.jinja").write_text(template, "utf-8")
  elif source.suffix == ".model" or source.is_dir():
    path = source / "tokenizer.model" if source.is_dir() else source
    shutil.copyfile(path, folder / "tokenizer.model")
    made = from_sentencepiece(path)
  else:
    made = of_bytes()
  name = made.id_to_token
  _prefix(made, [name(i) for i in tokenizer.bos], tokenizer.bos)
  _equal(made, tokenizer, reference)
  made.save(str(folder / JSON))
  end = next(
    (i for i in tokenizer.eos if i in tokenizer.specials.values()), tokenizer.eos[0]
  )  # a new line is text as well
  special = {"eos_token": name(end), "bos_token": name(tokenizer.bos[0]) if tokenizer.bos else None}
  settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **special}
  settings |= {"clean_up_tokenization_spaces": False, "padding_side": "left"}
  (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _copy(source: Path, folder: Path) -> None:
  for name in FILES:
    if (source / name).is_file() and (source / name).resolve() != (folder / name).resolve():
      shutil.copyfile(source / name, folder / name)


def _read(path: Path) -> Any:
  import tokenizers as hf

  return hf.Tokenizer.from_file(str(path))


def _prefix(made: Any, names: Sequence[str], ids: Sequence[int]) -> None:
  """`transformers` puts the ids that begin a row before every text, as our rows have them."""
  from tokenizers.processors import TemplateProcessing

  if names:
    made.post_processor = TemplateProcessing(
      single=" ".join([*names, "$A"]),
      special_tokens=[(name, i) for name, i in zip(names, ids, strict=True)],
    )


def _equal(made: Any, tokenizer: Tokenizer, reference: str) -> None:
  """Raises UserError where the made tokenizer and ours give other ids for one of PROBES."""
  for text in PROBES:
    found, wanted = made.encode(text, add_special_tokens=False).ids, tokenizer.encode(text)
    if found != wanted:
      raise UserError(
        f"{reference}: no tokenizer.json gives its ids ({text!r} becomes {found[:8]}, not "
        f"{wanted[:8]}): give the model "
        "another tokenizer before training, or write the tokenizer's files by hand"
      )


# --- made from other formats ---


def of_bytes() -> Any:
  """`tokenizers.of_bytes` as byte-level BPE without merges: every byte is its id, and 256 ends a
  text.
  """
  import tokenizers as hf
  from tokenizers import decoders, models, pre_tokenizers

  vocab = {character: i for i, character in enumerate(byte_characters())} | {END: 256}
  made = hf.Tokenizer(models.BPE(vocab, []))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens([hf.AddedToken(END, normalized=False, special=True)])
  return made


def byte_characters() -> list[str]:
  """The character that stands for each byte in byte-level BPE (Radford et al. 2019): itself where
  it can be seen.
  """
  seen = [
    *range(ord("!"), ord("~") + 1),
    *range(ord("¡"), ord("¬") + 1),
    *range(ord("®"), ord("ÿ") + 1),
  ]
  others = (i for i in range(256) if i not in seen)
  shifted = {byte: chr(256 + n) for n, byte in enumerate(others)}
  return [shifted.get(i, chr(i)) for i in range(256)]


def from_sentencepiece(path: Path) -> Any:
  """A SentencePiece model, BPE or unigram, as a tokenizer of the `tokenizers` package.

  A BPE file has no list of merges: every way to cut a piece into two others is one, in the order
  of the pieces' scores.
  """
  import sentencepiece
  import tokenizers as hf
  from tokenizers import models

  sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
  pieces = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
  scores = [sp.get_score(i) for i in range(len(pieces))]
  unknown = pieces[sp.unk_id()] if sp.unk_id() >= 0 else None
  fallback = any(sp.is_byte(i) for i in range(len(pieces)))
  normal = [
    i
    for i in range(len(pieces))
    if not (sp.is_control(i) or sp.is_unknown(i) or sp.is_byte(i) or sp.is_unused(i))
  ]
  proto = _proto(path)
  if proto.trainer_spec.model_type == 1:
    made = hf.Tokenizer(models.Unigram(list(zip(pieces, scores)), sp.unk_id(), fallback))
  else:
    vocab = {piece: i for i, piece in enumerate(pieces)}
    joined = _merges(vocab, {pieces[i]: scores[i] for i in normal})
    made = hf.Tokenizer(
      models.BPE(vocab, joined, unk_token=unknown, fuse_unk=True, byte_fallback=fallback)
    )
  _spaces(made, proto.normalizer_spec)
  control = [pieces[i] for i in range(len(pieces)) if sp.is_control(i)]
  made.add_special_tokens(
    [hf.AddedToken(piece, normalized=False, special=True) for piece in control]
  )
  return made


def _merges(vocab: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
  """Every pair of pieces that make a third, the highest score first; of one piece, in the order of
  the parts' ids.
  """
  found = []
  for piece, score in scores.items():
    cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
    own = [(left, right) for left, right in cuts if left in scores and right in scores]
    found += [(-score, vocab[left], vocab[right], (left, right)) for left, right in own]
  return [pair for *_, pair in sorted(found)]


def _proto(path: Path) -> Any:
  from sentencepiece import sentencepiece_model_pb2

  proto: Any = vars(sentencepiece_model_pb2)["ModelProto"]()  # its classes are made at run time
  proto.ParseFromString(path.read_bytes())
  return proto


def _spaces(made: Any, rules: Any) -> None:
  """SentencePiece's way with spaces: each is the character U+2581, and one stands before every text
  where `rules` say so.

  There the text's own first space is that one, as `tokenizers` reads it.
  """
  from tokenizers import Regex, decoders, normalizers

  steps: list[Any] = []
  if rules.precompiled_charsmap:
    steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
  if rules.remove_extra_whitespaces:
    steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
  steps.append(normalizers.Replace(" ", SPACE))
  if rules.add_dummy_prefix:
    steps += [normalizers.Prepend(SPACE), normalizers.Replace(Regex(f"^{SPACE}{SPACE}"), SPACE)]
    steps.append(normalizers.Replace(Regex(f"^{SPACE}$"), ""))
  made.normalizer = normalizers.Sequence(steps)
  strip = [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else []
  made.decoder = decoders.Sequence(
    [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
  )
