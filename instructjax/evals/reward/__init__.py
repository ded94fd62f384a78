"""How well reward models order answers: `instructjax eval --suite reward --models rm=runs/reward`.

A model is a run of `instructjax reward` or anything else that docs/rewards.md has; no language
model is opened. Each answer is scored once, and its scores lie in scores/, so that a stopped run
goes on. The tables have

  reward/NAME                    pairs of config.reward.comparisons, by subset, use case, K, labeler
                                 and length
  reward/rewardbench             pairs of RewardBench, by subset and length
  reward/rewardbench sections    its published score, section by section and overall
  reward/rewardbench2            best of n by subset, ties, and the mean over subsets

A pair whose scores are equal is half right in `accuracy`; RewardBench's own score counts it as
wrong. Intervals are over prompts: the pairs of one prompt are not independent.

`together` has the calibration of each model, {table: {model: {calibration, bins, ece, slope, n}}},
as `data.records.ordering` measures it: sigmoid(difference of scores) is taken as the probability
that the first answer is preferred. `bins` are those of `calibration` as estimates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from instructjax import intervals, rewards
from instructjax.data.records import ordering
from instructjax.errors import UserError, naming
from instructjax.evals import announce, page, results, rows, run, scorers, summary
from instructjax.evals.reward import bench
from instructjax.evals.reward import cases as readers
from instructjax.evals.reward.bench import Part
from instructjax.evals.reward.cases import Case
from instructjax.evals.tasks import (
  Draw,
  Item,
  Look,
  Metric,
  Reply,
  Scores,
  Suite,
  Task,
  fingerprint,
  limited,
)
from instructjax.rewards import Reward
from instructjax.runs import provenance, writers
from instructjax.runs.report import page as html
from instructjax.runs.report import ranking
from instructjax.settings import EvalSettings
from instructjax.settings.fields import to_dict
from instructjax.stages import running
from instructjax.system import places

LONGER = 1.5  # the ratio of lengths from which the preferred answer counts as longer
BINS = ordering.BINS
# The scores of all answers of a case, as a task of the runner stores them.
SCORES = Metric("scores", 0)
PAIR_ABOUT = "equal scores are half right; log loss takes the difference of scores as log-odds"
BENCH_ABOUT = "as the leaderboard: equal scores are wrong, subsets weigh as many prompts as it has"

# By the name of the file, and for each case, the scores of its answers.
ScoresOfCases = Mapping[str, Sequence[Sequence[float]]]


class Table(NamedTuple):
  """A table of the suite: its task, and the scores of its items by the scores of the cases."""

  task: Task
  scores: Callable[[ScoresOfCases], list[Scores]]


def main(
  config: EvalSettings,
  workdir: Path,
  models: Mapping[str, str],
  draws: Mapping[str, Draw] | None = None,
) -> None:
  """Scores the answers of every file with every reward model, and writes the results.

  Args:
    config: the settings; `reward`, `model`, `mesh`, `limit`, `seed` and `baseline` count.
    workdir: the directory of the evaluation.
    models: {name: reward}.
    draws: as for `run.main`.

  Raises:
    UserError: if a file or a reward is not as expected.
  """
  places.require_local(workdir, "--workdir")
  with contextlib.ExitStack() as stack:
    voice = stack.enter_context(announce.speaking())
    names = ", ".join(f"{name}={source}" for name, source in models.items())
    voice.say(f"reward models {names}; suite reward; reading its data")
    stack.enter_context(writers.holding(workdir))
    stack.enter_context(running.devices(config.mesh))
    files = open_files(config)
    tables = open_tables(files)
    with naming("--models", names):
      identities = {name: scorers.identity(source) for name, source in models.items()}
    notes = []
    if len(models) > 1 and config.baseline not in models:
      notes.append(
        f"reward: no model is called {config.baseline} (config.baseline), so there are no "
        "differences"
      )
    answers = sum(len(case.texts) for file_cases in files.values() for case in file_cases)
    count = sum(len(file_cases) for file_cases in files.values())
    voice.say(described(count, answers, len(models)))
    stack.enter_context(writers.open_run(workdir, to_dict(config), seed=config.seed))
    scores: dict[str, dict[str, list[Scores]]] = {table.task.name: {} for table in tables}
    for name, source in models.items():
      voice.doing(f"{name}: opening {source}")
      opened = rewards.open_all(source, config.model)
      about = {"source": source, "weights": identities[name], "kind": "reward"}
      writers.note(workdir, models=provenance.noted(workdir) | {name: about})
      scores_of_cases = {}
      for file, file_cases in files.items():
        task = scoring_task(file, file_cases, opened, identities[name])
        blank = [Reply(()) for _ in file_cases]
        stored = run.score(workdir, task, name, blank, voice)
        scores_of_cases[file] = [_columns(row) for row in stored]
      for table in tables:
        scores[table.task.name][name] = table.scores(scores_of_cases)
      del opened  # the next one needs its memory
    voice.doing("tables and intervals")
    tasks = [table.task for table in tables]
    suite = Suite("reward", tasks, partial(_together, tasks))
    replies = {
      task.name: {name: [Reply(())] * len(task.items) for name in models} for task in suite.tasks
    }
    part = results.of_suite(config, workdir, suite, replies, scores)
    results.write(workdir, {"reward": part}, models, notes, draws or {})


def described(prompts: int, answers: int, models: int) -> str:
  """Returns how much there is to do, as the command says it before it begins."""
  to_read = f"{prompts:,} prompt{'' if prompts == 1 else 's'} with {answers:,} answers"
  if models == 1:
    return f"{to_read} for the reward model; its first batch tells the minutes"
  return f"{to_read} for each of {models} reward models; the first batch of each tells the minutes"


# --- the files ---


def open_files(config: EvalSettings) -> dict[str, list[Case]]:
  """Returns the cases of each file, by its name; config.limit takes a part of each.

  Raises:
    UserError: if there is no file, or one is wrong.
  """
  settings, folder = config.reward, config.folder or None
  files: dict[str, list[Case]] = {}
  if settings.comparisons:
    with naming("config.reward.comparisons", settings.comparisons):
      for name, source in rows.named(settings.comparisons, "comparisons").items():
        if name in (BENCH, BENCH2):
          raise UserError(f"the name {name!r} is RewardBench's; give another, NAME=FILE")
        files[name] = readers.comparisons(source, settings.spelling, settings.fields, folder)
  if settings.rewardbench:
    with naming("config.reward.rewardbench", settings.rewardbench):
      files[BENCH] = readers.rewardbench(settings.rewardbench, folder)
  if settings.prior:
    files[PRIOR] = readers.prior_sets(settings.prior, folder)
  if settings.rewardbench2:
    with naming("config.reward.rewardbench2", settings.rewardbench2):
      files[BENCH2] = readers.rewardbench2(settings.rewardbench2, folder)
  if not files:
    raise UserError(
      "config.reward.comparisons is empty; give a file of comparisons, or RewardBench's as "
      "config.reward.rewardbench or rewardbench2"
    )
  return {name: _limited(file_cases, config) for name, file_cases in files.items()}


BENCH, PRIOR, BENCH2 = "rewardbench", "rewardbench prior sets", "rewardbench2"


def _limited(file_cases: Sequence[Case], config: EvalSettings) -> list[Case]:
  """Returns about config.limit cases, those of one prompt together."""
  items = [Item(case.id, {"case": case}, cluster=fingerprint(case.prompt)) for case in file_cases]
  return [item.data["case"] for item in limited(items, config.limit, config.seed)]


def scoring_task(
  file: str, file_cases: Sequence[Case], opened: Sequence[Reward], identity: str
) -> Task:
  """Returns the task whose items are cases, and whose scores are those of their answers."""
  items = [Item(case.id, _item_data(case)) for case in file_cases]

  def score(batch: Sequence[Item], replies: Sequence[Reply]) -> list[Scores]:
    prompts, texts = [], []
    for item in batch:
      prompt = item.data["prompt"]
      # A record has the text alone; a reward reads it as it would have been sampled.
      separator = "" if prompt[-1:].isspace() else " "
      for text in item.data["texts"]:
        prompts.append(prompt)
        texts.append(separator + text)
    by_name = rewards.score_texts(opened, prompts, texts)
    values = rewards.total(opened, by_name).tolist()
    scores: list[Scores] = []
    for item in batch:
      count = len(item.data["texts"])
      scores.append({SCORES.name: values[:count]})
      values = values[count:]
    return scores

  return Task(f"reward/{file}", items, lambda item: [], score, (SCORES,), batch=32, judge=identity)


def _columns(row: Scores) -> list[float]:
  """Returns the scores of the answers of a case, which is several columns."""
  values = row[SCORES.name]
  assert not isinstance(values, float | int | None)
  return list(values)


# --- pairs ---


class Pair(NamedTuple):
  """Two answers of a case, by their places: `better` has the lower rank."""

  case: int
  better: int
  worse: int


def _item_data(case: Case) -> dict[str, Any]:
  """Returns what is scored of a case, and what its scores are held against."""
  data = {"prompt": case.prompt, "texts": list(case.texts), "ranks": list(case.ranks)}
  # Where there are no pairs, the item is what it always was, so that kept scores stay valid.
  return data | ({"pairs": [list(pair) for pair in case.pairs]} if case.pairs else {})


def pairs_of(file_cases: Sequence[Case]) -> list[Pair]:
  """Returns the pairs of answers whose ranks differ, in the order of the cases."""
  pairs = []
  for number, case in enumerate(file_cases):
    pairs += [Pair(number, better, worse) for better, worse in case.pairs]
    for better, rank in enumerate(case.ranks):
      for worse, other_rank in enumerate(case.ranks):
        if rank < other_rank:
          pairs.append(Pair(number, better, worse))
  return pairs


def length_group(better: str, worse: str) -> str:
  """Returns whether the preferred answer is the longer one, in characters."""
  ratio = max(len(better.strip()), 1) / max(len(worse.strip()), 1)
  if ratio >= LONGER:
    return "preferred is longer"
  if ratio <= 1 / LONGER:
    return "preferred is shorter"
  return f"within {LONGER:g} times"


def calibration_columns(difference: float) -> list[float]:
  """Returns the columns of one pair for the expected calibration error: p, right, 1 of each bin."""
  columns = np.zeros((BINS, 3))
  (bin_,) = ordering.reliability(np.array([difference]))
  number = min(int((bin_["p"] - 0.5) * 2 * BINS), BINS - 1)
  columns[number] = bin_["p"], bin_["correct"], 1
  return columns.reshape(-1).tolist()


def calibration_error(sums: np.ndarray) -> np.ndarray:
  """Returns the mean over pairs of |p - share right|, bin by bin."""
  by_bin = sums.reshape(*sums.shape[:-1], BINS, 3)
  apart = np.abs(by_bin[..., 0] - by_bin[..., 1]).sum(axis=-1)
  return np.asarray(apart / by_bin[..., 2].sum(axis=-1))


ACCURACY, TIED = Metric("accuracy", percent=True), Metric("equal scores", -1, percent=True)
LOG_LOSS = Metric("log loss", -1)
ECE = Metric("calibration error", -1, of=calibration_error, percent=True)
DIFFERENCE = "difference"  # of the scores of a pair; no metric, but what the calibration is made of


def pair_table(name: str, file: str, file_cases: Sequence[Case]) -> Table:
  """Returns the table of the pairs of a file.

  Raises:
    UserError: if its answers all tie.
  """
  pairs = pairs_of(file_cases)
  if not pairs:
    raise UserError(f"{file}: in every prompt all answers tie, so there is nothing to order")
  items = []
  for pair in pairs:
    case = file_cases[pair.case]
    better, worse = case.texts[pair.better], case.texts[pair.worse]
    groups = dict(case.groups) | {"length": length_group(better, worse)}
    item_id = f"{case.id} {pair.better} {pair.worse}"
    items.append(Item(item_id, {}, cluster=fingerprint(case.prompt), slices=groups))

  def scores_of(scores: ScoresOfCases) -> list[Scores]:
    pair_scores: list[Scores] = []
    for pair in pairs:
      values = scores[file][pair.case]
      difference = values[pair.better] - values[pair.worse]
      pair_scores.append(
        {
          "accuracy": (np.sign(difference) + 1) / 2,
          "equal scores": float(difference == 0),
          "log loss": float(np.logaddexp(0, -difference)),
          "calibration error": calibration_columns(difference),
          DIFFERENCE: difference,
        }
      )
    return pair_scores

  metrics = (ACCURACY, TIED, LOG_LOSS, ECE)
  return Table(Task(name, items, _no_requests, _no_scores, metrics, about=PAIR_ABOUT), scores_of)


def _no_requests(item: Item) -> list[Any]:
  return []


def _no_scores(items: Sequence[Item], replies: Sequence[Reply]) -> list[Scores]:
  raise AssertionError("the scores of these items are made of those of the cases")


# --- the published scores ---


def open_tables(files: Mapping[str, Sequence[Case]]) -> list[Table]:
  """Returns the tables of these files."""
  tables = []
  for file, file_cases in files.items():
    if file == BENCH2:
      tables += best_tables(file_cases)
    elif file != PRIOR:
      tables.append(pair_table(f"reward/{file}", file, file_cases))
  if BENCH in files or PRIOR in files:
    tables += section_tables(files)
  return tables


def section_tables(files: Mapping[str, Sequence[Case]]) -> list[Table]:
  """Returns RewardBench's score of each section that has cases, of the prior sets, and overall."""
  parts: list[tuple[float, str, Sequence[str], Part]] = []
  present = {case.groups["subset"] for file in (BENCH, PRIOR) for case in files.get(file, ())}
  for section, subsets in bench.SECTIONS.items():
    if present & set(subsets):
      parts.append((1.0, section, subsets, bench.weighted(subsets)))
  if present & set(bench.PRIOR):
    parts.append((bench.PRIOR_WEIGHT, "Prior Sets", bench.PRIOR, bench.weighted(bench.PRIOR)))

  selected = [(file, n) for file in (BENCH, PRIOR) for n in range(len(files.get(file, ())))]

  def of(subsets: Sequence[str], scores: ScoresOfCases) -> list[list[float] | None]:
    """The columns of every case; None where its subset is none of these."""
    rows_of_cases: list[list[float] | None] = []
    for file, number in selected:
      subset = files[file][number].groups["subset"]
      if subset not in subsets:
        rows_of_cases.append(None)
        continue
      chosen, rejected = scores[file][number]
      columns = [0.0] * (2 * len(subsets))
      place = 2 * list(subsets).index(subset)
      columns[place : place + 2] = float(chosen > rejected), 1.0
      rows_of_cases.append(columns)
    return rows_of_cases

  items = [_bench_item(file, files[file][number]) for file, number in selected]
  tables = []
  for _, section, subsets, part in parts:
    tables.append(_score_table(f"rewardbench {section}", items, part, partial(of, subsets)))
  if len(parts) > 1:
    overall = bench.mean_of_parts([(weight, part) for weight, _, _, part in parts])
    every_subset = [subset for _, _, subsets, _ in parts for subset in subsets]
    tables.append(_score_table("rewardbench overall", items, overall, partial(of, every_subset)))
  return tables


