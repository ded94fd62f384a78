"""Instructions with a tone, ranked by people: the data of the quickstart.

Each prompt asks for one sentence of a film review, a tweet or a product review that praises or criticises.
The completions are real sentences that 14 to 99 people rated from -4 to 4 (Hutto and Gilbert 2014; see
NOTICE), so the human ranking for "praise" is the order of the mean ratings and for "criticise" its reverse,
ties kept.

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
import hashlib
import html
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from instructjax.data import records
from instructjax.data.records import Comparison, Demonstration, Prompt, Text
from instructjax.errors import UserError

TABLE = "tone_ratings.tsv.gz"
SPLITS = {
  "sft": 0.20,
  "reward": 0.35,
  "valid": 0.05,
  "ppo": 0.04,
  "gold": 0.24,
  "test": 0.12,
}  # shares of the texts
DIRECTIONS = ("praise", "criticise")
K = (4, 9)  # completions of one comparison, drawn uniformly
CLEAR = 1.0  # a demonstration's mean rating is at least this far from 0

# (template, word for praise, word for criticise); `{}` is the word.
TRAIN = {
  "movies": (
    ("Write one sentence of a film review that {} the film.\nReview:", "praises", "criticizes"),
    ("Write a {} review of a film in one sentence.\nReview:", "positive", "negative"),
    ("What does a critic who {} the film write about it?\nReview:", "loved", "hated"),
    ("Say in one sentence what is {} about the film.\nReview:", "good", "bad"),
  ),
  "tweets": (
    ("Write a tweet about something you {}.\nTweet:", "love", "hate"),
    ("Write a {} tweet.\nTweet:", "positive", "negative"),
    ("Write a tweet that {} something.\nTweet:", "praises", "criticizes"),
    ("You are in a {} mood. Write a tweet.\nTweet:", "good", "bad"),
  ),
}
TEST = {
  "movies": (
    ("Give me one line of a {} film review.\nReview:", "glowing", "scathing"),
    ("Write one sentence about a film that you {}.\nReview:", "enjoyed", "disliked"),
  ),
  "tweets": (
    ("Write a short tweet from someone who is {} today.\nTweet:", "happy", "upset"),
    ("Tweet something {}.\nTweet:", "nice", "nasty"),
  ),
  "amazon": (
    ("Write one sentence of a product review that {} the product.\nReview:", "praises", "criticizes"),
    ("Give me one line of a {} product review.\nReview:", "glowing", "scathing"),
    ("Write one sentence about a product that you {}.\nReview:", "enjoyed", "disliked"),
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

  demonstrations: int = 800
  comparisons: int = 800
  valid: int = 100
  gold: int = 800
  prompts: int = 1024
  test_prompts: int = 128  # of each domain
  test_comparisons: int = 100  # of each domain
  words: tuple[int, int] = (6, 22)
  opening: float = 0.5  # share of the prompts that give the first words


QUICKSTART = Sizes()


class Tasks(NamedTuple):
  """Everything that the quickstart reads."""

  demonstrations: list[Demonstration]
  comparisons: list[Comparison]  # ranked by half "a"
  valid: list[Comparison]  # as these, other texts: for choosing settings
  gold: list[Comparison]  # ranked by half "b", other texts, all templates
  prompts: list[Prompt]
  test_prompts: dict[str, list[Prompt]]  # by domain
  test_comparisons: dict[str, list[Comparison]]  # by domain, ranked by all raters
  text_train: list[Text]
  text_valid: list[Text]


# --- the table ---


@functools.cache
def load() -> tuple[Rated, ...]:
  """The shipped table, texts cleaned: HTML entities resolved, a tweet without the names it answers to."""
  content = gzip.decompress(resources.files("instructjax.data").joinpath(TABLE).read_bytes())
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
  part = row.ratings[(_hash("half", row.domain, row.id) + (half == "b")) % 2 :: 2]
  return sum(part) / len(part)


def split(row: Rated, seed: int) -> str:
  """The part of SPLITS that a text belongs to: a hash of its letters, so that equal texts stay together."""
  at = _hash("split", str(seed), re.sub(r"\W+", "", row.text.lower())) / 2**64
  return list(SPLITS)[int(np.searchsorted(np.cumsum(list(SPLITS.values()))[:-1], at, side="right"))]


def parts(seed: int, words: tuple[int, int] = QUICKSTART.words) -> dict[tuple[str, str], list[Rated]]:
  """The usable texts by (domain, split)."""
  found = defaultdict(list)
  for row in load():
    if usable(row, words):
      found[row.domain, split(row, seed)].append(row)
  return found


def _hash(*parts: str) -> int:
  return int.from_bytes(hashlib.blake2b("/".join(parts).encode(), digest_size=8).digest(), "big")


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
  rng = lambda name: np.random.default_rng(_hash(name, str(seed)))
  text_train, text_valid = articles(seed)
  return Tasks(
    demonstrations=demonstrations(rng("sft"), part("sft"), sizes),
    comparisons=comparisons(rng("reward"), part("reward"), TRAIN, "a", sizes.comparisons, sizes.opening),
    valid=comparisons(rng("valid"), part("valid"), TRAIN, "a", sizes.valid, sizes.opening),
    gold=comparisons(rng("gold"), part("gold"), both, "b", sizes.gold, sizes.opening),
    prompts=prompts(rng("ppo"), part("ppo"), TRAIN, sizes.prompts, sizes.opening),
    test_prompts={d: prompts(rng("prompts" + d), {d: test[d]}, TEST, sizes.test_prompts, sizes.opening) for d in TEST},
    test_comparisons={
      d: comparisons(rng("test" + d), {d: test[d]}, TEST, "all", sizes.test_comparisons, sizes.opening) for d in TEST
    },
    text_train=text_train,
    text_valid=text_valid,
  )


def write(folder: str | Path, everything: Tasks) -> list[Path]:
  """The tasks as JSONL files, one for each part and test domain."""
  files: dict[str, list] = {}
  for name, part in everything._asdict().items():
    files |= {f"{name}_{d}": rows for d, rows in part.items()} if isinstance(part, dict) else {name: part}
  paths = [Path(folder) / f"{name}.jsonl" for name in files]
  for path, rows in zip(paths, files.values(), strict=True):
    records.write(path, rows)
  return paths


def instruction(template: tuple[str, str, str], direction: str, start: str = "") -> str:
  """The prompt: a template with the word of its direction, and the first words where they are given."""
  text, *words = template
  return text.format(words[DIRECTIONS.index(direction)]) + (" " + start if start else "")


def opening(row: Rated, words: int) -> str:
  """The first words of a text, or "" where they hold more than letters or leave fewer than three words."""
  start = row.text.split()
  plain = all(re.fullmatch(r"[A-Za-z]+(?:'[a-z]+)?", word) for word in start[:words])
  return " ".join(start[:words]) if plain and len(start) - words >= 3 else ""


@functools.cache
def usual(domain: str, least: int = 3) -> frozenset[str]:
  """First words, up to three, of at least `least` texts of a domain: they leave the tone open, as a rule."""
  counts = Counter(opening(row, n) for row in load() if row.domain == domain for n in (1, 2, 3))
  return frozenset(start for start, count in counts.items() if start and count >= least)


def rest(row: Rated, start: str) -> str:
  """What follows the first words."""
  return row.text[len(start) :].lstrip()


def demonstrations(rng: np.random.Generator, rows: dict[str, list[Rated]], sizes: Sizes) -> list[Demonstration]:
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
        Demonstration(prompt, rest(row, start), id=f"sft/{domain}/{row.id}", source=domain, use_case=direction)
      )
  if sizes.demonstrations > len(found):
    raise UserError(f"{sizes.demonstrations} demonstrations asked for, {len(found)} there are; ask for fewer")
  return [found[i] for i in rng.permutation(len(found))[: sizes.demonstrations]]


def comparisons(
  rng: np.random.Generator,
  rows: dict[str, list[Rated]],
  templates: dict,
  half: str,
  size: int,
  share: float,
) -> list[Comparison]:
  """Groups of K texts of one domain under one instruction, ranked by the mean of `half` of the raters.

  Where the first words are given, all K texts begin with them.  Texts are dealt out without replacement and
  reshuffled when they run out.
  """
  deal = {domain: _dealer(rng, texts) for domain, texts in rows.items()}
  alike = {domain: _openings(texts) for domain, texts in rows.items()}
  weight = np.array([len(texts) for texts in rows.values()], float)
  found = []
  for n in range(size):
    domain = list(rows)[rng.choice(len(rows), p=weight / weight.sum())]
    k, direction = int(rng.integers(K[0], K[1] + 1)), DIRECTIONS[int(rng.integers(2))]
    if rng.random() < share:
      start, same = alike[domain][int(rng.integers(len(alike[domain])))]
      texts = [same[i] for i in rng.permutation(len(same))[:k]]
    else:
      start, texts = "", deal[domain](k)
    tones = [mean(row, half) * (1 if direction == "praise" else -1) for row in texts]
    found.append(
      Comparison(
        prompt=instruction(_pick(rng, templates[domain]), direction, start),
        completions=tuple(rest(row, start) for row in texts),
        ranks=ranks(tones),
        id=f"{half}/{domain}/{n}",
        source=domain,
        use_case=direction,
        labeler=f"half-{half}",
      )
    )
  return found


def ranks(values: Sequence[float]) -> tuple[int, ...]:
  """1 for the highest value; equal values share a rank, and the next one counts them (1, 2, 2, 4)."""
  return tuple(1 + sum(other > value for other in values) for value in values)


def prompts(
  rng: np.random.Generator, rows: dict[str, list[Rated]], templates: dict, size: int, share: float
) -> list[Prompt]:
  """Instructions without a text; `share` of them give first words that several texts begin with."""
  starts = {
    domain: [[s for row in texts if (s := opening(row, n)) in usual(domain)] or [""] for n in (1, 2, 3)]
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
    held_out = _hash("article", str(seed), key) / 2**64 < valid
    sides[held_out].append(Text(" ".join(sentences), id=f"nyt/{key}", source="nyt"))
  return sides


def _pick(rng: np.random.Generator, options: Sequence):
  return options[int(rng.integers(len(options)))]


def _dealer(rng: np.random.Generator, texts: list[Rated]):
  """A function that deals k texts from a shuffled deck, shuffled anew when fewer are left."""
  deck: list[Rated] = []

  def deal(k: int) -> list[Rated]:
    if len(texts) < k:
      raise UserError(f"a comparison of {k} texts asked for, {len(texts)} there are; allow longer texts")
    if len(deck) < k:
      deck[:] = [texts[i] for i in rng.permutation(len(texts))]
    return [deck.pop() for _ in range(k)]

  return deal


def _openings(texts: list[Rated]) -> list[tuple[str, list[Rated]]]:
  """First words (one or two) that K[0] or more texts share, with these; an entry for every K[0] of them."""
  groups: dict[str, list[Rated]] = defaultdict(list)
  for row in texts:
    for words in (1, 2):
      groups[opening(row, words)].append(row)
  groups.pop("", None)
  return [(start, same) for start, same in groups.items() for _ in range(len(same) // K[0])]
