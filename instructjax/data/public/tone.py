"""Instructions with a tone, ranked by people: the data of the quickstart.

Each prompt asks for one sentence of a film review, a tweet or a product review that praises or
criticises. The completions are real sentences that 14 to 99 people rated from -4 to 4 (Hutto and
Gilbert 2014; see NOTICE), so the human ranking for "praise" is the order of the mean ratings and
for "criticise" its reverse, ties kept.

What keeps training and evaluation apart:
  texts      every text belongs to one of SPLITS by the hash of its words and the seed, equal texts together
  raters     each text's ratings are halved: half "a" labels the training data, half "b" the gold comparisons
  templates  TRAIN words the training prompts, TEST the prompts and comparisons of the evaluation
  domains    product reviews ("amazon") are in no training data
Editorials ("nyt") are the pretraining text, whole articles on either side of the split.
"""

from __future__ import annotations

import functools
import gzip
import html
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from instructjax.data.curation.hygiene import number
from instructjax.data.records import records
from instructjax.data.records.records import Comparison, Demonstration, Prompt, Text
from instructjax.errors import UserError

TABLE = "tone_ratings.tsv.gz"
SPLITS = {
  "sft": 0.20,
  "reward": 0.36,
  "ppo": 0.04,
  "gold": 0.26,
  "test": 0.14,
}  # shares of the texts
DIRECTIONS = ("praise", "criticise")
K = (4, 9)  # completions of one comparison, drawn uniformly
CLEAR = 1.0  # a demonstration's mean rating is at least this far from 0

# (instruction to praise, instruction to criticise); the last line is a label that the text follows.
TRAIN = {
  "movies": (
    (
      "Praise this film in one sentence.\nPraise:",
      "Criticize this film in one sentence.\nCriticism:",
    ),
    (
      "Write a sentence of a good film review.\nPositive review:",
      "Write a sentence of a bad film review.\nNegative review:",
    ),
    (
      "What does a critic who loved the film write?\nLoved it:",
      "What does a critic who hated the film write?\nHated it:",
    ),
    (
      "Say in one sentence what is good about the film.\nGood:",
      "Say in one sentence what is bad about the film.\nBad:",
    ),
    (
      "Would you recommend the film?\nRecommended:",
      "Would you recommend the film?\nNot recommended:",
    ),
    ("Why is the film great?\nGreat:", "Why is the film terrible?\nTerrible:"),
    (
      "Review the film as someone who enjoyed it.\nEnjoyed:",
      "Review the film as someone who was bored.\nBored:",
    ),
    ("Name the best thing about the film.\nBest:", "Name the worst thing about the film.\nWorst:"),
  ),
  "tweets": (
    (
      "Write a tweet that praises something.\nPraise:",
      "Write a tweet that criticizes something.\nCriticism:",
    ),
    ("Write a happy tweet.\nPositive tweet:", "Write an unhappy tweet.\nNegative tweet:"),
    (
      "Write a tweet about something you love.\nLove:",
      "Write a tweet about something you hate.\nHate:",
    ),
    (
      "You are in a good mood. Write a tweet.\nGood:",
      "You are in a bad mood. Write a tweet.\nBad:",
    ),
    ("Write a tweet about a great day.\nGreat:", "Write a tweet about a terrible day.\nTerrible:"),
    ("Tweet about the best thing today.\nBest:", "Tweet about the worst thing today.\nWorst:"),
  ),
}
TEST = {
  "movies": (
    (
      "Give me one line of a glowing film review.\nGlowing review:",
      "Give me one line of a scathing film review.\nScathing review:",
    ),
    (
      "What did you like about the film?\nLiked:",
      "What did you dislike about the film?\nDisliked:",
    ),
  ),
  "tweets": (
    ("Tweet something nice.\nNice tweet:", "Tweet something nasty.\nNasty tweet:"),
    (
      "Write a tweet about what you like today.\nLiked:",
      "Write a tweet about what you dislike today.\nDisliked:",
    ),
  ),
  "amazon": (
    (
      "Praise this product in one sentence.\nPraise:",
      "Criticize this product in one sentence.\nCriticism:",
    ),
    (
      "Give me one line of a glowing product review.\nGlowing review:",
      "Give me one line of a scathing product review.\nScathing review:",
    ),
    (
      "What did you like about the product?\nLiked:",
      "What did you dislike about the product?\nDisliked:",
    ),
  ),
}


