"""`instructjax tokenizer`: trains a SentencePiece model, and checks a tokenizer.

The check is against a model, against texts, or against both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from instructjax.commands.options import number, whole
from instructjax.data.records.named import LAYOUTS
from instructjax.data.tokens import sentencepieces, texts
from instructjax.errors import UserError
from instructjax.system import jsons, places

if TYPE_CHECKING:
  from instructjax.data.tokens.tokenizer_check import Measured
  from instructjax.data.tokens.vocabulary import Tokenizer

# The options of `train` that are fields of `sentencepieces.Training` under the same name.
SAME_FIELDS = (
  "vocab_size",
  "model_type",
  "coverage",
  "normalization",
  "eos",
  "pad",
  "unk",
  "bos",
  "threads",
)
# The fields of a folder's files that name ids.
TOKEN_KEYS = ("eos_token_id", "bos_token_id", "pad_token_id")
Row = tuple[str, float | int | None, str]  # figure, value, note


def arguments(command: argparse.ArgumentParser) -> None:
  """Adds the actions and their options to the command."""
  actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")

  def add_action(name: str, summary: str) -> argparse.ArgumentParser:
    return actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)

  _train_arguments(add_action("train", "a SentencePiece tokenizer of your text"))
  _check_arguments(
    add_action("check", "does a tokenizer fit a model, and what becomes of texts"),
  )


def _train_arguments(train: argparse.ArgumentParser) -> None:
  train.add_argument(
    "--input",
    nargs="+",
    required=True,
    metavar="FILE",
    help="plain text or records, or any other source",
  )
  _spelling_arguments(train)
  train.add_argument("--out", required=True, help="ends in .model")
  train.add_argument(
    "--vocab-size", type=whole(1, 10**7), default=8192, metavar="N", help="ids; default 8192"
  )
  train.add_argument("--model-type", default="bpe", choices=sentencepieces.MODEL_TYPES)
  train.add_argument(
    "--no-byte-fallback",
    action="store_true",
    help="a character without a piece becomes the unknown one",
  )
  train.add_argument(
    "--coverage",
    type=number(0.98, 1),
    default=1.0,
    help="share of characters with pieces, .98 to 1; default 1",
  )
  train.add_argument(
    "--normalization",
    default="identity",
    choices=sentencepieces.NORMALIZATIONS,
    help="default identity: texts come back",
  )
  train.add_argument(
    "--symbol",
    action="append",
    default=[],
    metavar="TEXT",
    help="always one piece; may be repeated",
  )
  train.add_argument(
    "--control",
    action="append",
    default=[],
    metavar="NAME",
    help="a special token; may be repeated",
  )
  train.add_argument(
    "--eos",
    default="</s>",
    metavar="NAME",
    help="ends a text, id 1; default </s>",
  )
  train.add_argument(
    "--pad",
    default="<pad>",
    metavar="NAME",
    help="id 0, never sampled; default <pad>",
  )
  train.add_argument(
    "--unk",
    default="<unk>",
    metavar="NAME",
    help="id 2, never sampled; default <unk>",
  )
  train.add_argument(
    "--bos",
    default="",
    metavar="NAME",
    help="begins every row, id 3; default none",
  )
  train.add_argument("--threads", type=whole(1, 1024), default=1, metavar="N")


def _check_arguments(check: argparse.ArgumentParser) -> None:
  check.add_argument(
    "files",
    nargs="*",
    metavar="FILE",
    help="texts to measure: plain text, records or any other source",
  )
  _spelling_arguments(check)
  check.add_argument(
    "--tokenizer",
    default="",
    help="a folder, tokenizer.json, .model, .gguf or bytes; default the model's",
  )
  check.add_argument(
    "--model",
    default="",
    help="a run directory, a model folder, a .gguf file, a hub id or file.py:function",
  )
  check.add_argument("--json", action="store_true", help="print one JSON object")


def _spelling_arguments(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--spelling",
    default="",
    choices=[*LAYOUTS],
    help="of records; default: what the fields of the first ones say",
  )
  command.add_argument(
    "--fields",
    default="",
    metavar="OURS=THEIRS,...",
    help="of records, such as text=content",
  )


def main(args: argparse.Namespace) -> None:
  """Runs one of the tokenizer commands, as the command line parsed it."""
  if args.action == "train":
    _train(args)
  else:
    _check(args)


def _train(args: argparse.Namespace) -> None:
  settings = sentencepieces.Training(
    **{name: getattr(args, name) for name in SAME_FIELDS},
    byte_fallback=not args.no_byte_fallback,
    symbols=tuple(args.symbol),
    control=tuple(args.control),
  )
  tokenizer = sentencepieces.train(_texts(args.input, args), args.out, settings)
  print(f"{args.out}: {tokenizer.vocab_size} pieces")


def _texts(files: Sequence[str], args: argparse.Namespace) -> Iterator[str]:
  for file in files:
    yield from texts.texts(file, args.spelling, args.fields)


# --- check ---


class ModelTokens(NamedTuple):
  """What the files of a model say about its tokens, read without its weights.

  `rows` are those of its embedding. `about` is as `origin` has it: the reference of the tokenizer,
  and the template of a run. `named` are the ids that the files name, by file and key.
  """

  rows: int
  about: dict[str, Any]
  named: dict[str, tuple[int, ...]]


def _check(args: argparse.Namespace) -> None:
  # What takes long to import stands here, so that --help and `train` do without it.
  from instructjax.data.tokens import tokenizer_check, tokenizers
  from instructjax.runs import origin

  if not args.tokenizer and not args.model:
    raise UserError("give --tokenizer, --model or both")

  model = _model_tokens(args.model, args.tokenizer) if args.model else None
  own_reference = model.about["tokenizer"] if model else ""
  reference = args.tokenizer or own_reference
  tokenizer = tokenizers.by_reference(reference)
  samples = list(_texts(args.files, args))
  if args.files and not samples:
    raise UserError(f"{', '.join(args.files)}: no texts")

  # How the tokenizer does on the texts, then how it fits the model, then its chat template.
  measured = tokenizer_check.measure(tokenizer, samples)
  problems = tokenizer_check.losses(measured)
  if model:
    names = tokenizer_check.Model(model.rows, model.named)
    problems += tokenizer_check.misfits(tokenizer, names)
    # A model that was trained with another tokenizer would read other texts than were written.
    if args.tokenizer and own_reference:
      own_tokenizer = tokenizers.by_reference(own_reference)
      problems += tokenizer_check.others(tokenizer, own_tokenizer, samples)
  # What a run says about its ends and its template counts only for the run's own tokenizer.
  about = model.about if model and not args.tokenizer else {}
  closing, template_problems = _template(about or {"tokenizer": reference}, tokenizer)
  problems += template_problems

  lost_cases = tokenizer_check.cases(tokenizer)
  cases_back = len(tokenizer_check.CASES) - len(lost_cases)
  rows = [
    *_id_rows(origin.ended(tokenizer, about), model.rows if model else None),
    *_text_rows(tokenizer, measured),
    (
      "hard cases that come back",
      cases_back,
      f"not {'; '.join(lost_cases)}" if lost_cases else "",
    ),
    ("chat template", None, closing),
  ]
  _show(args, reference, rows, problems)
  if problems:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    raise UserError(f"{count} with {reference}; see above")


def _show(
  args: argparse.Namespace,
  reference: str,
  rows: Sequence[Row],
  problems: Sequence[str],
) -> None:
  """Prints the figures, as a table or as JSON, and the problems on standard error."""
  from instructjax.system import tables

  if args.json:
    figures = {name: {"value": value, "note": note} for name, value, note in rows}
    report = {
      "tokenizer": reference,
      "model": args.model,
      "figures": figures,
      "problems": problems,
    }
    print(jsons.text_with_nulls(report))
  else:
    title = reference
    # Most models are their own reference, which the title names once.
    if args.model not in ("", reference):
      title = f"{reference} and {args.model}"
    table = tables.Table(title, ("figure", "value", "note"), list(rows), 2)
    tables.show([table])
  for problem in problems:
    print(problem, file=sys.stderr)


def _id_rows(tokenizer: Tokenizer, embedding_rows: int | None) -> list[Row]:
  """Returns the figures of a tokenizer's ids, beside the rows of a model if there is one."""
  from instructjax.data.tokens.tokenizer_check import show

  special_ids = set(tokenizer.specials.values())
  # Of the banned ids, those that have a name are worth showing.
  control = [i for i in tokenizer.banned if i in special_ids]
  first_control = show(tokenizer, control[:4])
  if len(control) > 4:  # some models reserve hundreds
    first_control += ", ..."
  rows: list[Row] = [("ids", tokenizer.vocab_size, "")]
  # Many embeddings are larger than the vocabulary, to be a multiple of some power of 2.
  if embedding_rows is not None:
    spare = max(embedding_rows - tokenizer.vocab_size, 0)
    rows.append(("rows of the embedding", embedding_rows, ""))
    rows.append(("rows without an id", spare, "never sampled" if spare else ""))
  return [
    *rows,
    ("end a text", len(tokenizer.eos), show(tokenizer, tokenizer.eos)),
    ("begin a row", len(tokenizer.bos), show(tokenizer, tokenizer.bos)),
    ("never sampled", len(tokenizer.banned), first_control),
  ]


