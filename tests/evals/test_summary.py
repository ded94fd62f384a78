"""Estimates by hand: clusters, items without a score, corpus metrics, differences, slices."""

import math

import numpy as np
import pytest

from instructjax import intervals
from instructjax.evals import paper, summary
from instructjax.evals.tasks import Item, Metric, Task, ratio

ITEMS = [Item(str(i), {}, cluster="ab"[i // 3], slices={"kind": "xy"[i % 2]}) for i in range(6)]
MEAN = Metric("m")
RATIO = Metric("r", of=lambda sums: 100 * sums[..., 0] / sums[..., 1])


def scores(values, name="m"):
  return [{name: v} for v in values]


def test_a_mean_leaves_out_what_has_no_score():
  estimate = summary.estimate(MEAN, ITEMS, scores([1.0, None, 0.0, 1.0, 1.0, None]))
  assert estimate.value == 0.75 and estimate.n == 4
  assert summary.estimate(MEAN, ITEMS, scores([None] * 6)).n == 0
  assert math.isnan(summary.estimate(MEAN, ITEMS, [{}] * 6).value)


def test_clusters_are_the_rows_not_items():
  """Two clusters of three equal scores say next to nothing."""
  estimate = summary.estimate(MEAN, ITEMS, scores([0, 0, 0, 1, 1, 1]))
  assert estimate.value == 0.5 and estimate.low < 0.01 and estimate.high > 0.99
  assert (estimate.n, estimate.clusters) == (6, 2)
  alone = [Item(str(i), {}) for i in range(6)]
  narrow = summary.estimate(MEAN, alone, scores([0, 0, 0, 1, 1, 1]))
  assert narrow[:3] == intervals.mean(np.array([0, 0, 0, 1, 1, 1]))[:3] and narrow.low > 0


def test_a_corpus_metric_is_of_sums():
  estimate = summary.estimate(
    RATIO, ITEMS, scores([[1, 2], [0, 4], [3, 4], [0, 1], [1, 1], [0, 8]], "r")
  )
  assert (
    estimate.value == pytest.approx(100 * 5 / 20)
    and estimate.low <= estimate.value <= estimate.high
  )


def test_a_difference_is_paired():
  rng = np.random.default_rng(0)
  base = rng.normal(size=200) * 10
  items = [Item(str(i), {}) for i in range(200)]
  difference = summary.difference(MEAN, items, scores(base + 1), scores(base))
  assert (
    difference.value == pytest.approx(1)
    and difference.high - difference.low < 1e-9
    and difference.n == 200
  )
  apart = summary.difference(MEAN, items, scores([*base[:100], *[None] * 100]), scores(base))
  assert apart.value == 0 and apart.n == 100


def test_slices_hold_their_own_items():
  task = Task("t", ITEMS, lambda item: [], lambda items, replies: [], (MEAN,))
  slices = summary.slices(task, {"sft": scores([1, 0, 1, 0, 1, 0])})
  assert slices["kind"]["x"]["sft"]["m"].value == 1 and slices["kind"]["y"]["sft"]["m"].value == 0
  assert slices["kind"]["x"]["sft"]["m"].n == 3
  both = {"sft": scores([1, 0, 1, 0, 1, 0]), "ppo": scores([1] * 6)}
  assert set(summary.differences(task, both, "sft")) == {"ppo"}
  assert summary.differences(task, both, "sft")["ppo"]["m"].value == 0.5


@pytest.mark.parametrize("groups", [8, 40])
def test_the_interval_covers_the_truth(groups):
  """The scores are clustered: an interval over items would be far too narrow."""
  rng = np.random.default_rng(1)
  items = [Item(str(i), {}, cluster=str(i // 5)) for i in range(5 * groups)]
  hits = 0
  for seed in range(60):
    values = np.repeat(rng.normal(size=groups), 5) + 0.1 * rng.normal(size=5 * groups)
    estimate = summary.estimate(MEAN, items, scores(values), seed)
    hits += estimate.low <= 0 <= estimate.high
  assert hits >= 54  # .95 of 60 is 57


def test_a_share_of_parts_is_no_corpus_metric():
  """None of 24 answers of 3 sentences has an unsupported one; the interval has a width."""
  items = [Item(str(i), {}, cluster=str(i)) for i in range(24)]
  estimate = summary.estimate(Metric("s", of=ratio), items, scores([[0, 3]] * 24, "s"))
  assert (estimate.value, estimate.n, estimate.clusters) == (0, 24, 24)
  assert 0.04 < estimate.high < 0.138


def test_the_paper_is_corrected():
  assert paper.row("TruthfulQA", "true", "QA + instruction")["GPT"] == [0.34, 0.414, 0.57]  # E10
  with pytest.raises(KeyError):
    paper.row("TLDR", "ROUGE-L", "-")  # E11
  assert paper.beside("ptx", ("SQuADv2", "F1", "few-shot")) == [58.33, 63.78, 69.93]
  assert (
    paper.beside("mine", ("SQuADv2", "F1", "few-shot")) is None
    and paper.beside("sft", None) is None
  )
  assert len(paper.tables()["table14"]) == 32


def test_a_name_may_hold_a_size():
  place = ("SQuADv2", "F1", "few-shot")
  assert paper.split("PTX@1.3B") == ("ptx", "1.3b") and paper.split("ptx") == ("ptx", "")
  assert paper.beside("ptx@6B", place) == [63.78] and paper.sizes("ptx@6B") == ("6B",)
  assert paper.beside("ptx@135m", place) is None and paper.beside("mine@6b", place) is None
  assert paper.theirs("ptx@135m") == "PPO-ptx"