class Rated(NamedTuple):
  """A text with the ratings that people gave it, -4 to 4, one each."""

  domain: str
  id: str
  text: str
  ratings: tuple[int, ...]


class Sizes(NamedTuple):
  """How much of each kind to draw, and the length of the texts in words."""

  demonstrations: int = 480
  comparisons: int = 200
  gold: int = 200
  prompts: int = 1024
  test_prompts: int = 96  # of each domain
  test_comparisons: int = 40  # of each domain
  words: tuple[int, int] = (5, 14)
  opening: float = 0.3  # share of the prompts that give the first words


QUICKSTART = Sizes()


class Tasks(NamedTuple):
  """Everything that the quickstart reads."""

  demonstrations: list[Demonstration]
  comparisons: list[Comparison]  # ranked by half "a"
  gold: list[Comparison]  # ranked by half "b", other texts, all templates
  prompts: list[Prompt]
  test_prompts: dict[str, list[Prompt]]  # by domain
  test_comparisons: dict[str, list[Comparison]]  # by domain, ranked by all raters
  text_train: list[Text]
  text_valid: list[Text]


# --- the table ---


@functools.cache
def load() -> tuple[Rated, ...]:
  """The shipped table, texts cleaned: HTML entities resolved, a tweet without the names it answers
  to.
  """
  content = gzip.decompress(resources.files("instructjax.data.public").joinpath(TABLE).read_bytes())
  rows = []
  for line in content.decode().split("\n")[1:-1]:
    domain, key, digits, text = line.split("\t")
    text = " ".join(html.unescape(text).split())
    if domain == "tweets":
      text = re.sub(r"^(@anonymous[\s:,]*)+", "", text)
    rows.append(Rated(domain, key, text, tuple(int(digit) - 4 for digit in digits)))
  return tuple(rows)


def usable(row: Rated, words: tuple[int, int]) -> bool:
  """Whether a text can stand as a completion: its length, and no names, links or hash tags."""
  fits = words[0] <= len(row.text.split()) <= words[1]
  return fits and not re.search(r"@|http|#|\bRT\b|\bbit\.ly", row.text)


def mean(row: Rated, half: str = "all") -> float:
  """The mean rating by half "a" or "b" of the raters of this text, or by all of them.

  Raters alternate between the halves; a hash of the text's id says which half the first one is in.
  """
  if half == "all":
    return sum(row.ratings) / len(row.ratings)
  part = row.ratings[(number("half", row.domain, row.id) + (half == "b")) % 2 :: 2]
  return sum(part) / len(part)


def split(row: Rated, seed: int) -> str:
  """The part of SPLITS that a text belongs to: a hash of its letters, so that equal texts stay
  together.
  """
  at = number("split", str(seed), re.sub(r"\W+", "", row.text.lower())) / 2**64
  return list(SPLITS)[int(np.searchsorted(np.cumsum(list(SPLITS.values()))[:-1], at, side="right"))]


def parts(
  seed: int, words: tuple[int, int] = QUICKSTART.words
) -> dict[tuple[str, str], list[Rated]]:
  """The usable texts by (domain, split)."""
  found = defaultdict(list)
  for row in load():
    if usable(row, words):
      found[row.domain, split(row, seed)].append(row)
  return found


# --- tasks ---


