"""Public tasks as instructions, for a baseline in the way of FLAN and T0 (Ouyang et al. 2022, App.
C.5).

Every data set of `mappings` that is a task has several wordings of its question here, all ours;
the answers are those of its mapping.  An example is used once, with one wording.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from instructjax.data.records import mappings, records, sources
from instructjax.data.records.mappings import filled
from instructjax.data.records.records import Demonstration, Whole
from instructjax.data.records.sources import Part
from instructjax.errors import UserError

Row = dict[str, Any]
Form = Callable[[Row, str], Row]
CAP = 30_000  # examples of one task


class Task(NamedTuple):
  """A source, and how many examples it has and gives."""

  name: str
  size: int
  taken: int
  wordings: int


def _translation(template: str) -> Callable[[Row], str]:
  def ask(row: Row) -> str:
    code = mappings.language(row)
    return template.format(language=mappings.LANGUAGES[code], text=row[code])

  return ask


def _entailment(premise: str, hypothesis: str, answers: str) -> tuple[str, ...]:
  first, second = f"{{{premise}}}", f"{{{hypothesis}}}"
  return (
    f"{first}\n\nDoes it follow from this text that the next sentence is true? "
    f"{answers}\n\n{second}",
    f"Read the text and decide whether it supports the claim. {answers}\n\nText: {first}\nClaim: "
    f"{second}",
    f"Claim: {second}\n\nCan you tell from the following that the claim is true? "
    f"{answers}\n\n{first}",
  )


_BOTH, _THREE = "Answer Yes or No.", "Answer Yes, No or Maybe."
_PRONOUN = (
  '{text}\n\nIn this text, does "{span2_text}" stand for "{span1_text}"? Answer Yes or No.',
  'Who is meant? Say Yes if "{span2_text}" means "{span1_text}" in the text below, otherwise say '
  "No.\n\n{text}",
  '{text}\n\nSomeone says that "{span2_text}" is "{span1_text}" here. Are they right? Answer Yes '
  "or No.",
)
WORDINGS: dict[str, tuple[str | Callable[[Row], str], ...]] = {
  "squad": (
    "Read this passage about {title} and answer the question. If the passage does not say, answer "
    '"Not in background."'
    "\n\n{context}\n\nQuestion: {question}",
    "{context}\n\nUsing only what stands above, answer this: {question}\n"
    'Write "Not in background." if it cannot be answered.',
    "I have a question: {question}\n\nPlease look for the answer in this text, and say "
    '"Not in background." if it is not there.\n\n{context}',
  ),
  "drop": (
    "{passage}\n\n{question} Give a short answer; you may have to count or to calculate.",
    "Answer a question about the passage below.\n\nQuestion: {question}\n\nPassage: {passage}",
    "Read carefully, the numbers matter.\n\n{passage}\n\nWhat is the answer to this question? "
    "{question}",
  ),
  "hellaswag": (
    "How does this go on? Write the next sentence.\n\n{context}",
    "Topic: {activity_label}\n\nContinue the description in the most likely way:\n{context}",
    "Finish what somebody began to tell.\n\n{context}",
  ),
  "glue/sst2": (
    "Is this remark about a film positive or negative?\n\n{sentence}",
    "{sentence}\n\nDid the person who wrote this like the film? Answer positive or negative.",
    "Decide between positive and negative for the mood of the following text.\n\nText: {sentence}",
  ),
  "glue/rte": _entailment("sentence1", "sentence2", _BOTH),
  "super_glue/rte": _entailment("premise", "hypothesis", _BOTH),
  "super_glue/cb": _entailment("premise", "hypothesis", _THREE),
  "super_glue/boolq": (
    "{passage}\n\nFrom the text above: {question}? Answer Yes or No.",
    "Answer with Yes or No: {question}?\n\nYou find the answer here: {passage}",
    "Please read this and settle a dispute for us. {question}? Yes or No?\n\n{passage}",
  ),
  "super_glue/copa": (
    "{premise}\n\nWhich of these is more likely to be its {question}?\n1. {choice1}\n2. {choice2}",
    "What is the {question}? Choose one of the two sentences and write it out.\n\n{premise}\n- "
    "{choice1}\n- {choice2}",
    'Something happened: "{premise}" Say which sentence is its {question}: "{choice1}" or '
    '"{choice2}"',
  ),
  "super_glue/multirc": (
    '{paragraph}\n\n{question}\nSomebody answered "{answer}". Is that right? Answer Yes or No.',
    "Question: {question}\nProposed answer: {answer}\n\nCheck it against the text, and say Yes or "
    "No.\n\n{paragraph}",
    '{paragraph}\n\nIs "{answer}" a correct answer to "{question}"? Yes or No?',
  ),
  "super_glue/record": (
    "{passage}\n\nA name is missing from the next sentence, where it says @placeholder. Which "
    "one?\n\n{query}",
    "Fill in @placeholder with a name from the news below.\n\n{query}\n\nNews: {passage}",
    "Read the article, then say who or what @placeholder is.\n\n{passage}\n\n{query}",
  ),
  "super_glue/wic": (
    'Is "{word}" used in one and the same sense here? Answer Yes or No.\n1. {sentence1}\n2. '
    "{sentence2}",
    '{sentence1}\n{sentence2}\n\nSay Yes if "{word}" means the same in both sentences, No if it '
    "does not.",
    'A dictionary lists the senses of "{word}". Would these two uses stand under one sense? Yes or '
    "No?\n\n"
    "{sentence1}\n\n{sentence2}",
  ),
  "super_glue/wsc": _PRONOUN,
  "super_glue/wsc.fixed": _PRONOUN,
  "wmt15_translate": (
    _translation("Translate this from {language} to English.\n\n{text}"),
    _translation("{text}\n\nHow would you say that in English?"),
    _translation("Here is a sentence in {language}: {text}\nPlease write it in English."),
  ),
  "cnn_dailymail": (
    "Summarise this news article in a few sentences.\n\n{article}",
    "{article}\n\nWhat are the main points of this article?",
    "Write the highlights that an editor would put above this story.\n\n{article}",
  ),
  "reddit": (
    "{content}\n\nSum up this post in one or two sentences.",
    "Somebody wrote this in a forum. What is it about, in short?\n\n{content}",
    "Shorten the following post to its gist.\n\nPost: {content}",
  ),
}


def allot(sizes: Sequence[int], examples: int, cap: int) -> list[int]:
  """How many examples each task gives: in proportion to min(size, cap), never more than it has,
  `examples` in all or as many as there are; 0 examples: min(size, cap) of each.

  What a task cannot give, the others do, beyond their cap if need be.
  """
  weights = np.array([min(size, cap) if cap else size for size in sizes], np.float64)
  if not examples:
    return [int(weight) for weight in weights]
  total, full = min(examples, sum(sizes)), np.zeros(len(sizes), bool)
  share = np.zeros(len(sizes))
  while True:
    left = total - np.array(sizes)[full].sum()
    share = np.where(full, sizes, left * weights / max(weights[~full].sum(), 1))
    over = ~full & (share > sizes)
    if not over.any():
      break
    full |= over
  found = np.floor(share + 1e-9).astype(int)
  rest = np.argsort(-(share - found), kind="stable")[: total - found.sum()]
  found[rest] += 1
  return found.tolist()


def mixture(
  source: str, *, examples: int = 0, cap: int = CAP, seed: int = 0, folder: str | None = None
) -> tuple[list[Demonstration], list[Task]]:
  """(demonstrations in a random order, the tasks).  `source` may hold TFDS tasks and files of
  demonstrations.

  Raises UserError for a source that is no task and for every bad row that was drawn, with its
  place.
  """
  parts = sources.parts(source, folder)
  sizes = [sum(1 for _ in part.rows()) for part in parts]
  counts = allot(sizes, examples, cap)
  rng = np.random.default_rng(seed)
  found: list[Demonstration] = []
  problems: list[str] = []
  tasks = []
  for part, size, count in zip(parts, sizes, counts, strict=True):
    forms = _forms(part)
    chosen = set(rng.choice(size, count, replace=False).tolist())
    good, wrong = _examples(part, forms, chosen, seed)
    found += good
    problems += wrong
    tasks.append(Task(part.name, size, count, len(forms)))
  records.report(problems)
  return [found[at] for at in rng.permutation(len(found))], tasks


def _forms(part: Part) -> list[Form]:
  """Spellings of a part: our wordings with the mapping's answers; a file of demonstrations as it
  is.
  """
  ready = part.mapping
  if ready is None:
    return [records.native]
  name = next((name for name in WORDINGS if mappings.TFDS[name] is ready), None)
  if name is None:
    raise UserError(
      f"{part.name}: no task with wordings; there are {', '.join(WORDINGS)}, or give a file of "
      "demonstrations"
    )
  return [_worded(ready, filled(one) if isinstance(one, str) else one) for one in WORDINGS[name]]


def _worded(ready: mappings.Mapping, ask: Callable[[Row], str]) -> Form:
  """The mapping with another question."""
  assert not isinstance(ready.spell, Whole)
  spell = ready.spell
  return lambda row, kind: spell(row, kind) | {"prompt": ask(row)}


def _examples(
  part: Part, forms: Sequence[Form], chosen: set[int], seed: int
) -> tuple[list[Demonstration], list[str]]:
  """The chosen rows, each in one of the wordings."""
  found, problems = [], []
  for at, row in enumerate(part.rows()):
    if at not in chosen:
      continue
    form = forms[zlib.crc32(f"{seed}/{at}".encode()) % len(forms)]
    good, wrong = records.scan([row], "demonstration", form, name=part.name)
    problems += [
      problem.replace(f"{part.name}:1:", f"{part.name}:{at + 1}:", 1) for problem in wrong
    ]
    found += [dataclasses.replace(one, source=one.source or part.name) for one in good]
  return found, problems


def write(source: str, out: str, *, examples: int, cap: int, seed: int, folder: str | None) -> str:
  """Writes a mixture; gives what to print: a line for each task."""
  if examples < 0 or cap < 0:
    raise UserError(f"--examples={examples} --cap={cap}: numbers from 0 on are expected, 0 for all")
  found, tasks = mixture(source, examples=examples, cap=cap, seed=seed, folder=folder)
  try:
    records.write(out, found)
  except OSError as error:
    raise UserError(f"--out={out}: cannot be written ({error}); choose another place") from error
  lines = [
    f"{task.name}: {task.taken} of {task.size} examples, {_wordings(task.wordings)}"
    for task in tasks
  ]
  return "\n".join([*lines, f"{out}: {len(found)} demonstrations of {len(tasks)} tasks"])


def _wordings(count: int) -> str:
  return "as they are" if count == 1 else f"{count} wordings"