def _text_rows(tokenizer: Tokenizer, measured: Measured) -> list[Row]:
  """Returns the figures of the texts that the command line names."""
  if not measured.texts:
    return [("texts", measured.texts, "give files to measure")]
  left_out = ""
  if measured.special:
    left_out = f"{measured.special} more name special tokens, which the stages refuse"
  # A text may be empty, and then there are no words or no tokens to divide by.
  tokens_a_word = measured.tokens / max(measured.words, 1)
  bytes_a_token = measured.bytes / max(measured.tokens, 1)
  unchanged = measured.texts - len(measured.lost)
  return [
    ("texts", measured.texts, left_out),
    ("tokens", measured.tokens, f"{measured.words:,} words, {measured.bytes:,} bytes"),
    ("tokens a word", tokens_a_word, ""),
    ("bytes a token", bytes_a_token, ""),
    ("unknown tokens, %", _percent(measured.unknown, measured.tokens), ""),
    ("ids that occur, %", _percent(len(measured.used), tokenizer.vocab_size), ""),
    ("texts that come back, %", _percent(unchanged, measured.texts), ""),
  ]


def _percent(part: int, whole: int) -> float:
  return 100 * part / max(whole, 1)


def _template(about: dict[str, Any], tokenizer: Tokenizer) -> tuple[str, list[str]]:
  """Returns (how the chat template closes a reply, what is wrong with that)."""
  from instructjax.data.tokens import chat, tokenizers
  from instructjax.data.tokens.tokenizer_check import show
  from instructjax.runs import origin

  reference = about["tokenizer"]
  # A run carries its own template. Elsewhere it is in the files of the tokenizer.
  if not about.get("template"):
    if reference == tokenizers.BYTES:
      return "none", []
    text, _ = chat.find(tokenizers.source(reference))
    if not text:
      return "none", []
  # An error is one of the problems that the command lists, not the end of it.
  try:
    template = origin.chat_template(chat.OWN, about, tokenizer)
  except UserError as error:
    return "does not fit", [str(error)]
  if template is None:
    return "none", []
  return f"closes a reply with {show(tokenizer, [template.end])}", []


