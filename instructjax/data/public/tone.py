"""Instructions with a tone, ranked by people: the data of the quickstart.

Each prompt asks for one sentence of a film review, a tweet or a product review that praises or
criticises. The completions are real sentences that 14 to 99 people rated from -4 to 4 (Hutto and
Gilbert 2014; see NOTICE). The human ranking for "praise" is therefore the order of the mean
ratings, and for "criticise" its reverse. Ties are kept.

Four things keep training and evaluation apart:

  texts
      Every text belongs to one of SPLITS, by the hash of its letters and the seed. Equal texts
      belong to the same one.
  raters
      The ratings of each text are halved. Half "a" labels the training data, and half "b" the gold
      comparisons.
  templates
      TRAIN words the prompts of the training data, and TEST the prompts and comparisons of the
      evaluation.
  domains
      Product reviews ("amazon") are in no training data.

Editorials ("nyt") are the pretraining text. An article is as a whole on one side of the split.
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
from instructjax.data.public.tone_templates import TEST, TRAIN, Template, Templates
from instructjax.data.records import records
from instructjax.data.records.records import Comparison, Demonstration, Prompt, Text
from instructjax.errors import UserError

# The table of rated texts, which is shipped in this folder. scripts/build_tone_table.py makes it.
TABLE = "tone_ratings.tsv.gz"
# The parts of the data and the share of the texts in each. They sum to 1.
SPLITS = {
  "sft": 0.20,
  "reward": 0.36,
  "ppo": 0.04,
  "gold": 0.26,
  "test": 0.14,
}
DIRECTIONS = ("praise", "criticise")
# The smallest and the largest number of completions of a comparison. It is drawn uniformly.
K = (4, 9)
# The mean rating of a demonstration is at least this far from 0.
CLEAR = 1.0


class Rated(NamedTuple):
  """A text with the ratings that people gave it: one integer from -4 to 4 a person."""

  domain: str
  id: str
  text: str
  ratings: tuple[int, ...]


class Sizes(NamedTuple):
  """How many records of each kind to make, and how long the texts may be."""

  demonstrations: int = 480
  comparisons: int = 200
  gold: int = 200
  prompts: int = 1024
  test_prompts: int = 96  # for each domain
  test_comparisons: int = 40  # for each domain
  words: tuple[int, int] = (5, 14)  # the shortest and the longest text, in words
  opening: float = 0.3  # the share of the prompts that give the first words


QUICKSTART = Sizes()


class Tasks(NamedTuple):
  """All records of the quickstart."""

  demonstrations: list[Demonstration]
  comparisons: list[Comparison]  # ranked by half "a" of the raters
  gold: list[Comparison]  # ranked by half "b": other texts, and the templates of TRAIN and TEST
  prompts: list[Prompt]
  test_prompts: dict[str, list[Demonstration]]  # by domain, each with the answer of a person
  test_comparisons: dict[str, list[Comparison]]  # by domain, ranked by all raters
  text_train: list[Text]
  text_valid: list[Text]


# --- the table ---


@functools.cache
def load() -> tuple[Rated, ...]:
  """Returns the shipped table with clean texts.

  HTML entities become characters, and a tweet loses the names at its start that it answers to.
  """
  path = resources.files("instructjax.data.public").joinpath(TABLE)
  content = gzip.decompress(path.read_bytes()).decode()
  rows = []
  # The first line names the columns, and nothing follows the last newline.
  for line in content.split("\n")[1:-1]:
    domain, key, digits, text = line.split("\t")
    text = " ".join(html.unescape(text).split())
    if domain == "tweets":
      text = re.sub(r"^(@anonymous[\s:,]*)+", "", text)
    if domain == "amazon":
      # These were all put into small letters.
      text = re.sub(r"\bi\b", "I", text)
      text = text[:1].upper() + text[1:]
    # A digit is a rating plus 4, so that one character is enough.
    ratings = tuple(int(digit) - 4 for digit in digits)
    rows.append(Rated(domain, key, text, ratings))
  return tuple(rows)


def usable(row: Rated, words: tuple[int, int]) -> bool:
  """Returns whether a text can be a completion.

  Its number of words is in the range `words`, both ends included, and it has no names of users, no
  links and no hash tags.
  """
  fits = words[0] <= len(row.text.split()) <= words[1]
  return fits and not re.search(r"@|http|#|\bRT\b|\bbit\.ly", row.text)


def mean(row: Rated, half: str = "all") -> float:
  """Returns the mean rating by half "a" or "b" of the raters of a text, or by all of them.

  The raters alternate between the halves. A hash of the text's id says in which half the first
  rater is, so that the additional rater of an odd number is not always in the same half.
  """
  if half == "all":
    return sum(row.ratings) / len(row.ratings)
  first = (number("half", row.domain, row.id) + (half == "b")) % 2
  part = row.ratings[first::2]
  return sum(part) / len(part)


def split(row: Rated, seed: int) -> str:
  """Returns the name in SPLITS that a text belongs to.

  A hash of its letters decides, so that texts with equal words stay together.
  """
  letters = re.sub(r"\W+", "", row.text.lower())
  # The hash has 64 bits, so this is uniform in [0, 1).
  position = number("split", str(seed), letters) / 2**64
  edges = np.cumsum(list(SPLITS.values()))[:-1]
  return list(SPLITS)[int(np.searchsorted(edges, position, side="right"))]


def parts(
  seed: int, words: tuple[int, int] = QUICKSTART.words
) -> dict[tuple[str, str], list[Rated]]:
  """Returns the usable texts by (domain, name of the split)."""
  texts = defaultdict(list)
  for row in load():
    if usable(row, words):
      texts[row.domain, split(row, seed)].append(row)
  return texts


# --- tasks ---


def tasks(seed: int = 0, sizes: Sizes = QUICKSTART) -> Tasks:
  """Returns all the data of a quickstart. The same seed and sizes give the same records.

  Raises:
    UserError: if a part of the data has fewer texts than are asked for.
  """
  texts = parts(seed, sizes.words)

  def generator(name: str) -> np.random.Generator:
    # Each kind of record has draws of its own, so that the size of one never changes another.
    return np.random.default_rng(number(name, str(seed)))

  def training_texts(name: str) -> dict[str, list[Rated]]:
    return {domain: texts[domain, name] for domain in TRAIN}

  test_texts = training_texts("test")
  # No product review is trained on, so all of them can be used for the evaluation.
  test_texts["amazon"] = [row for name in SPLITS for row in texts["amazon", name]]

  test_prompts, test_comparisons = {}, {}
  for domain in TEST:
    rows = {domain: test_texts[domain]}
    asked = prompts(
      generator("prompts" + domain),
      rows,
      TEST,
      size=sizes.test_prompts,
      share=sizes.opening,
    )
    people = generator("people" + domain)
    test_prompts[domain] = answered_by_people(people, asked, test_texts[domain])
    test_comparisons[domain] = comparisons(
      generator("test" + domain),
      rows,
      TEST,
      half="all",
      size=sizes.test_comparisons,
      share=sizes.opening,
    )
  text_train, text_valid = articles(seed)
  return Tasks(
    demonstrations=demonstrations(generator("sft"), training_texts("sft"), sizes),
    comparisons=comparisons(
      generator("reward"),
      training_texts("reward"),
      TRAIN,
      half="a",
      size=sizes.comparisons,
      share=sizes.opening,
    ),
    gold=comparisons(
      generator("gold"),
      training_texts("gold"),
      # The gold model scores answers to the prompts of both.
      {domain: TRAIN[domain] + TEST[domain] for domain in TRAIN},
      half="b",
      size=sizes.gold,
      share=sizes.opening,
    ),
    prompts=prompts(
      generator("ppo"),
      training_texts("ppo"),
      TRAIN,
      size=sizes.prompts,
      share=sizes.opening,
    ),
    test_prompts=test_prompts,
    test_comparisons=test_comparisons,
    text_train=text_train,
    text_valid=text_valid,
  )


def write(folder: str | Path, all_tasks: Tasks) -> list[Path]:
  """Writes the tasks as JSONL files, one for each kind and test domain, and returns their paths."""
  files: dict[str, list] = {}
  for name, part in all_tasks._asdict().items():
    if isinstance(part, dict):
      files.update({f"{name}_{domain}": rows for domain, rows in part.items()})
    else:
      files[name] = part
  paths = []
  for name, rows in files.items():
    path = Path(folder) / f"{name}.jsonl"
    records.write(path, rows)
    paths.append(path)
  return paths


# --- first words ---


def instruction(template: Template, direction: str, start: str = "") -> str:
  """Returns a prompt: a template in its direction, and the first words that it asks for, if any."""
  text = template[DIRECTIONS.index(direction)]
  return f'{text} Begin with "{start}".' if start else text


def asked_start(prompt: str) -> str:
  """Returns the first words that a prompt asks for, or ""."""
  _, _, rest = prompt.partition('Begin with "')
  return rest.removesuffix('".')


def opening(row: Rated, words: int) -> str:
  """Returns the first words of a text, or "" where they are no good beginning.

  Words that are long or shouted or hold more than letters are none, and neither are words that
  leave fewer than three to follow.
  """
  text = row.text.split()
  # At most nine small letters, perhaps after a capital, and an ending such as 't or 're.
  pattern = r"[A-Z]?[a-z]{0,9}(?:'[a-z]{1,2})?"
  is_plain = all(re.fullmatch(pattern, word) for word in text[:words])
  return " ".join(text[:words]) if is_plain and len(text) - words >= 3 else ""


@functools.cache
def open_beginnings(domain: str, least: int = 3) -> frozenset[str]:
  """Returns the beginnings of one to three words that leave the tone of a sentence open.

  At least `least` texts of the domain begin so that people rated above 0, and as many below.
  """
  counts: Counter[tuple[str, bool]] = Counter()
  for row in load():
    if row.domain == domain and mean(row) != 0:
      is_positive = mean(row) > 0
      counts.update({(opening(row, words), is_positive) for words in (1, 2, 3)})
  positive = {start for (start, is_positive), n in counts.items() if is_positive and n >= least}
  negative = {start for (start, is_positive), n in counts.items() if not is_positive and n >= least}
  return frozenset(positive & negative - {""})


# --- records ---


def demonstrations(
  rng: np.random.Generator, rows: dict[str, list[Rated]], sizes: Sizes
) -> list[Demonstration]:
  """Returns texts that half "a" rated clearly, each with an instruction that it follows.

  Raises:
    UserError: if there are fewer such texts than `sizes.demonstrations`.
  """
  candidates = []
  for domain, texts in rows.items():
    for row in texts:
      tone = mean(row, "a")
      if abs(tone) < CLEAR:
        continue
      direction = DIRECTIONS[int(tone < 0)]
      start = ""
      if rng.random() < sizes.opening:
        start = opening(row, int(rng.integers(1, 4)))
      template = _pick(rng, TRAIN[domain])
      demonstration = Demonstration(
        prompt=instruction(template, direction, start),
        completion=row.text,
        id=f"sft/{domain}/{row.id}",
        source=domain,
        use_case=direction,
      )
      candidates.append(demonstration)
  if sizes.demonstrations > len(candidates):
    raise UserError(
      f"{sizes.demonstrations} demonstrations are asked for, but there are {len(candidates)}; ask "
      "for fewer"
    )
  order = rng.permutation(len(candidates))
  return [candidates[index] for index in order[: sizes.demonstrations]]


def comparisons(
  rng: np.random.Generator,
  rows: dict[str, list[Rated]],
  templates: Templates,
  half: str,
  size: int,
  share: float,
) -> list[Comparison]:
  """Returns comparisons of K texts of one domain, ranked by the mean rating of `half`.

  The same texts come twice in a row, to be praised and to be criticised, so that no text is good in
  itself. They are drawn from K equal parts of the texts in the order of their tone. Where the
  prompt gives the first words, all of them begin with these.

  Args:
    rng: draws the domains, templates and texts.
    rows: the texts by domain.
    templates: the templates by domain.
    half: the raters who rank, "a", "b" or "all".
    size: how many comparisons to return.
    share: the share of them whose prompts give the first words.
  """
  openings = {domain: _openings(texts) for domain, texts in rows.items()}
  domains = list(rows)
  weights = _domain_weights(rows)
  comparisons: list[Comparison] = []
  used: Counter[tuple[str, str]] = Counter()
  while len(comparisons) < size:
    domain = domains[rng.choice(len(domains), p=weights)]
    template = _pick(rng, templates[domain])
    k = int(rng.integers(K[0], K[1] + 1))
    start, candidates = "", rows[domain]
    if rng.random() < share:
      start, candidates = _pick(rng, openings[domain])
    texts = _spread(rng, candidates, min(k, len(candidates)), half, used)
    for direction, sign in zip(DIRECTIONS, (1, -1), strict=True):
      comparison = Comparison(
        prompt=instruction(template, direction, start),
        completions=tuple(row.text for row in texts),
        ranks=ranks([sign * mean(row, half) for row in texts]),
        id=f"{half}/{domain}/{len(comparisons)}",
        source=domain,
        use_case=direction,
        labeler=f"half-{half}",
      )
      comparisons.append(comparison)
  # An odd size leaves out the second direction of the last texts.
  return comparisons[:size]


def ranks(values: Sequence[float]) -> tuple[int, ...]:
  """Returns 1 for the highest value. Equal values share a rank, and the next one counts them.

  [3, 5, 5, 1] gives (3, 1, 1, 4).
  """
  return tuple(1 + sum(value > own for value in values) for own in values)


def prompts(
  rng: np.random.Generator,
  rows: dict[str, list[Rated]],
  templates: Templates,
  size: int,
  share: float,
) -> list[Prompt]:
  """Returns prompts in pairs: the same instruction twice in a row, to praise and to criticise.

  `share` of the pairs ask for first words that leave the tone open.
  """
  # A beginning that more texts have is there more often. Where there is none, the prompt asks for
  # no words.
  starts: dict[str, list[list[str]]] = {}
  for domain, texts in rows.items():
    starts[domain] = []
    for words in (1, 2, 3):
      openings = [opening(row, words) for row in texts]
      open_ones = [start for start in openings if start in open_beginnings(domain)]
      starts[domain].append(open_ones or [""])
  domains = list(rows)
  weights = _domain_weights(rows)
  prompts: list[Prompt] = []
  while len(prompts) < size:
    domain = domains[rng.choice(len(domains), p=weights)]
    template = _pick(rng, templates[domain])
    start = ""
    if rng.random() < share:
      start = _pick(rng, _pick(rng, starts[domain]))
    for direction in DIRECTIONS:
      prompt = Prompt(
        instruction(template, direction, start),
        id=f"prompt/{domain}/{len(prompts)}",
        source=domain,
        use_case=direction,
      )
      prompts.append(prompt)
  # An odd size leaves out the second direction of the last instruction.
  return prompts[:size]


def answered_by_people(
  rng: np.random.Generator,
  asked: Sequence[Prompt],
  texts: Sequence[Rated],
) -> list[Demonstration]:
  """Returns prompts of one domain with sentences that people wrote.

  A sentence is one that its raters found clearly in the tone that is asked for. Where a prompt asks
  for first words that none has, it is a sentence with other words.
  """
  pools = {"praise": [], "criticise": []}
  for index in rng.permutation(len(texts)):
    tone = mean(texts[index])
    if abs(tone) >= CLEAR:
      pools[DIRECTIONS[int(tone < 0)]].append(texts[index])
  answered = []
  for prompt in asked:
    pool = pools[str(prompt.use_case)]
    start = asked_start(prompt.prompt)
    fitting = [row for row in pool if row.text.startswith(f"{start} ")] if start else pool
    row = (fitting or pool)[0]
    # It may come again when all others have.
    pool.remove(row)
    pool.append(row)
    answer = Demonstration(
      prompt=prompt.prompt,
      completion=row.text,
      id=prompt.id,
      source=prompt.source,
      use_case=prompt.use_case,
    )
    answered.append(answer)
  return answered


def articles(seed: int = 0, valid: float = 0.15) -> tuple[list[Text], list[Text]]:
  """Returns the editorials as whole articles: those for training and those for validation."""
  sentences_by_article: dict[str, list[str]] = defaultdict(list)
  for row in load():
    if row.domain == "nyt":
      # The id of a sentence is that of its article, "_" and a number.
      sentences_by_article[row.id.split("_")[0]].append(row.text)
  text_train, text_valid = [], []
  for key, sentences in sentences_by_article.items():
    text = Text(" ".join(sentences), id=f"nyt/{key}", source="nyt")
    held_out = number("article", str(seed), key) / 2**64 < valid
    (text_valid if held_out else text_train).append(text)
  return text_train, text_valid


# --- draws ---


def _domain_weights(rows: dict[str, list[Rated]]) -> np.ndarray:
  """Returns the probability of each domain, in proportion to the number of its texts."""
  counts = np.array([len(texts) for texts in rows.values()], float)
  return counts / counts.sum()


def _pick(rng: np.random.Generator, options: Sequence):
  return options[int(rng.integers(len(options)))]


def _spread(
  rng: np.random.Generator,
  texts: Sequence[Rated],
  k: int,
  half: str,
  used: Counter[tuple[str, str]],
) -> list[Rated]:
  """Returns k texts, one of each of k equal parts of `texts` in the order of their tone.

  Of each part it is a text that was drawn least often, as `used` counts, and it is counted there.

  Raises:
    UserError: if k is smaller than K[0], because there are not enough texts.
  """
  if k < K[0]:
    raise UserError(
      f"a comparison of {K[0]} texts is asked for, but there are {len(texts)}; allow longer texts"
    )
  order = sorted(texts, key=lambda row: mean(row, half))
  edges = [len(order) * i // k for i in range(k + 1)]
  chosen = []
  for i in rng.permutation(k):
    part = order[edges[i] : edges[i + 1]]
    least = min(used[row.domain, row.id] for row in part)
    text = _pick(rng, [row for row in part if used[row.domain, row.id] == least])
    used[text.domain, text.id] += 1
    chosen.append(text)
  return chosen


def _openings(texts: list[Rated]) -> list[tuple[str, list[Rated]]]:
  """Returns the first words, one or two, that K[0] or more texts share, with these texts.

  A beginning has an entry for every K[0] of its texts, so that a frequent one is drawn more often.
  """
  groups: dict[str, list[Rated]] = defaultdict(list)
  for row in texts:
    for words in (1, 2):
      groups[opening(row, words)].append(row)
  # "" stands for texts without a good beginning.
  groups.pop("", None)
  entries = []
  for start, same in groups.items():
    entries += [(start, same)] * (len(same) // K[0])
  return entries
