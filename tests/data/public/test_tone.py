"""The quickstart's data: the shipped table, and what keeps training and evaluation apart."""

import gzip
import hashlib
import importlib.util
from collections import Counter
from importlib import resources
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest

from instructjax.data.public import tone
from instructjax.data.public import tone_measures as measures
from instructjax.data.records import records
from instructjax.errors import UserError

SIZES = tone.Sizes(
  demonstrations=120, comparisons=60, gold=60, prompts=80, test_prompts=24, test_comparisons=12
)


@pytest.fixture(scope="module")
def tasks():
  return tone.tasks(0, SIZES)


def words(text: str) -> str:
  return "".join(c for c in text.lower() if c.isalnum() or c == "_")


def texts(part) -> set[str]:
  """Returns the texts of demonstrations or comparisons, spelled without spaces and signs."""
  sentences = set()
  for record in part:
    is_demonstration = isinstance(record, records.Demonstration)
    completions = (record.completion,) if is_demonstration else record.completions
    sentences |= {words(text) for text in completions}
  return sentences


def script():
  path = Path(__file__).parents[3] / "scripts" / "build_tone_table.py"
  spec = importlib.util.spec_from_file_location("build_tone_table", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


# --- the table ---


def test_the_table_is_the_one_that_the_script_builds():
  packed = resources.files("instructjax.data.public").joinpath(tone.TABLE).read_bytes()
  content = gzip.decompress(packed)
  assert hashlib.sha256(content).hexdigest() == script().TABLE_SHA256
  assert packed == gzip.compress(content, compresslevel=9, mtime=0)


def test_the_script_refuses_another_source(tmp_path):
  with pytest.raises(SystemExit, match="the source has sha256"):
    script().build(b"something else", tmp_path / "table.gz")
  assert not (tmp_path / "table.gz").exists()


def test_the_table_holds_four_domains_and_the_ratings_of_at_least_fourteen_people():
  rows = tone.load()
  domains = {row.domain for row in rows}
  assert domains == {"movies", "tweets", "amazon", "nyt"}
  counts = {domain: sum(row.domain == domain for row in rows) for domain in domains}
  assert counts == {"movies": 10_605, "tweets": 4_001, "amazon": 3_708, "nyt": 5_190}
  assert min(len(row.ratings) for row in rows) >= 14
  assert all(-4 <= rating <= 4 for row in rows for rating in row.ratings)
  assert not any("&amp;" in row.text or row.text.startswith("@anonymous") for row in rows)


def test_the_halves_share_no_rater_and_hold_all_of_them():
  row = tone.Rated("movies", "7", "a text", (4, -4, 3, -3, 2))
  a, b = tone.mean(row, "a"), tone.mean(row, "b")
  assert {a, b} == {3.0, -3.5}  # raters 0, 2, 4 and raters 1, 3
  assert tone.mean(row) == pytest.approx(0.4)
  firsts = [tone.mean(tone.Rated("movies", str(i), "t", (4, -4)), "a") for i in range(200)]
  # The first rater is in either half with the same probability.
  assert 70 < sum(first > 0 for first in firsts) < 130


def test_equal_texts_are_in_the_same_split_and_the_seed_draws_another():
  review = tone.Rated("movies", "1", "A good film!", (1,))
  tweet = tone.Rated("tweets", "2", "a GOOD film", (2,))
  splits = [tone.split(review, seed) for seed in range(40)]
  assert splits == [tone.split(tweet, seed) for seed in range(40)]
  assert len(set(splits)) >= 4
  rows = [row for row in tone.load() if row.domain == "movies"]
  shares = {name: np.mean([tone.split(row, 0) == name for row in rows]) for name in tone.SPLITS}
  assert shares == pytest.approx(tone.SPLITS, abs=0.02)


# --- what is kept apart ---


def test_no_text_is_in_two_parts(tasks):
  test = [c for part in tasks.test_comparisons.values() for c in part]
  parts = [texts(part) for part in (tasks.demonstrations, tasks.comparisons, tasks.gold, test)]
  assert all(len(part) > 50 for part in parts)
  assert not any(parts[i] & parts[j] for i in range(4) for j in range(i))


def test_product_reviews_are_in_no_training_data(tasks):
  for part in (tasks.demonstrations, tasks.comparisons, tasks.gold, tasks.prompts):
    assert {record.source for record in part} == {"movies", "tweets"}
  assert set(tasks.test_prompts) == set(tasks.test_comparisons) == {"movies", "tweets", "amazon"}


def test_the_prompts_of_the_evaluation_have_templates_of_their_own(tasks):
  stem = lambda record: record.prompt.partition(" Begin with ")[0]
  train = {
    stem(r) for part in (tasks.demonstrations, tasks.comparisons, tasks.prompts) for r in part
  }
  test = {
    stem(r)
    for part in (*tasks.test_prompts.values(), *tasks.test_comparisons.values())
    for r in part
  }
  assert train and test and not train & test


def test_articles_are_whole_and_on_one_side():
  train, valid = tone.articles(0)
  assert not {row.id for row in train} & {row.id for row in valid}
  sentences = sum(row.domain == "nyt" for row in tone.load())
  assert len(train) + len(valid) < sentences / 4
  assert 0.05 < len(valid) / (len(train) + len(valid)) < 0.3


def test_labels_come_from_half_a_and_gold_from_half_b(tasks):
  for part, half in ((tasks.comparisons, "a"), (tasks.gold, "b")):
    for record in part:
      sign = 1 if record.use_case == "praise" else -1
      assert record.ranks == tone.ranks(
        [sign * tone.mean(row, half) for row in measures.rated(record)]
      )


# --- the records ---


def test_comparisons_come_in_pairs_that_praise_and_criticise_the_same_texts(tasks):
  def better_pairs(ranks):
    pairs = permutations(range(len(ranks)), 2)
    return {(i, j) for i, j in pairs if ranks[i] < ranks[j]}

  for praise, criticism in zip(tasks.comparisons[::2], tasks.comparisons[1::2], strict=True):
    assert praise.completions == criticism.completions
    assert (praise.use_case, criticism.use_case) == tone.DIRECTIONS
    assert tone.K[0] <= len(praise.completions) <= tone.K[1]
    reversed_pairs = {(j, i) for i, j in better_pairs(criticism.ranks)}
    assert better_pairs(praise.ranks) == reversed_pairs
  assert {len(c.completions) for c in tasks.comparisons} >= {4, 5, 6, 7, 8, 9}


def test_ranks_share_ties():
  assert tone.ranks([1.0, 3.0, 3.0, -1.0]) == (3, 1, 1, 4)
  assert tone.ranks([2.0, 2.0]) == (1, 1)


def test_the_texts_of_a_comparison_span_the_tones():
  rows = [tone.Rated("movies", str(i), f"text {i}", (i - 4,)) for i in range(8)]
  for seed in range(20):
    texts_of_all_tones = tone._spread(np.random.default_rng(seed), rows, 4, "all", Counter())
    assert sorted((row.ratings[0] + 4) // 2 for row in texts_of_all_tones) == [0, 1, 2, 3]
  with pytest.raises(UserError, match="a comparison of 4 texts is asked for, but there are 3"):
    tone._spread(np.random.default_rng(0), rows[:3], 3, "all", Counter())


def test_demonstrations_are_clear_and_follow_their_instruction(tasks):
  rated = {(row.domain, row.text): row for row in tone.load()}
  for record in tasks.demonstrations:
    row = rated[record.source, record.completion]
    value = tone.mean(row, "a")
    assert abs(value) >= tone.CLEAR and (value > 0) == (record.use_case == "praise")
    start = tone.asked_start(record.prompt)
    assert record.completion.startswith(start)


def test_texts_are_drawn_as_often_as_each_other():
  rows = [tone.Rated("movies", str(i), f"text {i}", (i - 4,)) for i in range(8)]
  used = Counter()
  for draw in range(3):
    tone._spread(np.random.default_rng(draw), rows, 4, "all", used)
    tone._spread(np.random.default_rng(draw), rows, 4, "all", used)
    assert set(used.values()) == {draw + 1} and len(used) == 8


def test_prompts_come_in_pairs_and_some_ask_for_first_words(tasks):
  for part in (tasks.prompts, *tasks.test_prompts.values()):
    starts = [tone.asked_start(record.prompt) for record in part]
    assert 0.1 < sum(map(bool, starts)) / len(part) < 0.6
    for praise, criticism in zip(part[::2], part[1::2], strict=True):
      assert (praise.use_case, criticism.use_case) == tone.DIRECTIONS
      assert praise.source == criticism.source and praise.prompt != criticism.prompt
      assert tone.asked_start(praise.prompt) == tone.asked_start(criticism.prompt)
  templates = {pair for pairs in tone.TRAIN.values() for pair in pairs}
  first, second = (record.prompt.partition(" Begin with ")[0] for record in tasks.prompts[:2])
  assert (first, second) in templates


def test_first_words_that_are_asked_for_leave_the_tone_open():
  rows = [row for row in tone.load() if row.domain == "movies"]
  starts = tone.open_beginnings("movies")
  assert "The film" in starts and "" not in starts
  for start in ("The film", "It's a"):
    tones = {tone.mean(row) > 0 for row in rows if row.text.startswith(f"{start} ")}
    assert tones == {True, False}
  assert tone.asked_start('Praise the film. Begin with "It\'s a".') == "It's a"
  assert tone.asked_start("Praise the film.") == ""


def test_people_answer_the_test_prompts_clearly_and_in_the_tone(tasks):
  rated = {(row.domain, row.text): row for row in tone.load()}
  for part in tasks.test_prompts.values():
    for record in part:
      value = tone.mean(rated[record.source, record.completion])
      assert abs(value) >= tone.CLEAR and (value > 0) == (record.use_case == "praise")
  parts = [texts(part) for part in tasks.test_prompts.values()]
  trained = texts(tasks.demonstrations) | texts(tasks.comparisons) | texts(tasks.gold)
  assert not any(part & trained for part in parts[:2])


def test_the_same_seed_gives_the_same_tasks_and_another_one_others(tasks):
  assert tone.tasks(0, SIZES) == tasks
  tasks_of_another_seed = tone.tasks(1, SIZES)
  assert tasks_of_another_seed.comparisons != tasks.comparisons
  assert tasks_of_another_seed.text_valid != tasks.text_valid


def test_too_many_are_refused():
  with pytest.raises(UserError, match=r"100000 demonstrations are asked for, but there are \d+"):
    tone.tasks(0, SIZES._replace(demonstrations=100_000))


def test_what_is_written_can_be_read(tasks, tmp_path):
  paths = tone.write(tmp_path, tasks)
  names = {path.stem: path for path in paths}
  assert records.read(names["comparisons"], "comparison") == tasks.comparisons
  assert records.read(names["test_prompts_amazon"], "demonstration") == tasks.test_prompts["amazon"]
  assert len(names) == 5 + 1 + 6


@pytest.mark.parametrize(
  ("text", "n", "expected"),
  [
    ("It is a good film indeed", 2, "It is"),
    ("It is good", 1, ""),  # fewer than three words are left
    ("WOW it is a film", 1, ""),
    ("Don't see it at all", 1, "Don't"),
    ("42 reasons to see it", 1, ""),
  ],
)
def test_openings(text, n, expected):
  assert tone.opening(tone.Rated("movies", "1", text, (1,)), n) == expected


def test_every_template_has_two_directions():
  pairs = [pair for part in (tone.TRAIN, tone.TEST) for pairs in part.values() for pair in pairs]
  for praise, criticism in pairs:
    assert praise != criticism
    assert all(text[-1] in ".?" and "\n" not in text for text in (praise, criticism))


def test_the_shares_of_the_splits_sum_to_one():
  shares = list(tone.SPLITS.values())
  assert all(a < b for a, b in pairwise(np.cumsum(shares)))
  assert sum(shares) == pytest.approx(1)