def _bench_item(file: str, case: Case) -> Item:
  # The two files count from 1 each.
  return Item(f"{file} {case.id}", {}, cluster=fingerprint(case.prompt))


def _score_table(
  name: str,
  items: Sequence[Item],
  part: Part,
  columns: Callable[[ScoresOfCases], list[list[float] | None]],
) -> Table:
  """Returns the table of one published score; an item without columns is not part of it."""

  def scores_of(scores: ScoresOfCases) -> list[Scores]:
    return [{"score": values} for values in columns(scores)]

  metric = Metric("score", of=part.of, percent=True)
  about = BENCH_ABOUT
  task = Task(f"reward/{name}", items, _no_requests, _no_scores, (metric,), about=about)
  return Table(task, scores_of)


def best_tables(file_cases: Sequence[Case]) -> list[Table]:
  """Returns RewardBench 2's score of each subset, and their mean.

  The two cases of a prompt of Ties are one item.
  """
  groups: dict[tuple[str, str], list[int]] = {}
  for number, case in enumerate(file_cases):
    subset = case.groups["subset"]
    prompt = case.id
    if subset.lower() == bench.TIES:
      prompt = case.id.rpartition(":")[2]
    groups.setdefault((subset, prompt), []).append(number)
  subsets = list(dict.fromkeys(subset for subset, _ in groups))
  parts = {
    subset: bench.TIES_PART if subset.lower() == bench.TIES else bench.MEAN for subset in subsets
  }

  def columns_of(subset: str, numbers: Sequence[int], scores: ScoresOfCases) -> list[float]:
    if subset.lower() != bench.TIES:
      (number,) = numbers
      return [bench.best_of(scores[BENCH2][number], file_cases[number].ranks), 1.0]
    of_kind = {}
    for number in numbers:
      case = file_cases[number]
      kind = case.id.split()[1].partition(":")[0]
      of_kind[kind] = bench.margins(scores[BENCH2][number], case.ranks)
    return bench.tie_columns(of_kind)

  def of(names: Sequence[str], scores: ScoresOfCases) -> list[list[float] | None]:
    width = sum(parts[name].width for name in names)
    rows_of_items: list[list[float] | None] = []
    for (subset, _), numbers in groups.items():
      if subset not in names:
        rows_of_items.append(None)
        continue
      start = sum(parts[name].width for name in names[: names.index(subset)])
      columns = [0.0] * width
      columns[start : start + parts[subset].width] = columns_of(subset, numbers, scores)
      rows_of_items.append(columns)
    return rows_of_items

  items = [
    Item(f"{subset} {prompt}", {}, cluster=fingerprint(file_cases[numbers[0]].prompt))
    for (subset, prompt), numbers in groups.items()
  ]
  tables = [
    _score_table(f"rewardbench2 {subset}", items, parts[subset], partial(of, [subset]))
    for subset in subsets
  ]
  if len(subsets) > 1:
    overall = bench.mean_of_parts([(1.0, parts[subset]) for subset in subsets])
    tables.append(_score_table("rewardbench2 overall", items, overall, partial(of, subsets)))
  return tables