def tasks(seed: int = 0, sizes: Sizes = QUICKSTART) -> Tasks:
  """All the data of a quickstart.  The same seed and sizes give the same records.

  Raises UserError where a part has fewer texts than asked for.
  """
  texts = parts(seed, sizes.words)
  both = {domain: TRAIN[domain] + TEST[domain] for domain in TRAIN}
  part = lambda name: {domain: texts[domain, name] for domain in TRAIN}
  whole = [row for name in SPLITS for row in texts["amazon", name]]
  test = part("test") | {"amazon": whole}
  rng = lambda name: np.random.default_rng(number(name, str(seed)))
  text_train, text_valid = articles(seed)
  return Tasks(
    demonstrations=demonstrations(rng("sft"), part("sft"), sizes),
    comparisons=comparisons(
      rng("reward"), part("reward"), TRAIN, "a", sizes.comparisons, sizes.opening
    ),
    gold=comparisons(rng("gold"), part("gold"), both, "b", sizes.gold, sizes.opening),
    prompts=prompts(rng("ppo"), part("ppo"), TRAIN, sizes.prompts, sizes.opening),
    test_prompts={
      d: prompts(rng("prompts" + d), {d: test[d]}, TEST, sizes.test_prompts, sizes.opening)
      for d in TEST
    },
    test_comparisons={
      d: comparisons(
        rng("test" + d), {d: test[d]}, TEST, "all", sizes.test_comparisons, sizes.opening
      )
      for d in TEST
    },
    text_train=text_train,
    text_valid=text_valid,
  )


def write(folder: str | Path, everything: Tasks) -> list[Path]:
  """The tasks as JSONL files, one for each part and test domain."""
  files: dict[str, list] = {}
  for name, part in everything._asdict().items():
    files |= (
      {f"{name}_{d}": rows for d, rows in part.items()} if isinstance(part, dict) else {name: part}
    )
  paths = [Path(folder) / f"{name}.jsonl" for name in files]
  for path, rows in zip(paths, files.values(), strict=True):
    records.write(path, rows)
  return paths


def instruction(template: tuple[str, str], direction: str, start: str = "") -> str:
  """The prompt: a template in its direction, and the first words where they are given."""
  return template[DIRECTIONS.index(direction)] + (" " + start if start else "")


def opening(row: Rated, words: int) -> str:
  """The first words of a text, or "" where they are long or shouted, hold more than letters or
  leave fewer than three words.
  """
  start = row.text.split()
  plain = all(re.fullmatch(r"[A-Z]?[a-z]{0,9}(?:'[a-z]{1,2})?", word) for word in start[:words])
  return " ".join(start[:words]) if plain and len(start) - words >= 3 else ""


@functools.cache
def usual(domain: str, least: int = 3) -> frozenset[str]:
  """First words, up to three, of at least `least` texts of a domain: they leave the tone open, as a
  rule.
  """
  counts = Counter(opening(row, n) for row in load() if row.domain == domain for n in (1, 2, 3))
  return frozenset(start for start, count in counts.items() if start and count >= least)


def rest(row: Rated, start: str) -> str:
  """What follows the first words."""
  return row.text[len(start) :].lstrip()


def demonstrations(
  rng: np.random.Generator, rows: dict[str, list[Rated]], sizes: Sizes
) -> list[Demonstration]:
  """Texts that half "a" rated clearly, each with an instruction that it follows."""
  found = []
  for domain, texts in rows.items():
    for row in texts:
      tone = mean(row, "a")
      if abs(tone) < CLEAR:
        continue
      direction = DIRECTIONS[int(tone < 0)]
      start = opening(row, int(rng.integers(1, 4))) if rng.random() < sizes.opening else ""
      prompt = instruction(_pick(rng, TRAIN[domain]), direction, start)
      found.append(
        Demonstration(
          prompt, rest(row, start), id=f"sft/{domain}/{row.id}", source=domain, use_case=direction
        )
      )
  if sizes.demonstrations > len(found):
    raise UserError(
      f"{sizes.demonstrations} demonstrations asked for, {len(found)} there are; ask for fewer"
    )
  return [found[i] for i in rng.permutation(len(found))[: sizes.demonstrations]]


