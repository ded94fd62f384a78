"""A tokenizer as the files that `transformers`, and what serves its models, open.

These are `tokenizer.json` and the files beside it. Files of a model folder are copied. The
byte-level BPE of a GGUF file, a SentencePiece model and the tokenizer of bytes become a
`tokenizer.json`, which is tried on a few texts: it must give the same ids.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.data.tokens import tokenizers
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.system import jsons

JSON = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
MODEL = "tokenizer.model"
# All files of a folder that belong to its tokenizer.
FILES = (
  JSON,
  CONFIG,
  "special_tokens_map.json",
  "added_tokens.json",
  TEMPLATE,
  "chat_template.json",
  MODEL,
  "vocab.json",
  "merges.txt",
)
END = "<|endoftext|>"
SPACE = "\u2581"  # SentencePiece's space
UNIGRAM = 1  # the number of this model type in a SentencePiece file
# Texts on which two tokenizers are compared.
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
  """Writes the files of a tokenizer into a model folder.

  `reference` says where the tokenizer comes from: a folder, a file, or "bytes". `context` is the
  longest row of the model, in tokens.

  Raises:
    UserError: if a tokenizer.json that gives the same ids cannot be made.
  """
  source = Path(reference)
  if source.name == JSON:
    source = source.parent
  if source.is_dir() and (source / JSON).is_file():
    _copy(source, folder)
    return
  hf_tokenizer = _convert(source, folder)
  bos_names = [hf_tokenizer.id_to_token(i) for i in tokenizer.bos]
  _begin_rows(hf_tokenizer, bos_names, tokenizer.bos)
  _check_equal(hf_tokenizer, tokenizer, reference)
  hf_tokenizer.save(str(folder / JSON))
  # A new line may end a response too, but it is text. `transformers` gets a special token if there
  # is one among the ids that end a response.
  special_ids = set(tokenizer.specials.values())
  ends = [i for i in tokenizer.eos if i in special_ids] or tokenizer.eos
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": context,
    "eos_token": hf_tokenizer.id_to_token(ends[0]),
    "bos_token": bos_names[0] if bos_names else None,
    # Our decoder changes no spaces, and prompts are padded on the left.
    "clean_up_tokenization_spaces": False,
    "padding_side": "left",
  }
  (folder / CONFIG).write_text(jsons.text(settings, indent=2, ascii_only=True) + "\n", "utf-8")


def _copy(source: Path, folder: Path) -> None:
  for name in FILES:
    is_same = (source / name).resolve() == (folder / name).resolve()
    if (source / name).is_file() and not is_same:
      shutil.copyfile(source / name, folder / name)


def _convert(source: Path, folder: Path) -> Any:
  """Returns the tokenizer of a source as one of the `tokenizers` package.

  Files that can go along as they are, such as a chat template, are written into the folder.
  """
  import tokenizers as hf

  if source.suffix == ".json":
    shutil.copyfile(source, folder / JSON)
    return hf.Tokenizer.from_file(str(source))
  if source.suffix == ".gguf":
    metadata = tokenizers.gguf_metadata(source)
    template = metadata.get("tokenizer.chat_template")
    if template:
      (folder / TEMPLATE).write_text(template, "utf-8")
    return tokenizers.byte_level(metadata)
  if source.suffix == ".model" or source.is_dir():
    path = source / MODEL if source.is_dir() else source
    shutil.copyfile(path, folder / MODEL)
    return from_sentencepiece(path)
  return of_bytes()


def _begin_rows(hf_tokenizer: Any, names: Sequence[str], ids: Sequence[int]) -> None:
  """Has `transformers` put the ids that begin our rows before every text."""
  from tokenizers.processors import TemplateProcessing

  if names:
    hf_tokenizer.post_processor = TemplateProcessing(
      single=" ".join([*names, "$A"]),  # $A stands for the text
      special_tokens=list(zip(names, ids, strict=True)),
    )


def _check_equal(hf_tokenizer: Any, tokenizer: Tokenizer, reference: str) -> None:
  """Raises UserError if the converted tokenizer and ours give different ids for one of PROBES."""
  for text in PROBES:
    ids = hf_tokenizer.encode(text, add_special_tokens=False).ids
    wanted = tokenizer.encode(text)
    if ids != wanted:
      raise UserError(
        f"{reference}: no tokenizer.json gives its ids ({text!r} becomes {ids[:8]}, not "
        f"{wanted[:8]}): give the model another tokenizer before training, or write the "
        "tokenizer's files by hand"
      )


# --- made from other formats ---


def of_bytes() -> Any:
  """Returns `tokenizers.of_bytes` as a byte-level BPE without merges.

  Every byte is its id, and 256 ends a text.
  """
  import tokenizers as hf
  from tokenizers import decoders, models, pre_tokenizers

  vocab = {character: i for i, character in enumerate(byte_characters())}
  vocab[END] = 256
  hf_tokenizer = hf.Tokenizer(models.BPE(vocab, []))
  hf_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  hf_tokenizer.decoder = decoders.ByteLevel()
  hf_tokenizer.add_special_tokens([hf.AddedToken(END, normalized=False, special=True)])
  return hf_tokenizer


def byte_characters() -> list[str]:
  """Returns the character that stands for each byte in byte-level BPE (Radford et al. 2019).

  A byte whose character can be seen stands for itself; the others are shifted to U+0100 and on.
  """
  visible = {
    *range(ord("!"), ord("~") + 1),
    *range(ord("¡"), ord("¬") + 1),
    *range(ord("®"), ord("ÿ") + 1),
  }
  characters = []
  shifted = 0  # bytes so far that stand for another character
  for byte in range(256):
    if byte in visible:
      characters.append(chr(byte))
    else:
      characters.append(chr(256 + shifted))
      shifted += 1
  return characters


def from_sentencepiece(path: Path) -> Any:
  """Returns a SentencePiece model, BPE or unigram, as a tokenizer of the `tokenizers` package.

  A BPE file has no list of merges. Every way to cut a piece into two other pieces is a merge, and
  they are in the order of the pieces' scores.
  """
  import sentencepiece
  import tokenizers as hf
  from tokenizers import models

  processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
  size = processor.get_piece_size()
  pieces = [processor.id_to_piece(i) for i in range(size)]
  scores = [processor.get_score(i) for i in range(size)]
  unknown = processor.unk_id()  # below 0 where there is none
  has_bytes = any(processor.is_byte(i) for i in range(size))
  proto = _read_proto(path)
  if proto.trainer_spec.model_type == UNIGRAM:
    scored = list(zip(pieces, scores, strict=True))
    hf_tokenizer = hf.Tokenizer(models.Unigram(scored, unknown, has_bytes))
  else:
    vocab = {piece: i for i, piece in enumerate(pieces)}
    scores_of_text = {}  # of the pieces that occur in a text, and so can be merged
    for i in range(size):
      special = processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i)
      if not special and not processor.is_byte(i):
        scores_of_text[pieces[i]] = scores[i]
    model = models.BPE(
      vocab,
      _merges(vocab, scores_of_text),
      unk_token=pieces[unknown] if unknown >= 0 else None,
      fuse_unk=True,
      byte_fallback=has_bytes,
    )
    hf_tokenizer = hf.Tokenizer(model)
  _set_spaces(hf_tokenizer, proto.normalizer_spec)
  control = [pieces[i] for i in range(size) if processor.is_control(i)]
  hf_tokenizer.add_special_tokens(
    [hf.AddedToken(piece, normalized=False, special=True) for piece in control]
  )
  return hf_tokenizer


def _merges(vocab: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
  """Returns every pair of pieces that make a third, the highest score of that third first.

  The pairs that make the same piece are in the order of their ids.
  """
  ranked = []
  for piece, score in scores.items():
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in scores and right in scores:
        rank = (-score, vocab[left], vocab[right])
        ranked.append((rank, (left, right)))
  return [pair for _, pair in sorted(ranked)]


def _read_proto(path: Path) -> Any:
  """Returns the settings that a SentencePiece file holds beside its pieces."""
  from sentencepiece import sentencepiece_model_pb2

  # The classes of this module are made at run time, where no type checker sees them.
  proto: Any = vars(sentencepiece_model_pb2)["ModelProto"]()
  proto.ParseFromString(path.read_bytes())
  return proto


def _set_spaces(hf_tokenizer: Any, rules: Any) -> None:
  """Has a tokenizer treat spaces as SentencePiece does.

  Each space is the character U+2581, and one stands before every text if `rules` say so.
  """
  from tokenizers import Regex, decoders, normalizers

  steps: list[Any] = []
  if rules.precompiled_charsmap:
    steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
  if rules.remove_extra_whitespaces:
    steps.append(normalizers.Strip())
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
  steps.append(normalizers.Replace(" ", SPACE))
  if rules.add_dummy_prefix:
    steps.append(normalizers.Prepend(SPACE))
  hf_tokenizer.normalizer = normalizers.Sequence(steps)
  decoding: list[Any] = [
    decoders.Replace(SPACE, " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
  ]
  if rules.add_dummy_prefix:
    decoding.append(decoders.Strip(" ", 1, 0))  # one space on the left
  hf_tokenizer.decoder = decoders.Sequence(decoding)