def _model_tokens(source: str, tokenizer: str) -> ModelTokens:
  """Returns what a model's files say about its tokens.

  `tokenizer` is what --tokenizer names, if anything: then the model may have none of its own.

  Raises:
    UserError: if there is no such model, or no tokenizer.
  """
  from instructjax import models
  from instructjax.models import peft
  from instructjax.runs import origin

  if origin.is_run(source):
    about = origin.finished(places.directory(source))
    if about["family"] == "python":  # the run of a function that makes a model
      lm, *_ = origin.call_python(about["source"])
      return ModelTokens(lm.vocab_size, about, {})
    return ModelTokens(about["config"]["vocab_size"], about, {})
  if origin.is_python(source):
    lm, _, own_reference = origin.call_python(source)
    if not own_reference and not tokenizer:
      raise UserError(f"{source}: names no tokenizer; give --tokenizer")
    return ModelTokens(lm.vocab_size, {"tokenizer": own_reference}, {})
  if peft.is_adapter(source):
    # An adapter changes no ids.
    return _model_tokens(peft.base(source), tokenizer)
  if Path(source).is_file():
    rows = models.embedding_rows(source)
    return ModelTokens(rows, {"tokenizer": source}, _named_in_gguf(source))
  folder = Path(source) if Path(source).is_dir() else models.fetch(source)
  files = ("tokenizer.json", "tokenizer.model")
  # A folder of weights alone is a model all the same.
  has_tokenizer = any((folder / name).is_file() for name in files)
  if not has_tokenizer and not tokenizer:
    raise UserError(f"{folder}: holds no tokenizer; give --tokenizer")
  about = {"tokenizer": str(folder) if has_tokenizer else ""}
  return ModelTokens(models.embedding_rows(folder), about, _named_in_folder(folder))


def _named_in_folder(folder: Path) -> dict[str, tuple[int, ...]]:
  """Returns the ids that config.json and generation_config.json name."""
  from instructjax.models.hf import configs

  ids_by_field = {}
  for name in ("config.json", "generation_config.json"):
    path = folder / name
    if not path.is_file():
      continue
    config = configs.read_json(path)
    for key in TOKEN_KEYS:
      value = config.get(key)
      if value is None:
        ids = []
      elif isinstance(value, list):
        ids = value
      else:
        ids = [value]
      for token_id in ids:
        if type(token_id) is not int:  # a bool is no id
          raise UserError(
            f"{path}: {key} is {token_id!r}, an integer or a list of them is expected; fix the file"
          )
      ids_by_field[f"{path}: {key}"] = tuple(ids)
  return ids_by_field


def _named_in_gguf(path: str) -> dict[str, tuple[int, ...]]:
  """Returns the ids that the metadata of a GGUF file names."""
  from instructjax.data.tokens import tokenizers

  metadata = tokenizers.gguf_metadata(path)
  ids_by_field: dict[str, tuple[int, ...]] = {}
  for name in ("eos", "bos", "padding"):  # the names that GGUF has for TOKEN_KEYS
    key = f"tokenizer.ggml.{name}_token_id"
    if metadata.get(key) is not None:
      ids_by_field[f"{path}: {key}"] = (int(metadata[key]),)
  return ids_by_field