def comparisons(
  rng: np.random.Generator,
  rows: dict[str, list[Rated]],
  templates: dict,
  half: str,
  size: int,
  share: float,
) -> list[Comparison]:
  """Groups of K texts of one domain under one instruction, ranked by the mean of `half` of the
  raters.

  Each group comes twice in a row, to be praised and to be criticised, so that no text is good in
  itself.  Its texts are drawn from K equal parts of the texts in the order of their tone.  Where
  the first words are given, all begin with them.
  """
  alike = {domain: _openings(texts) for domain, texts in rows.items()}
  weight = np.array([len(texts) for texts in rows.values()], float)
  found: list[Comparison] = []
  while len(found) < size:
    domain = list(rows)[rng.choice(len(rows), p=weight / weight.sum())]
    template, k = _pick(rng, templates[domain]), int(rng.integers(K[0], K[1] + 1))
    start, texts = _pick(rng, alike[domain]) if rng.random() < share else ("", rows[domain])
    texts = _spread(rng, texts, min(k, len(texts)), half)
    for direction, sign in zip(DIRECTIONS, (1, -1), strict=True):
      found.append(
        Comparison(
          prompt=instruction(template, direction, start),
          completions=tuple(rest(row, start) for row in texts),
          ranks=ranks([sign * mean(row, half) for row in texts]),
          id=f"{half}/{domain}/{len(found)}",
          source=domain,
          use_case=direction,
          labeler=f"half-{half}",
        )
      )
  return found[:size]


def ranks(values: Sequence[float]) -> tuple[int, ...]:
  """1 for the highest value; equal values share a rank, and the next one counts them (1, 2, 2, 4)."""
  return tuple(1 + sum(other > value for other in values) for value in values)


def prompts(
  rng: np.random.Generator, rows: dict[str, list[Rated]], templates: dict, size: int, share: float
) -> list[Prompt]:
  """Instructions without a text; `share` of them give first words that several texts begin with."""
  starts = {
    domain: [
      [s for row in texts if (s := opening(row, n)) in usual(domain)] or [""] for n in (1, 2, 3)
    ]
    for domain, texts in rows.items()
  }
  weight = np.array([len(texts) for texts in rows.values()], float)
  found = []
  for n in range(size):
    domain = list(rows)[rng.choice(len(rows), p=weight / weight.sum())]
    direction = DIRECTIONS[int(rng.integers(2))]
    start = _pick(rng, _pick(rng, starts[domain])) if rng.random() < share else ""
    prompt = instruction(_pick(rng, templates[domain]), direction, start)
    found.append(Prompt(prompt, id=f"prompt/{domain}/{n}", source=domain, use_case=direction))
  return found


def articles(seed: int = 0, valid: float = 0.15) -> tuple[list[Text], list[Text]]:
  """The editorials as whole articles: (train, valid)."""
  whole: dict[str, list[str]] = defaultdict(list)
  for row in load():
    if row.domain == "nyt":
      whole[row.id.split("_")[0]].append(row.text)
  sides: tuple[list[Text], list[Text]] = ([], [])
  for key, sentences in whole.items():
    held_out = number("article", str(seed), key) / 2**64 < valid
    sides[held_out].append(Text(" ".join(sentences), id=f"nyt/{key}", source="nyt"))
  return sides


def _pick(rng: np.random.Generator, options: Sequence):
  return options[int(rng.integers(len(options)))]


def _spread(rng: np.random.Generator, texts: list[Rated], k: int, half: str) -> list[Rated]:
  """One text out of each of k equal parts of the texts sorted by tone, in random order.  Raises
  UserError below K[0].
  """
  if k < K[0]:
    raise UserError(
      f"a comparison of {K[0]} texts asked for, {len(texts)} there are; allow longer texts"
    )
  order = sorted(texts, key=lambda row: mean(row, half))
  edges = [len(order) * i // k for i in range(k + 1)]
  return [order[int(rng.integers(edges[i], edges[i + 1]))] for i in rng.permutation(k)]


def _openings(texts: list[Rated]) -> list[tuple[str, list[Rated]]]:
  """First words (one or two) that K[0] or more texts share, with these; an entry for every K[0] of
  them.
  """
  groups: dict[str, list[Rated]] = defaultdict(list)
  for row in texts:
    for words in (1, 2):
      groups[opening(row, words)].append(row)
  groups.pop("", None)
  return [(start, same) for start, same in groups.items() for _ in range(len(same) // K[0])]