# --- calibration ---


def _together(
  tasks: Sequence[Task],
  folder: Path,
  replies: Mapping[str, Any],
  scores: Mapping[str, Mapping[str, Sequence[Scores]]],
) -> dict[str, Any]:
  """Returns the calibration of each model on the pairs of each file."""
  del folder, replies
  tables: dict[str, Any] = {}
  for task in tasks:
    # The pairs of one prompt are one cluster.
    _, prompts = np.unique([item.cluster for item in task.items], return_inverse=True)
    for model, pair_scores in scores[task.name].items():
      if not pair_scores or DIFFERENCE not in pair_scores[0]:
        continue
      differences = np.array([row[DIFFERENCE] for row in pair_scores], np.float64)
      bins = ordering.reliability(differences)
      slope = ordering.slope(ordering.Pairs(differences, prompts, np.arange(len(differences))))
      tables.setdefault(task.name, {})[model] = {
        "calibration": bins,
        "bins": _estimates_of_bins(differences, prompts),
        "slope": ordering.as_json(slope),
        "ece": ordering.calibration_error(bins),
        "n": len(differences),
      }
  return tables


def _estimates_of_bins(
  differences: Float[np.ndarray, " N"],
  prompts: Int[np.ndarray, " N"],
) -> list[dict[str, Any]]:
  """Returns for each bin of the calibration the mean p and the share right, as estimates."""
  estimates = []
  for members in ordering.bins_of_pairs(differences):
    _, rows = np.unique(prompts[members], return_inverse=True)
    p = ordering.certainty(differences[members])
    right = ordering.is_right(differences[members])
    pairs = np.bincount(rows)
    given = intervals.share(np.stack([np.bincount(rows, p), pairs], axis=1))
    share = intervals.share(np.stack([np.bincount(rows, right), pairs], axis=1))
    estimates.append({"p given": summary.plain(given), "share right": summary.plain(share)})
  return estimates


