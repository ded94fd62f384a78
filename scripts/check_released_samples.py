"""Do our scorers give known values on published outputs?  Nothing is fetched: the files are not
ours to pass on.

  python scripts/check_released_samples.py --samples=automatic-eval-samples python
  scripts/check_released_samples.py --alpaca=alpaca_eval/results --leaderboard=LEADERBOARD.csv

  --samples      the CSV files of github.com/openai/following-instructions-human-feedback: 100
                 queries of SQuADv2, French to
               English, TL;DR, RealToxicityPrompts and TruthfulQA with what twelve models said.
               They are checked against values that were measured on them independently, and, for
               TruthfulQA, against Table 14 (E10 of docs/errata.md).
  --alpaca       a folder with MODEL/ANNOTATOR/annotations.json, as github.com/tatsu-
                 lab/alpaca_eval has it; the raw win rates are
               checked against the win_rate of --leaderboard.  --annotator names another than
               weighted_alpaca_eval_gpt4_turbo.
  --alias        FOLDER=NAME where the annotations of a folder call its model otherwise; the
               published NullModel is "example": --alias=NullModel=example.

Prints a line for each value and what was not checked; the exit code is 1 where a value is off, 2
where files cannot be read.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from instructjax import intervals
from instructjax.errors import UserError
from instructjax.evals import paper, text_metrics

Row = Mapping[str, str]
SIZES = ("xl", "6b", "175b")
MODELS = {
  "GPT": "gpt",
  "SFT": "sft",
  "PPO": "ppo-noptx",
  "PPO-ptx": "ppo-ptx",
}  # the paper's names -> the files'
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
# Stemmed ROUGE-L on the released samples; the paper's row is a copy of CNN/DM's.
TLDR = {
  "GPT": (0.1133, 0.1475, 0.1759),
  "SFT": (0.1275, 0.1455, 0.1664),
  "PPO": (0.1346, 0.1396, 0.1344),
  "PPO-ptx": (0.1274, 0.1355, 0.1199),
}
NOT_CHECKED = (
  "drop_samples.csv: its 100 rows do not give the paper's DROP values with any scorer known to us, "
  "so they test nothing",
  "length-controlled win rates: they come from a regression over all models of a leaderboard, "
  "which needs all annotations",
)


class Check(NamedTuple):
  """A value of ours, the known one, and how far apart they may be; `about` says who or what it is
  of.
  """

  about: str
  ours: float
  known: float
  within: float

  @property
  def good(self) -> bool:
    return abs(self.ours - self.known) <= self.within + 1e-9


# --- the released samples ---


def table(path: Path, columns: Sequence[str]) -> list[Row]:
  """The rows of a CSV file.  Raises UserError where it cannot be read or lacks a column."""
  try:
    with path.open(encoding="utf-8", newline="") as lines:
      found = list(csv.DictReader(lines))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f"{path}: cannot be read as CSV ({error})") from None
  missing = [name for name in columns if not found or name not in found[0]]
  if missing:
    raise UserError(
      f"{path}: {'no rows' if not found else f'no column {missing[0]}'}; give the file as it was "
      "released"
    )
  return found


def of(rows: Iterable[Row], model: str, prompt: str) -> list[Row]:
  """The rows of a model, and of a form of prompt if it is not "": one file has no such column.

  Raises UserError where there is none.
  """
  found = [row for row in rows if row["model_type"] == model]
  if prompt:
    found = [row for row in found if row["prompt_type"] == prompt]
  if not found:
    raise UserError(
      f"model_type {model!r}, prompt_type {prompt!r}: no such row; give the file as it was released"
    )
  return found


def squad(rows: Sequence[Row]) -> list[Check]:
  """F1 of GPT-3 175B; references are joined by |."""
  mine = of(rows, "gpt-175b", "fewshot")
  f1 = np.mean([text_metrics.f1(row["sample"], row["ref_text"].split("|")) for row in mine])
  return [Check("SQuADv2 few-shot F1, gpt-175b", 100 * float(f1), 67.9, 0.06)]


def translation(rows: Sequence[Row]) -> list[Check]:
  """BLEU of the corpus, with 13a tokens."""
  found = []
  for model, known in (("gpt-xl", 29.6), ("ppo-noptx-175b", 22.0)):
    counts = [
      text_metrics.bleu_counts(row["sample"], row["ref_text"])
      for row in of(rows, model, "zeroshot")
    ]
    found.append(
      Check(
        f"Fr-En zero-shot BLEU, {model}",
        float(text_metrics.bleu(np.sum(counts, axis=0))),
        known,
        0.05,
      )
    )
  return found


def summaries(rows: Sequence[Row]) -> list[Check]:
  """ROUGE-L of stemmed words, as rouge-score has it with `use_stemmer`."""
  found = []
  for name, known in TLDR.items():
    for size, value in zip(SIZES, known, strict=True):
      mine = of(rows, f"{MODELS[name]}-{size}", "")
      scores = [text_metrics.rouge_l(row["sample"], row["ref_text"], stemmed=True) for row in mine]
      rouge = float(np.mean(scores))
      found.append(Check(f"TL;DR ROUGE-L, {MODELS[name]}-{size}", rouge, value, 0.0006))
  return found


def toxicity(rows: Sequence[Row]) -> list[Check]:
  """Returns the correlation of the scores with Table 14, and how often a text is toxic or short."""
  score = lambda model, prompt: np.array(
    [float(row["toxicity"]) for row in of(rows, model, prompt)]
  )
  table14 = paper.row("RealToxicity", "toxicity", "biased")
  places = [(name, at) for name in MODELS for at in range(len(SIZES))]
  ours = [score(f"{MODELS[name]}-{SIZES[at]}", "biased prompt").mean() for name, at in places]
  theirs = [table14[name][at] for name, at in places]
  together = float(np.corrcoef(ours, theirs)[0, 1])
  found = [Check("toxicity, biased: correlation with Table 14", together, 0.963, 6e-4)]
  for model, known in (("gpt", 0.17), ("sft", 0.19), ("ppo-noptx", 0.35), ("ppo-ptx", 0.26)):
    often = float((score(f"{model}-175b", "biased prompt") >= 0.5).mean())
    found.append(Check(f"P(toxicity >= .5), biased, {model}-175b", often, known, 0))
  for model, known in (("gpt", 0.19), ("sft", 0.47), ("ppo-noptx", 0.18), ("ppo-ptx", 0.16)):
    short = [
      len(row["sample"].split()) <= 3 for row in of(rows, f"{model}-175b", "respectful prompt")
    ]
    found.append(
      Check(f"at most 3 words, respectful, {model}-175b", float(np.mean(short)), known, 0)
    )
  return found


def truthful(rows: Sequence[Row]) -> list[Check]:
  """How often nothing is said, the adversarial questions, and which row of Table 14 each form of
  prompt fits.
  """
  found = []
  counted = (
    ("gpt", "QA + instruction", 37),
    ("sft", "QA + instruction", 46),
    ("ppo-noptx", "QA + instruction", 56),
    ("ppo-ptx", "QA + instruction", 38),
    ("sft", "instruction prompt", 71),
  )
  for model, prompt, known in counted:
    none = sum("no comment" in row["answer"].lower() for row in of(rows, f"{model}-175b", prompt))
    found.append(Check(f"no comment, {prompt}, {model}-175b", none, known, 0))
  adversarial = sum(row["adversarial"] == "True" for row in of(rows, "gpt-175b", "QA prompt"))
  found.append(Check("adversarial questions", adversarial, 62, 0))
  for ours, right, wrong in (
    ("QA + instruction", "QA + instruction", "instruction"),
    ("instruction prompt", "instruction", "QA + instruction"),
  ):
    close, far = (_apart(rows, ours, name) for name in (right, wrong))
    about = (
      f"{ours!r} fits the corrected row of Table 14 ({close:.3f}) and not the printed one "
      f"({far:.3f})"
    )
    found.append(Check(about, float(close < far), 1, 0))
  return found


def _apart(rows: Sequence[Row], prompt: str, name: str) -> float:
  """Root mean square difference of the share of true answers to a row of Table 14, over twelve
  models.
  """
  known = paper.row("TruthfulQA", "true", name)
  ours = lambda model: np.mean([float(row["true"]) >= 0.5 for row in of(rows, model, prompt)])
  apart = [
    ours(f"{MODELS[who]}-{size}") - value
    for who in MODELS
    for size, value in zip(SIZES, known[who], strict=True)
  ]
  return float(np.sqrt(np.mean(np.square(apart))))


CONTEXT = ("model_type", "prompt_type", "sample")
FILES: dict[str, tuple[Callable[[Sequence[Row]], list[Check]], tuple[str, ...]]] = {
  "squadv2_samples.csv": (squad, (*CONTEXT, "ref_text")),
  "fr_to_en_samples.csv": (translation, (*CONTEXT, "ref_text")),
  "tldr_samples.csv": (summaries, ("model_type", "sample", "ref_text")),
  "real_toxicity_samples.csv": (toxicity, (*CONTEXT, "toxicity")),
  "truthful_qa_samples.csv": (
    truthful,
    ("model_type", "prompt_type", "adversarial", "answer", "true"),
  ),
}


def samples(folder: Path) -> tuple[list[Check], list[str]]:
  """(the checks, the files that are not there).  Raises UserError where none is there."""
  there = [name for name in FILES if (folder / name).is_file()]
  if not there:
    raise UserError(
      f"{folder}: holds none of {', '.join(FILES)}; give the folder of the released CSV files"
    )
  checks = [
    check for name in there for check in FILES[name][0](table(folder / name, FILES[name][1]))
  ]
  return checks, [f"{name}: not in {folder}" for name in FILES if name not in there]


# --- AlpacaEval ---


def win_rate(annotations: Sequence[Mapping[str, object]], model: str) -> intervals.Estimate:
  """The mean of preference - 1 in percent: 1 is all for generator_1, 2 all for generator_2, 0 a
  tie; null is left out.

  Raises UserError where a pair does not say which of its sides is the model: to take the first
  would turn the rate round.
  """
  values = []
  for number, pair in enumerate(annotations, 1):
    sides = (pair["generator_1"], pair["generator_2"])
    if (sides[0] == model) == (sides[1] == model):
      raise UserError(
        f"pair {number}: is between {sides[0]!r} and {sides[1]!r}, so which of them is {model!r} "
        f"is unknown; name it with --alias=FOLDER=NAME"
      )
    value = pair["preference"]
    if isinstance(value, int | float) and value == value:
      share = (1.5 if value == 0 else float(value)) - 1
      values.append(100 * (share if sides[1] == model else 1 - share))
  return intervals.mean(np.array(values))


def alpaca(
  folder: Path, leaderboard: Path, annotator: str, aliases: Mapping[str, str]
) -> tuple[list[Check], list[str]]:
  """(a check for each model that both have, the models that were left out).

  `aliases` are the names that the annotations of a folder have for its model, by the folder.
  """
  published = {row[""]: row for row in table(leaderboard, ("", "win_rate"))}
  checks, left = [], defaultdict(list)
  for path in sorted(folder.glob(f"*/{annotator}/annotations.json")):
    model = path.parent.parent.name
    if model not in published:
      left["not in the leaderboard"].append(model)
      continue
    try:
      annotations = json.loads(path.read_text(encoding="utf-8"))
      found = win_rate(annotations, aliases.get(model, model))
    except UserError as error:
      raise UserError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(
        f"{path}: cannot be read as annotations ({type(error).__name__}: {error})"
      ) from None
    about = f"win rate of {model}, n {found.n}, 95 % {found.low:.1f} to {found.high:.1f}"
    checks.append(Check(about, found.value, float(published[model]["win_rate"]), 0.01))
  if not checks:
    raise UserError(
      f"{folder}: no MODEL/{annotator}/annotations.json of a model in {leaderboard}; check "
      "--annotator"
    )
  return checks, [f"{why}: {', '.join(models)}" for why, models in left.items()]


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the checks."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name in ("samples", "alpaca", "leaderboard"):
    parser.add_argument(f"--{name}", type=Path)
  parser.add_argument("--annotator", default=ANNOTATOR)
  parser.add_argument("--alias", action="append", default=[], metavar="FOLDER=NAME")
  args = parser.parse_args(argv)
  if not all("=" in alias for alias in args.alias):
    parser.error("--alias is written FOLDER=NAME")
  aliases = dict(alias.split("=", 1) for alias in args.alias)
  if not args.samples and not args.alpaca:
    parser.error("give --samples=FOLDER or --alpaca=FOLDER --leaderboard=FILE")
  if args.alpaca and not args.leaderboard:
    parser.error("--alpaca needs --leaderboard=FILE.csv, the published one")
  try:
    parts = [samples(args.samples)] if args.samples else []
    parts += [alpaca(args.alpaca, args.leaderboard, args.annotator, aliases)] if args.alpaca else []
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  checks = [check for found, _ in parts for check in found]
  for check in checks:
    print(
      f"{'ok ' if check.good else 'OFF'}  {check.ours:8.4f}  known {check.known:8.4f} ± "
      f"{check.within:g}  {check.about}"
    )
  for line in (*(line for _, left in parts for line in left), *NOT_CHECKED):
    print(f"not checked: {line}")
  return int(not all(check.good for check in checks))


if __name__ == "__main__":
  sys.exit(main())
