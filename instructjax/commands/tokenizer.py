"""`instructjax tokenizer`: trains a SentencePiece model, and checks a tokenizer against a model and
against texts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from instructjax.data.records import spellings
from instructjax.data.tokens import texts
from instructjax.errors import UserError

if TYPE_CHECKING:
  from instructjax.data.tokens.vocabulary import Tokenizer


def arguments(command: argparse.ArgumentParser) -> None:
  """The actions and their options."""
  actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
  act = lambda name, text: actions.add_parser(name, help=text, description=text, allow_abbrev=False)
  train = act("train", "a SentencePiece tokenizer of your text")
  train.add_argument(
    "--input",
    nargs="+",
    required=True,
    metavar="FILE",
    help="plain text or records, or any other source",
  )
  _spelled(train)
  train.add_argument("--out", required=True, help="ends in .model")
  train.add_argument("--vocab-size", type=int, default=8192, metavar="N", help="ids; default 8192")
  train.add_argument("--model-type", default="bpe", choices=["bpe", "unigram"])
  train.add_argument(
    "--no-byte-fallback",
    action="store_true",
    help="a character without a piece becomes the unknown one",
  )
  train.add_argument(
    "--coverage",
    type=float,
    default=1.0,
    help="share of characters with pieces, .98 to 1; default 1",
  )
  rules = ["identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"]
  train.add_argument(
    "--normalization", default="identity", choices=rules, help="default identity: texts come back"
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
    "--eos", default="</s>", metavar="NAME", help="ends a text, id 1; default </s>"
  )
  train.add_argument(
    "--pad", default="<pad>", metavar="NAME", help="id 0, never sampled; default <pad>"
  )
  train.add_argument(
    "--unk", default="<unk>", metavar="NAME", help="id 2, never sampled; default <unk>"
  )
  train.add_argument(
    "--bos", default="", metavar="NAME", help="begins every row, id 3; default none"
  )
  train.add_argument("--threads", type=int, default=1, metavar="N")
  check = act("check", "does a tokenizer fit a model, and what becomes of texts")
  check.add_argument(
    "files",
    nargs="*",
    metavar="FILE",
    help="texts to measure: plain text, records or any other source",
  )
  _spelled(check)
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


def _spelled(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--spelling", default="native", choices=[*spellings.SPELLINGS], help="of records"
  )
  command.add_argument(
    "--fields", default="", metavar="OURS=THEIRS,...", help="of records, such as text=content"
  )


def main(args: argparse.Namespace) -> None:
  """One of the tokenizer commands, as the command line parsed it."""
  {"train": _train, "check": _check}[args.action](args)


def _train(args: argparse.Namespace) -> None:
  from instructjax.data.tokens import sentencepieces

  same = (
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
  settings = sentencepieces.Training(
    **{name: getattr(args, name) for name in same},
    byte_fallback=not args.no_byte_fallback,
    symbols=tuple(args.symbol),
    control=tuple(args.control),
  )
  found = sentencepieces.train(_texts(args.input, args), args.out, settings)
  print(f"{args.out}: {found.vocab_size} pieces")


def _texts(files: list[str], args: argparse.Namespace) -> Iterator[str]:
  return (text for file in files for text in texts.texts(file, args.spelling, args.fields))


# --- check ---


class Known(NamedTuple):
  """What the files of a model say, read without its weights."""

  rows: int
  about: dict[
    str, Any
  ]  # as `origin` has it: the reference of the tokenizer, and the template of a run
  named: dict[str, tuple[int, ...]]  # ids by file and key


def _check(args: argparse.Namespace) -> None:
  from instructjax.data.tokens import tokenizer_check, tokenizers
  from instructjax.system import tables

  if not args.tokenizer and not args.model:
    raise UserError("give --tokenizer, --model or both")
  from instructjax.runs import origin

  known = _known(args.model, args.tokenizer) if args.model else None
  reference = args.tokenizer or (known.about["tokenizer"] if known else "")
  tokenizer = tokenizers.by_reference(reference)
  texts = list(_texts(args.files, args))
  if args.files and not texts:
    raise UserError(f"{', '.join(args.files)}: no texts")
  found, failed = tokenizer_check.measure(tokenizer, texts), tokenizer_check.cases(tokenizer)
  problems = tokenizer_check.losses(found)
  if known:
    problems += tokenizer_check.misfits(tokenizer, tokenizer_check.Model(known.rows, known.named))
    if args.tokenizer and known.about["tokenizer"]:
      problems += tokenizer_check.others(
        tokenizer, tokenizers.by_reference(known.about["tokenizer"]), texts
      )
  stop, wrong = _template(
    known.about if known and not args.tokenizer else {"tokenizer": reference}, tokenizer
  )
  problems += wrong
  drawn = origin.ended(tokenizer, known.about if known and not args.tokenizer else {})
  rows = [*_ids(drawn, known.rows if known else None), *_figures(tokenizer, found)]
  back = len(tokenizer_check.CASES) - len(failed)
  rows += [
    ("hard cases that come back", back, f"not {'; '.join(failed)}" if failed else ""),
    ("chat template", None, stop),
  ]
  if args.json:
    figures = {name: {"value": value, "note": note} for name, value, note in rows}
    told = {"tokenizer": reference, "model": args.model, "figures": figures, "problems": problems}
    print(json.dumps(told, ensure_ascii=False))
  else:
    title = f"{reference} and {args.model}" if args.model not in ("", reference) else reference
    tables.show([tables.Table(title, ("figure", "value", "note"), rows, 2)])
  for problem in problems:
    print(problem, file=sys.stderr)
  if problems:
    raise UserError(
      f"{len(problems)} problem{'s' if len(problems) > 1 else ''} with {reference}; see above"
    )


Row = tuple[str, float | int | None, str]


def _ids(tokenizer: Tokenizer, rows: int | None) -> list[Row]:
  from instructjax.data.tokens.tokenizer_check import show

  control = [i for i in tokenizer.banned if i in tokenizer.specials.values()]
  some = show(tokenizer, control[:4]) + (", ..." if len(control) > 4 else "")
  model: list[Row] = []
  if rows is not None:
    spare = max(rows - tokenizer.vocab_size, 0)
    model = [
      ("rows of the embedding", rows, ""),
      ("rows without an id", spare, "never sampled" if spare else ""),
    ]
  return [
    ("ids", tokenizer.vocab_size, ""),
    *model,
    ("end a text", len(tokenizer.eos), show(tokenizer, tokenizer.eos)),
    ("begin a row", len(tokenizer.bos), show(tokenizer, tokenizer.bos)),
    ("never sampled", len(tokenizer.banned), some),
  ]


def _figures(tokenizer: Tokenizer, found: Any) -> list[Row]:
  if not found.texts:
    return [("texts", found.texts, "give files to measure")]
  share = lambda part, whole: 100 * part / max(whole, 1)
  return [
    (
      "texts",
      found.texts,
      f"{found.special} more name special tokens, which the stages refuse" if found.special else "",
    ),
    ("tokens", found.tokens, f"{found.words:,} words, {found.bytes:,} bytes"),
    ("tokens a word", found.tokens / max(found.words, 1), ""),
    ("bytes a token", found.bytes / max(found.tokens, 1), ""),
    ("unknown tokens, %", share(found.unknown, found.tokens), ""),
    ("ids that occur, %", share(len(found.used), tokenizer.vocab_size), ""),
    ("texts that come back, %", share(found.texts - len(found.lost), found.texts), ""),
  ]


def _template(about: dict[str, Any], tokenizer: Tokenizer) -> tuple[str, list[str]]:
  """(how the chat template closes a reply, what is wrong with that)."""
  from instructjax.data.tokens import chat, tokenizers
  from instructjax.data.tokens.tokenizer_check import show
  from instructjax.runs import origin

  reference = about["tokenizer"]
  if not about.get("template") and (
    reference == tokenizers.BYTES or not chat.find(tokenizers.source(reference))[0]
  ):
    return "none", []
  try:
    template = origin.chat_template(chat.OWN, about, tokenizer)
  except UserError as error:
    return "does not fit", [str(error)]
  return f"closes a reply with {show(tokenizer, [template.end])}" if template else "none", []


def _known(source: str, tokenizer: str) -> Known:
  """What a model's files say.  Raises UserError where there is no such model."""
  from instructjax import models
  from instructjax.models import peft
  from instructjax.runs import origin

  if origin.is_run(source):
    about = origin.finished(Path(source))
    rows = (
      origin.call_python(about["source"])[0].vocab_size
      if about["family"] == "python"
      else about["config"]["vocab_size"]
    )
    return Known(rows, about, {})
  if origin.is_python(source):
    lm, _, own = origin.call_python(source)
    if not own and not tokenizer:
      raise UserError(f"{source}: names no tokenizer; give --tokenizer")
    return Known(lm.vocab_size, {"tokenizer": own}, {})
  if peft.is_adapter(source):
    return _known(peft.base(source), tokenizer)
  if Path(source).is_file():
    return Known(models.embedding_rows(source), {"tokenizer": source}, _named_gguf(source))
  folder = Path(source) if Path(source).is_dir() else models.fetch(source)
  held = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
  if not held and not tokenizer:
    raise UserError(f"{folder}: holds no tokenizer; give --tokenizer")
  return Known(
    models.embedding_rows(folder), {"tokenizer": str(folder) if held else ""}, _named_folder(folder)
  )


def _named_folder(folder: Path) -> dict[str, tuple[int, ...]]:
  """The ids that config.json and generation_config.json name."""
  from instructjax.models.hf import configs

  found = {}
  for name in ("config.json", "generation_config.json"):
    if not (folder / name).is_file():
      continue
    raw = configs.read_json(folder / name)
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
      ids = raw.get(key)
      ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
      wrong = [i for i in ids if type(i) is not int]
      if wrong:
        raise UserError(
          f"{folder / name}: {key} is {wrong[0]!r}, an integer or a list of them is expected; mend "
          "the file"
        )
      found[f"{folder / name}: {key}"] = tuple(ids)
  return found


def _named_gguf(path: str) -> dict[str, tuple[int, ...]]:
  from instructjax.data.tokens import tokenizers

  metadata = tokenizers.gguf_metadata(path)
  keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "bos", "padding")]
  return {f"{path}: {key}": (int(metadata[key]),) for key in keys if metadata.get(key) is not None}
