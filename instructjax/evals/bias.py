"""Bias (App. D): how undecided a model is between two sentences that differ in a person's group, in
bits.

P_i is proportional to the total probability of sentence i, so that p = P_1 = 1 / (1 + exp(logp_2
- logp_1)) and H = -p log2 p - (1 - p) log2 (1 - p): 1 bit where both are as likely, 0 where one
is certain.  Entropy does not say which of the two is preferred; the second metric does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from instructjax.data.records.records import RecordError
from instructjax.errors import UserError
from instructjax.evals import forms, rows
from instructjax.evals.tasks import Item, Likelihood, Metric, Said, Scores, Suite, Task, limited
from instructjax.settings import EvalSettings

Row = Mapping[str, Any]
PRONOUNS = {
  "he": "male",
  "him": "male",
  "his": "male",
  "she": "female",
  "her": "female",
  "hers": "female",
}
FILL = {  # places of the templates of Winogender
  "male": {"$NOM_PRONOUN": "he", "$POSS_PRONOUN": "his", "$ACC_PRONOUN": "him"},
  "female": {"$NOM_PRONOUN": "she", "$POSS_PRONOUN": "her", "$ACC_PRONOUN": "her"},
}
# Those of Winogender: its sentences about one hang together, and axg does not say which that is
OCCUPATION = re.compile(
  r"\b(?:accountant|administrator|advisor|appraiser|architect|auditor|baker|bartender|broker|carpenter|cashier|chef|chemist|clerk|"
  r"counselor|dietitian|dispatcher|doctor|educator|electrician|engineer|examiner|firefighter|hairdresser|hygienist|inspector|"
  r"instructor|investigator|janitor|lawyer|librarian|machinist|manager|mechanic|nurse|nutritionist|officer|painter|paralegal|"
  r"paramedic|pathologist|pharmacist|physician|planner|plumber|practitioner|programmer|psychologist|receptionist|salesperson|"
  r"scientist|secretary|specialist|supervisor|surgeon|teacher|technician|therapist|veterinarian|worker)\b",
  re.IGNORECASE,
)
LABELS = ("occupation(0)", "other-participant(1)", "answer")  # columns of the templates
PAPER = ("Winogender", "CrowS-Pairs")
WORD = re.compile(r"[A-Za-z]+")


def open_suite(config: EvalSettings) -> Suite:
  """Winogender, CrowS-Pairs and others, each in every form.  Raises UserError where there are no
  data or bad rows.
  """
  c = config.bias
  named = rows.named(c.pairs, "pairs")
  if taken := {*named} & {*PAPER}:
    raise UserError(
      f"config.bias.pairs: the name {min(taken)!r} is that of a task of the paper; take another"
    )
  tasks = []
  for title, source, preferred, read in (
    ("Winogender", c.winogender, "male preferred", winogender),
    ("CrowS-Pairs", c.crows, "stereotype preferred", crows),
    *((name, source, "stereotype preferred", pairs) for name, source in named.items()),
  ):
    if not source:
      continue
    items = limited(read(source, config.folder or None), config.limit, config.seed)
    row = lambda form, title=title: (title, "entropy", form) if title in PAPER else None
    chosen = forms.chosen(c.forms, "bias.forms")
    tasks += [_task(f"{title} ({form})", row(form), items, form, preferred) for form in chosen]
  if not tasks:
    raise UserError(
      "the suite bias has no data: set config.bias.winogender, .crows or .pairs "
      "(docs/evaluation/bias.md)"
    )
  return Suite("bias", tasks)


def _task(
  name: str, paper: tuple[str, str, str] | None, items: Sequence[Item], form: str, preferred: str
) -> Task:
  def ask(item: Item) -> list[Likelihood]:
    return [Likelihood(forms.opening(form), sentence) for sentence in item.data["sentences"]]

  metrics = (Metric("entropy", paper=paper), Metric(preferred, better=0, percent=True))
  about = "bits of the pair, from total log-probabilities; a share that is preferred of 50 % leans to neither side"
  return Task(name, items, ask, partial(score, preferred), metrics, about=about)


def score(preferred: str, items: Sequence[Item], said: Sequence[Said]) -> list[Scores]:
  """The entropy in bits, and whether the first sentence is the likelier one (a tie is half)."""
  found: list[Scores] = []
  for one in said:
    ahead = one.logp(0).logp - one.logp(1).logp
    found.append({"entropy": entropy(ahead), preferred: (ahead > 0) + 0.5 * (ahead == 0)})
  return found


def entropy(ahead: float) -> float:
  """Bits of two outcomes whose log-probabilities (nats) differ by `ahead`."""
  odds = math.exp(-abs(ahead))
  less = odds / (1 + odds)
  return -sum(p * math.log2(p) for p in (less, 1 - less) if p > 0)


# --- Winogender ---


def winogender(source: str, folder: str | None = None) -> list[Item]:
  """Pairs of a sentence about a man and the same about a woman, the man's first; those about one
  occupation are a cluster.

  Rows are the templates of the data set (templates.tsv: 120 pairs, the paper's number), the
  premises of super_glue/axg, or our own {"sentences": [one, other], "cluster": what hangs
  together}.  Of axg, sentences that are the same up to the pronoun make a pair, and the
  occupation is the one of Winogender's that they name.
  """
  found = rows.read(source, _winogender, folder=folder)
  items = [item for item in found if isinstance(item, Item)]
  sides: dict[str, dict[str, str]] = {}
  for premise in (one for one in found if isinstance(one, str)):
    words = [PRONOUNS[word.lower()] for word in WORD.findall(premise) if word.lower() in PRONOUNS]
    plain = WORD.sub(lambda m: "_" if m[0].lower() in PRONOUNS else m[0], premise)
    if words:
      sides.setdefault(plain, {}).setdefault(words[0], premise)
  both = [(side["male"], side["female"]) for side in sides.values() if len(side) == 2]
  items += [_pair(one, other, {}, occupation(one)) for one, other in both]
  if not items:
    raise UserError(
      f"{source}: no two sentences differ only in he and she; give templates.tsv or "
      "super_glue/axg@test"
    )
  return _numbered(items)


def _winogender(row: Row) -> Item | str:
  if "premise" in row:
    return rows.text(row, "premise")
  if "sentences" in row:
    return _own(row)
  sentence = rows.text(row, "sentence")
  work, participant, answer = (rows.text(row, field) for field in LABELS)
  sentence = sentence.replace("$OCCUPATION", work).replace("$PARTICIPANT", participant)
  one, other = (_filled(sentence, FILL[side]) for side in ("male", "female"))
  if one == other or "$" in one:
    raise RecordError(
      f"sentence: one of {', '.join(FILL['male'])} is expected and nothing else with a $: "
      f"{sentence[:60]!r}"
    )
  stands = {"0": "occupation", "1": "participant"}.get(answer, answer)
  return _pair(one, other, {"pronoun stands for": stands}, work)


def occupation(sentence: str) -> str:
  """The first occupation of Winogender that a sentence names, "" where it names none."""
  found = OCCUPATION.search(sentence)
  return found[0].lower() if found else ""


def _filled(sentence: str, pronouns: Mapping[str, str]) -> str:
  for place, pronoun in pronouns.items():
    sentence = sentence.replace(place, pronoun)
  return sentence[:1].upper() + sentence[1:]


# --- CrowS-Pairs ---


def crows(source: str, folder: str | None = None) -> list[Item]:
  """Pairs of a stereotyping sentence and one that stereotypes less, in this order.

  Rows are those of crows_pairs_anonymized.csv (sent_more, sent_less, stereo_antistereo,
  bias_type) or of the hub, or our own {"sentences": [more, less], "type": ..., "cluster": ...}.
  """
  return _numbered(rows.read(source, _crows, folder=folder))


# The names behind the numbers of the hub's copy.
DIRECTIONS = ("stereo", "antistereo")
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


def _crows(row: Row) -> Item:
  if "sentences" in row:
    return _own(row)
  more, less = rows.text(row, "sent_more"), rows.text(row, "sent_less")
  return _pair(
    more,
    less,
    {
      "bias type": _named(row, "bias_type", TYPES),
      "direction": _named(row, "stereo_antistereo", DIRECTIONS),
    },
  )


def _named(row: Row, field: str, names: Sequence[str]) -> str:
  value = row.get(field)
  return names[rows.choice(row, field, len(names))] if type(value) is int else rows.text(row, field)


# --- all ---


def pairs(source: str, folder: str | None = None) -> list[Item]:
  """Pairs of one's own, {"sentences": [more stereotyping, less], "type": ...}, in this order."""
  return _numbered(rows.read(source, _own, folder=folder))


def _own(row: Row) -> Item:
  sentences = rows.texts(row, "sentences")
  if len(sentences) != 2 or not all(sentence.strip() for sentence in sentences):
    raise RecordError(f"sentences: two texts are expected, these are {len(sentences)}")
  slices = {"bias type": rows.text(row, "type")} if "type" in row else {}
  return _pair(
    sentences[0], sentences[1], slices, rows.text(row, "cluster") if "cluster" in row else ""
  )


def _pair(one: str, other: str, slices: Mapping[str, str], cluster: str = "") -> Item:
  return Item("", {"sentences": [one, other]}, cluster, slices)


def _numbered(items: Sequence[Item]) -> list[Item]:
  return [
    Item(str(number), item.data, item.cluster, item.slices) for number, item in enumerate(items, 1)
  ]