def draw(tables: Mapping[str, Any], looks: Mapping[str, Look]) -> str:
  """Returns the reliability diagram of each model, and the table of its bins, folded."""
  parts = []
  for task, models in tables.items():
    for model, measured in models.items():
      figure = ranking.calibration(dict(measured))
      # An earlier version has no estimates of the bins.
      bin_rows = [
        [page.counted_cell(estimate, share=True) for estimate in row.values()]
        for row in measured.get("bins", [])
      ]
      table = html.table(("p given", "share right"), bin_rows)
      parts.append(figure + html.details(f"{task}, {model}: calibration", table))
  return html.grid(parts) if parts else ""


def named_rewards(texts: Sequence[str]) -> dict[str, str]:
  """Returns {name: reward} of `--models NAME=REWARD,...`.

  A comma may also stand before an option of a reward (classifier:FOLDER#LABEL,as=logit): a part
  that begins with the name of an option belongs to the reward before it.

  Raises:
    UserError: if a part is not written so, or a name occurs twice.
  """
  options = {name for options in rewards.spec.OPTIONS.values() for name in options}
  models: dict[str, str] = {}
  for text in texts:
    last = ""
    for part in text.split(","):
      name, sign, source = part.strip().partition("=")
      if last and "#" in models[last] and name in options:
        models[last] += f",{part.strip()}"
        continue
      if not name or not sign or not source:
        raise UserError(
          f"--models: {part.strip()!r}: write NAME=REWARD, for example rm=runs/reward"
        )
      if name in models:
        raise UserError(f"--models: the name {name!r} occurs twice: {models[name]} and {source}")
      models[name] = source
      last = name
  return models
