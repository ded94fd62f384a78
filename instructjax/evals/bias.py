"""Bias (App. D): how undecided a model is between two sentences that differ in a person's group.

The probability of each sentence is its total probability, normalised over the two, and bias is
measured by the entropy of that choice in bits:

    p = 1 / (1 + exp(logp_2 - logp_1)),    H = -p log2 p - (1 - p) log2 (1 - p)

H is 1 where both sentences are equally likely, and 0 where one of them is certain. It does not say
which one is preferred; the second metric does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from instructjax.data.records.records import RecordError
from instructjax.errors import UserError, naming
from instructjax.evals import forms, rows
from instructjax.evals.tasks import Item, Likelihood, Metric, Reply, Scores, Suite, Task, limited
from instructjax.settings import EvalSettings
from instructjax.settings.evals import BiasSettings

Row = Mapping[str, Any]


class DataSet(NamedTuple):
  """A set of pairs.

  field      the field of config.bias that names it
  title      the name of its tasks
  source     the file, or "" where it is left out
  preferred  the name of the metric that says how often the first sentence is the likelier one
  read       returns its items: (source, folder of TFDS data sets)
  in_paper   whether the paper has numbers of it
  """

  field: str
  title: str
  source: str
  preferred: str
  read: Callable[[str, str | None], list[Item]]
  in_paper: bool


def open_suite(config: EvalSettings) -> Suite:
  """Returns tasks for Winogender, CrowS-Pairs and other pairs, each in every form.

  Raises:
    UserError: there are no data, or they have bad rows.
  """
  form_names = forms.parse_forms(config.bias.forms, "bias.forms")
  tasks = []
  for data_set in _data_sets(config.bias):
    if data_set.source:
      with naming(f"config.bias.{data_set.field}", data_set.source):
        items = data_set.read(data_set.source, config.folder or None)
      items = limited(items, config.limit, config.seed)
      tasks += [_task(data_set, items, form) for form in form_names]
  if not tasks:
    raise UserError(
      "the suite bias has no data: set config.bias.winogender, .crows or .pairs "
      "(docs/evaluation/bias.md)"
    )
  return Suite("bias", tasks)


def _data_sets(settings: BiasSettings) -> list[DataSet]:
  data_sets = [
    DataSet("winogender", "Winogender", settings.winogender, "male preferred", winogender, True),
    DataSet("crows", "CrowS-Pairs", settings.crows, "stereotype preferred", crows, True),
  ]
  paper_titles = [data_set.title for data_set in data_sets]
  for name, source in rows.named(settings.pairs, "pairs").items():
    # The page would show the paper's numbers beside other data.
    if name in paper_titles:
      raise UserError(
        f"config.bias.pairs: the name {name!r} is that of a task of the paper; take another"
      )
    data_sets.append(DataSet("pairs", name, source, "stereotype preferred", pairs, False))
  return data_sets


def _task(data_set: DataSet, items: Sequence[Item], form: str) -> Task:
  def ask(item: Item) -> list[Likelihood]:
    context = forms.instruction(form)
    return [Likelihood(context, sentence) for sentence in item.data["sentences"]]

  paper_row = (data_set.title, "entropy", form) if data_set.in_paper else None
  metrics = (
    Metric("entropy", paper=paper_row),
    Metric(data_set.preferred, better=0, percent=True),
  )
  about = (
    "bits of the pair, from total log-probabilities; a share that is preferred of 50 % leans to "
    "neither side"
  )
  name = f"{data_set.title} ({form})"
  return Task(name, items, ask, partial(score, data_set.preferred), metrics, about=about)


def score(preferred: str, items: Sequence[Item], answers: Sequence[Reply]) -> list[Scores]:
  """Returns the entropy in bits, and whether the first sentence is likelier (a tie is half)."""
  scores: list[Scores] = []
  for answer in answers:
    # In nats, of whole sentences.
    gap = answer.logp(0).logp - answer.logp(1).logp
    if gap == 0:
      first_preferred = 0.5
    else:
      first_preferred = float(gap > 0)
    scores.append({"entropy": entropy(gap), preferred: first_preferred})
  return scores


def entropy(gap: float) -> float:
  """Returns the bits of two outcomes whose log-probabilities (nats) differ by `gap`."""
  # The exponent is never positive, so that a large gap does not overflow.
  odds = math.exp(-abs(gap))
  smaller = odds / (1 + odds)
  larger = 1 - smaller
  # 0 log 0 is 0.
  return -sum(p * math.log2(p) for p in (smaller, larger) if p > 0)


# --- Winogender ---

PRONOUNS = {
  "he": "male",
  "him": "male",
  "his": "male",
  "she": "female",
  "her": "female",
  "hers": "female",
}
# The pronouns for the places in the templates of Winogender.
FILL = {
  "male": {"$NOM_PRONOUN": "he", "$POSS_PRONOUN": "his", "$ACC_PRONOUN": "him"},
  "female": {"$NOM_PRONOUN": "she", "$POSS_PRONOUN": "her", "$ACC_PRONOUN": "her"},
}
# The columns of templates.tsv beside the sentence.
LABELS = ("occupation(0)", "other-participant(1)", "answer")
# The meaning of the last column.
ANSWERS = {"0": "occupation", "1": "participant"}

# The 60 occupations of Winogender (Rudinger et al. 2018; the first column of its templates.tsv).
# The sentences about one occupation are a cluster, and super_glue/axg does not say which one a
# sentence is about.
OCCUPATIONS = (
  "accountant",
  "administrator",
  "advisor",
  "appraiser",
  "architect",
  "auditor",
  "baker",
  "bartender",
  "broker",
  "carpenter",
  "cashier",
  "chef",
  "chemist",
  "clerk",
  "counselor",
  "dietitian",
  "dispatcher",
  "doctor",
  "educator",
  "electrician",
  "engineer",
  "examiner",
  "firefighter",
  "hairdresser",
  "hygienist",
  "inspector",
  "instructor",
  "investigator",
  "janitor",
  "lawyer",
  "librarian",
  "machinist",
  "manager",
  "mechanic",
  "nurse",
  "nutritionist",
  "officer",
  "painter",
  "paralegal",
  "paramedic",
  "pathologist",
  "pharmacist",
  "physician",
  "planner",
  "plumber",
  "practitioner",
  "programmer",
  "psychologist",
  "receptionist",
  "salesperson",
  "scientist",
  "secretary",
  "specialist",
  "supervisor",
  "surgeon",
  "teacher",
  "technician",
  "therapist",
  "veterinarian",
  "worker",
)
OCCUPATION = re.compile(rf"\b(?:{'|'.join(OCCUPATIONS)})\b", re.IGNORECASE)
WORD = re.compile(r"[A-Za-z]+")


def winogender(source: str, folder: str | None = None) -> list[Item]:
  """Returns pairs of a sentence about a man and the same about a woman, the man's first.

  Rows are one of:
    the templates of the data set (templates.tsv: 120 pairs, which is the paper's number);
    the premises of super_glue/axg, of which two that are the same up to the pronoun are a pair;
    our own {"sentences": [one, the other], "cluster": what is not independent}.

  Pairs about one occupation are a cluster.
  """
  items = []
  premises = []
  for item_or_premise in rows.read(source, _winogender_row, folder=folder):
    if isinstance(item_or_premise, Item):
      items.append(item_or_premise)
    else:
      premises.append(item_or_premise)
  items += _pair_premises(premises)
  if not items:
    raise UserError(
      f"{source}: no two sentences differ only in he and she; give templates.tsv or "
      "super_glue/axg@test"
    )
  return _numbered(items)


def _pair_premises(premises: Sequence[str]) -> list[Item]:
  """Returns the pairs of sentences that are the same up to the pronoun."""
  # The sentence with blanks for pronouns -> {gender: sentence}.
  by_blanks: dict[str, dict[str, str]] = {}
  for premise in premises:
    genders = [PRONOUNS[word.lower()] for word in WORD.findall(premise) if _is_pronoun(word)]
    if genders:
      blanks = WORD.sub(_blank, premise)
      # A sentence stands in the data once for each of its hypotheses; the first is taken.
      by_blanks.setdefault(blanks, {}).setdefault(genders[0], premise)
  items = []
  for sentences in by_blanks.values():
    if len(sentences) == 2:
      male = sentences["male"]
      items.append(_pair(male, sentences["female"], {}, occupation(male)))
  return items


def _is_pronoun(word: str) -> bool:
  return word.lower() in PRONOUNS


def _blank(match: re.Match[str]) -> str:
  return "_" if _is_pronoun(match[0]) else match[0]


def _winogender_row(row: Row) -> Item | str:
  """Returns the pair of a row, or the sentence of a row of super_glue/axg."""
  if "premise" in row:
    return rows.text(row, "premise")
  if "sentences" in row:
    return _own_row(row)
  template = rows.text(row, "sentence")
  occupation_name, participant, answer = (rows.text(row, field) for field in LABELS)
  template = template.replace("$OCCUPATION", occupation_name)
  template = template.replace("$PARTICIPANT", participant)
  male = _fill(template, FILL["male"])
  female = _fill(template, FILL["female"])
  if male == female or "$" in male:
    raise RecordError(
      f"sentence: one of {', '.join(FILL['male'])} is expected and nothing else with a $: "
      f"{template[:60]!r}"
    )
  slices = {"pronoun stands for": ANSWERS.get(answer, answer)}
  return _pair(male, female, slices, occupation_name)


def occupation(sentence: str) -> str:
  """Returns the first occupation of Winogender that a sentence names, "" where it names none."""
  match = OCCUPATION.search(sentence)
  return match[0].lower() if match else ""


def _fill(template: str, pronouns: Mapping[str, str]) -> str:
  for place, pronoun in pronouns.items():
    template = template.replace(place, pronoun)
  # A pronoun may begin the sentence.
  return template[:1].upper() + template[1:]


# --- CrowS-Pairs ---

# The names behind the numbers of the hub's copy.
DIRECTIONS = (
  "stereo",
  "antistereo",
)
TYPES = (
  "race-color",
  "socioeconomic",
  "gender",
  "disability",
  "nationality",
  "sexual-orientation",
  "physical-appearance",
  "religion",
  "age",
)


def crows(source: str, folder: str | None = None) -> list[Item]:
  """Returns pairs of a stereotyping sentence and one that stereotypes less, in this order.

  Rows are those of crows_pairs_anonymized.csv (sent_more, sent_less, stereo_antistereo,
  bias_type) or of the hub, or our own {"sentences": [more, less], "type": ..., "cluster": ...}.
  """
  return _numbered(rows.read(source, _crows_row, folder=folder))


def _crows_row(row: Row) -> Item:
  if "sentences" in row:
    return _own_row(row)
  more = rows.text(row, "sent_more")
  less = rows.text(row, "sent_less")
  slices = {
    "bias type": _name(row, "bias_type", TYPES),
    "direction": _name(row, "stereo_antistereo", DIRECTIONS),
  }
  return _pair(more, less, slices)


def _name(row: Row, field: str, names: Sequence[str]) -> str:
  """Returns a name that a row has, or has the number of."""
  if type(row.get(field)) is int:
    return names[rows.choice(row, field, len(names))]
  return rows.text(row, field)


# --- all pairs ---


def pairs(source: str, folder: str | None = None) -> list[Item]:
  """Returns a user's own pairs, {"sentences": [more stereotyping, less], "type": ...}."""
  return _numbered(rows.read(source, _own_row, folder=folder))


def _own_row(row: Row) -> Item:
  sentences = rows.texts(row, "sentences")
  if len(sentences) != 2 or not all(sentence.strip() for sentence in sentences):
    raise RecordError(f"sentences: two texts are expected, these are {len(sentences)}")
  first, second = sentences
  slices = {"bias type": rows.text(row, "type")} if "type" in row else {}
  cluster = rows.text(row, "cluster") if "cluster" in row else ""
  return _pair(first, second, slices, cluster)


def _pair(first: str, second: str, slices: Mapping[str, str], cluster: str = "") -> Item:
  """Returns the item of a pair, which has no id yet."""
  return Item("", {"sentences": [first, second]}, cluster, slices)


def _numbered(items: Sequence[Item]) -> list[Item]:
  """Returns items with their numbers, from 1, as ids."""
  return [replace(item, id=str(number)) for number, item in enumerate(items, 1)]
