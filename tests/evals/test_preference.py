"""Preference: hand-worked rates and fits, judges of every kind, labels, resuming, figures."""

import csv
import io
import json
import math
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from instructjax import settings
from instructjax.errors import UserError
from instructjax.evals import card, page, preference, results, rows
from instructjax.evals.preference import (
  agreement,
  bradley_terry,
  figures,
  judgements,
  judges,
  length,
  rates,
  templates,
  votes,
)
from instructjax.evals.preference.judges import Judge
from instructjax.evals.preference.votes import Vote
from instructjax.evals.tasks import Completion, Look, Reply
from instructjax.rewards.endpoint import AgainError

ANSWERS = {  # prompt 0 to 3: lengths 4, 4, 2, 6 against 2, 4, 4, 3
  "sft": ["aa", "same", "aaaa", "aaa"],
  "ppo": ["bbbb", "same", "bb", "bbbbbb"],
  "base": ["c", "cccccc", "ccc", "cccc"],
}
LOOKS = {name: Look(name, 10) for name in ANSWERS} | {"<b>ptx": Look("ptx")}
LONGER = "def longer(prompts, responses):\n  return [len(r.strip()) for r in responses]\n"


def answers_by_task(answers=ANSWERS, task="preference/prompts"):
  say = lambda text: Reply(((Completion(f" {text}", len(text), True),),))
  return {task: {model: [say(text) for text in texts] for model, texts in answers.items()}}


def written(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  rows = [
    {"prompt": f"say {i}{'!' * i}", "use_case": ("qa", "chat")[i % 2], "id": f"p{i}"}
    for i in range(4)
  ]
  written(tmp_path / "prompts.jsonl", rows)
  (tmp_path / "mine.py").write_text(LONGER)
  return settings.replaced(settings.load("eval"), {"preference.prompts": "prompts.jsonl"})


def judged_results(config, folder="out", answers=ANSWERS):
  suite = preference.open_suite(config)
  (task,) = suite.tasks
  assert suite.together is not None
  result = suite.together(Path(folder), answers_by_task(answers, task.name), {})
  json.loads(json.dumps(result, allow_nan=False))  # what results.json can hold
  return result


def vote(prompt, won, a="a", b="b", **rest):
  return Vote(str(prompt), a, b, won if isinstance(won, tuple) else (float(won),), **rest)


# --- rates ---


def test_ties_count_half_and_orders_are_averaged():
  judged = [
    vote(0, (1.0, 1.0)),
    vote(1, (1.0, 0.0)),
    vote(2, (0.5, 1.0)),
    vote(3, (0.0, 0.0)),
    vote(4, (0.5, 0.5)),
  ]
  draws = votes.draw(judged)
  row = rates.rates_against("a", "b", judged, draws)
  assert row["rate"]["by_prompt"].value == (1 + 0.5 + 0.75 + 0 + 0.5) / 5
  assert [row[name].value for name in ("wins", "ties", "losses")] == [0.2, 0.6, 0.2]
  assert rates.rates_against("b", "a", judged, draws)["rate"]["by_prompt"].value == pytest.approx(
    1 - 0.55
  )
  order = rates.order_effect(judged)
  # first shown preferred: (a first) 1, 1, .5, 0, .5; (b first) 0, 1, 0, 1, .5
  assert order["first"].value == pytest.approx((3 + 2.5) / 10)
  assert [order[name].value for name in ("inconsistent", "flipped", "tied")] == [0.4, 0.2, 0.3]
  assert rates.order_effect([vote(0, 1)]) is None


def test_votes_of_one_prompt_hang_together():
  rng = np.random.default_rng(0)
  alone = [vote(i, rng.random() < 0.6) for i in range(50)]
  copied = [each for each in alone for _ in range(8)]
  narrow, wide = (votes.share(v, [x.won for x in v]) for v in (alone, copied))
  assert narrow[:3] == pytest.approx(wide[:3], abs=0.01)
  assert (narrow.n, narrow.clusters, wide.n, wide.clusters) == (50, 50, 400, 50)


def test_labelers_are_a_sample_too():
  """One labeler always prefers a, one never: about other labelers nothing is known, however many
  prompts there are.
  """
  judged = [vote(i, labeler == "x", labeler=labeler) for i in range(100) for labeler in ("x", "y")]
  both = votes.shares(judged, [v.won for v in judged])
  assert 0.4 < both["by_prompt"].low < both["by_prompt"].high < 0.6
  assert both["by_both"].low < 0.1 and both["by_both"].high > 0.9
  lone = [vote(i, i % 2, labeler="x") for i in range(10)]
  assert votes.shares(lone, [v.won for v in lone])["by_both"] is None


@pytest.mark.parametrize("labelers", [1, 8])
def test_intervals_cover_the_truth(labelers):
  """Votes of a prompt hang together, and so do those of a labeler."""
  rng, runs, p, covered = np.random.default_rng(1), 200, 0.6, 0
  for _ in range(runs):
    prompt, labeler = (
      rng.normal(0, 0.25, 80),
      rng.normal(0, 0.15, labelers) if labelers > 1 else [0.0],
    )
    judged = [
      vote(i, float(rng.random() < np.clip(p + prompt[i] + labeler[j], 0, 1)), labeler=str(j))
      for i in range(80)
      for j in rng.choice(labelers, min(labelers, 2), replace=False)
    ]
    estimate = votes.main_estimate(votes.shares(judged, [v.won for v in judged]))
    covered += estimate.low <= p <= estimate.high
  assert 0.89 <= covered / runs <= 1.0 if labelers > 1 else 0.91 <= covered / runs <= 0.985


def of_lengths(rng, count, level, slope, ratio, spread):
  """Votes by the model of `length`: answers `ratio` nats longer than a baseline's of 20 to 2,000
  characters.
  """
  theirs = 20 + rng.lognormal(6.0, 0.5, count).astype(int)
  ours = 1 + (theirs * np.exp(rng.normal(ratio, spread, count))).astype(int)
  longer = ours - theirs
  p = bradley_terry.sigmoid(level + slope * np.tanh(longer / longer.std(ddof=1)))
  return [
    vote(
      i,
      float(rng.random() < p[i]),
      ratio=math.log(ours[i] / theirs[i]),
      longer_by=int(longer[i]),
    )
    for i in range(count)
  ]


def test_length_is_held_equal():
  """The rate at equal length is sigmoid(-1) = .269; the judge likes long answers."""
  judged = of_lengths(np.random.default_rng(2), 3000, -1.0, 1.5, 0.4, 0.5)
  controlled = length.rate_at_equal_length(votes.draw(judged, samples=200), judged)
  rate, slope = controlled["rate"], controlled["slope"]
  assert rate.low < bradley_terry.sigmoid(-1.0) < rate.high < np.mean([v.won for v in judged])
  assert rate.high - rate.low < 0.06 and (rate.n, rate.clusters) == (3000, 3000)
  # A part of what the votes tell goes into the slope.
  raw = votes.share(judged, [v.won for v in judged], paired=True)
  assert rate.high - rate.low > 1.1 * (raw.high - raw.low)
  assert slope.low < 1.5 < slope.high and controlled["why"] == ""
  row = rates.rates_against("a", "b", judged[:300], votes.draw(judged[:300], samples=100))
  assert row["controlled"]["rate"].high < 0.5
  assert row["flagged"] == (row["rate"]["by_prompt"].high >= 0.5)


def test_the_difficulty_of_a_prompt_is_a_term():
  rng = np.random.default_rng(5)
  difficulty = rng.normal(size=2000)
  base = of_lengths(rng, 2000, 0.0, 0.0, 0.0, 0.4)
  p = bradley_terry.sigmoid(0.5 + 2.0 * difficulty)
  judged = [v._replace(orders=(float(rng.random() < p[i]),)) for i, v in enumerate(base)]
  draws = votes.draw(judged, samples=50)
  controlled = length.rate_at_equal_length(draws, judged, difficulty)
  assert controlled["rate"].value == pytest.approx(p.mean(), abs=0.025)


def test_the_difficulties_are_those_of_the_other_models():
  """Half of the prompts are hard, and there the model writes short answers: it wins 80 % of the
  easy and 20 % of the hard ones whatever their length. Alone it seems to lose by its short answers.
  """
  rng = np.random.default_rng(8)
  prompts = np.arange(800)
  is_hard = prompts % 2 == 1

  def judged_model(name, short_on_hard):
    ours = 1000 + rng.normal(0, 200, len(prompts)) - 300 * short_on_hard * is_hard
    return [
      vote(i, float(rng.random() < (0.2 if is_hard[i] else 0.8)), name, "sft")._replace(
        ratio=math.log(ours[i] / 1000), longer_by=round(ours[i] - 1000)
      )
      for i in prompts
    ]

  model = judged_model("ppo", 1.0)
  others = [each for n in range(24) for each in judged_model(f"other{n}", 0.0)]
  draws = votes.draw(model + others, samples=30)
  alone = rates.rates_against("ppo", "sft", model, draws)["controlled"]
  assert alone["rate"].value > 0.6 and alone["difficulty_from"] == 0
  among = rates.rates_against("ppo", "sft", model + others, draws)["controlled"]
  assert among["rate"].value == pytest.approx(0.5, abs=0.04) and among["difficulty_from"] == 24
  assert abs(among["slope"].value) < 0.5 < alone["slope"].value
  # The model's own verdicts have no part in the difficulties.
  lost = [each._replace(orders=(0.0,)) for each in model]
  easiness, _ = length.difficulties("ppo", "sft", model + others)
  assert length.difficulties("ppo", "sft", lost + others)[0] == easiness
  values = np.array([easiness[str(i)] for i in prompts])
  # Odds of 4 and of 1/4 against their mean.
  assert values[~is_hard].mean() == pytest.approx(math.log(4), abs=0.25)
  assert abs(values.mean()) < 1e-9


def test_without_support_there_is_no_rate_at_equal_length():
  """AlpacaEval 2's gpt4_gamed: 68 characters against long answers, and almost no win."""
  rng = np.random.default_rng(6)
  theirs = rng.integers(900, 3000, 300)
  judged = [
    vote(i, i % 25 == 0, ratio=math.log(68 / theirs[i]), longer_by=68 - int(theirs[i]))
    for i in range(300)
  ]
  controlled = length.rate_at_equal_length(votes.draw(judged, samples=50), judged)
  assert math.isnan(controlled["rate"].value) and controlled["support"] == 0
  assert controlled["why"].startswith("0 % of the pairs have answers whose lengths are within")
  row = rates.rates_against("a", "b", judged, votes.draw(judged, samples=50))
  assert row["flagged"] is False and row["rate"]["by_prompt"].value == 0.04
  # A fifth of the pairs with answers of a like length, of which few are won: no high rate.
  alike = [v._replace(ratio=0.1, longer_by=20) if i % 5 == 0 else v for i, v in enumerate(judged)]
  supported = length.rate_at_equal_length(votes.draw(alike, samples=50), alike)
  assert supported["rate"].value < 0.3
  few = alike[:4]
  assert "fewer than 5 prompts" in length.rate_at_equal_length(votes.draw(few), few)["why"]
  shifted = [vote(i, i % 2, ratio=0.1, longer_by=20) for i in range(10)]
  assert "by the same length" in length.rate_at_equal_length(votes.draw(shifted), shifted)["why"]


def test_equal_lengths_give_the_raw_rate():
  equal = [vote(i, i % 4 == 0) for i in range(40)]
  controlled = length.rate_at_equal_length(votes.draw(equal), equal)
  assert controlled["rate"] == votes.share(equal, [v.won for v in equal], paired=True)
  assert controlled["rate"].value == 0.25 and controlled["support"] == 1
  won = [vote(i, 1, ratio=0.01 * (i % 3), longer_by=i % 3) for i in range(24)]
  always = length.rate_at_equal_length(votes.draw(won, samples=50), won)["rate"]
  assert always.value > 0.99 and 0.7 < always.low < 0.9  # winning all of 24 is not certainty


def test_the_fit_is_that_of_scikit_learn():
  linear_model = pytest.importorskip("sklearn.linear_model")
  rng = np.random.default_rng(3)
  features = np.stack([np.ones(200), rng.normal(size=200), rng.normal(size=200)], 1)
  won = (rng.random(200) < bradley_terry.sigmoid(features @ [0.3, 1.0, 0.02])).astype(float)
  for strength in (0.05, 1.0):
    ours = length.fit(features, won, np.ones((1, 200)), np.array([strength]))[0]
    theirs = linear_model.LogisticRegression(
      C=strength, l1_ratio=1.0, solver="saga", max_iter=20_000, tol=1e-8
    ).fit(features[:, 1:], won)
    expected = [*theirs.intercept_, *theirs.coef_[0]]
    np.testing.assert_allclose(ours, expected, atol=1e-3)
  assert length.fit(features, won, np.ones((1, 200)), np.array([0.05]))[0, 2] == 0


def test_logistic_regression_has_the_likeliest_coefficients():
  rng = np.random.default_rng(3)
  features = np.stack([np.ones(60), rng.normal(size=60)], 1)
  won, weights = rng.integers(0, 3, 60) / 2, rng.integers(0, 3, (2, 60)).astype(float)
  for row, b in zip(weights, length.fit(features, won, weights, np.full(2, 1e9))):
    p = bradley_terry.sigmoid(features @ b)
    np.testing.assert_allclose((row * (won - p)) @ features, 0, atol=1e-4)


def test_slices_and_quartiles():
  assert rates.quartiles([1, 2, 3, 4]) == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
  assert rates.quartiles([2, 2]) == ["", ""]
  judged = [vote(i, i < 3, slices={"use_case": "qa" if i < 2 else "chat"}) for i in range(4)]
  rates_by_value = rates.rates_by_slice(judged)["use_case"]
  assert {name: (e.value, e.n) for name, e in rates_by_value.items()} == {
    "qa": (1.0, 2),
    "chat": (0.5, 2),
  }


# --- Bradley and Terry ---


def test_strengths_by_hand():
  two = bradley_terry.fit(np.array([[0, 3.0], [1, 0]]))
  assert two[0] - two[1] == pytest.approx(math.log(3), abs=1e-5)
  chain = bradley_terry.fit(np.array([[0, 3.0, 0], [1, 0, 3], [0, 1, 0]]))
  assert bradley_terry.sigmoid(chain[0] - chain[2]) == pytest.approx(0.9, abs=1e-5)  # odds 3 x 3


def test_strengths_are_the_likeliest():
  from scipy.optimize import minimize

  wins = np.random.default_rng(4).integers(1, 20, (5, 5)) * (1 - np.eye(5))

  def cost(s):
    gap = s[:, None] - s[None]
    return (wins * np.logaddexp(0, -gap)).sum()

  best = minimize(cost, np.zeros(5), tol=1e-12).x
  np.testing.assert_allclose(bradley_terry.fit(wins), best - best.mean(), atol=1e-4)
  np.testing.assert_allclose(bradley_terry.fit(wins[None].repeat(3, 0))[2], bradley_terry.fit(wins))


def test_a_model_that_never_lost_has_no_strength():
  judged = [vote(i, 1.0) for i in range(5)]
  fit = bradley_terry.strengths_and_rates(["a", "b"], judged, votes.draw(judged), "b")
  assert "a, b won or lost every comparison" in fit["why"] and not fit["strength"]
  assert bradley_terry.is_connected(np.array([[0, 1, 0], [0, 0, 1], [1.0, 0, 0]]))
  assert not bradley_terry.is_connected(np.array([[0, 1, 1], [1, 0, 1], [0.0, 0, 0]]))
  wide = bradley_terry.fit(np.array([[0, 50.0], [0, 0]]))
  assert np.isfinite(wide).all() and wide[0] - wide[1] > 10


def three(direct, count=400):
  """a against c 80:20, b against c 50:50, so a against b should be 80:20."""
  split = lambda a, b, p: [vote(f"{a}{b}{i}", i < p * count, a, b) for i in range(count)]
  return split("a", "c", 0.8) + split("b", "c", 0.5) + split("a", "b", direct)


def test_direct_rates_agree_with_those_by_the_baseline_or_not():
  judged = three(0.8)
  comparison = bradley_terry.consistency("a", "b", "c", judged, votes.draw(judged))
  assert (
    comparison["implied"].value == pytest.approx(0.8)
    and comparison["agree"]
    and abs(comparison["z"]) < 1e-6
  )
  judged = three(0.6)
  comparison = bradley_terry.consistency("a", "b", "c", judged, votes.draw(judged))
  assert not comparison["agree"] and comparison["z"] < -4
  fit = bradley_terry.strengths_and_rates(["a", "b", "c"], three(0.8), votes.draw(three(0.8)), "c")
  assert fit["rate"]["a"].value == pytest.approx(0.8, abs=1e-4)
  assert fit["rate"]["a"].low < 0.8 < fit["rate"]["a"].high
  assert bradley_terry.consistency("a", "d", "c", judged, votes.draw(judged)) is None


# --- the suite ---


def test_scores_judge_every_pair(config):
  config = settings.replaced(
    config, {"preference.judges": "python:mine.py:longer", "preference.pairs": "all"}
  )
  result = judged_results(config)
  judge_findings = result["prompts"]["prompts"]["judges"]["judge"]
  ppo = judge_findings["against_baseline"]["ppo"]
  assert ppo["rate"]["by_prompt"]["value"] == (1 + 0.5 + 0 + 1) / 4
  assert [ppo[name]["value"] for name in ("wins", "ties", "losses")] == [0.5, 0.25, 0.25]
  assert ppo["paper"] == [0.524, 0.578, 0.626]
  assert (
    judge_findings["against_baseline"]["base"]["rate"]["by_prompt"]["value"] == (0 + 1 + 0 + 1) / 4
  )
  assert judge_findings["head_to_head"]["ppo / base"]["rate"]["by_prompt"]["value"] == 0.5
  assert (
    judge_findings["same"],
    judge_findings["votes"],
    judge_findings["order"],
    judge_findings["kind"],
  ) == (1, 12, None, "scores")
  assert ppo["slices"]["use_case"] == {
    "chat": pytest.approx({"value": 0.75, "low": 0.0, "high": 1.0, "n": 2, "clusters": 2}),
    "qa": pytest.approx({"value": 0.5, "low": 0.0, "high": 1.0, "n": 2, "clusters": 2}),
  }
  assert set(ppo["slices"]) == {"use_case", "prompt_length", "length_ratio"}
  assert judge_findings["consistency"]["ppo / base"]["direct"]["value"] == 0.5
  assert set(judge_findings["bradley_terry"]["rate"]) == {"ppo", "base"}


def test_a_margin_ties(config):
  config = settings.replaced(
    config, {"preference.judges": "python:mine.py:longer", "preference.margin": 2.0}
  )
  ppo = judged_results(config)["prompts"]["prompts"]["judges"]["judge"]["against_baseline"]["ppo"]
  assert [ppo[name]["value"] for name in ("wins", "ties", "losses")] == [0.25, 0.75, 0]


def test_figures_are_files(config):
  config = settings.replaced(config, {"preference.judges": "heldout=python:mine.py:longer"})
  result = judged_results(config)
  rows = {row["model"]: row for row in result["figures"]["1"]}
  assert rows["sft"]["value"] == 0.5 and rows["ppo"]["value"] == 0.625
  assert rows["base"]["paper"] == [0.191, 0.219, 0.252]  # held-out labelers
  lines = (Path("out") / "figure1.csv").read_text().splitlines()
  assert lines[0] == "prompts,judge,model,against,value,low,high,n,clusters,paper"
  assert lines[1].startswith("prompts,heldout,ppo,sft,0.625,") and lines[1].endswith(
    "4,4,0.663 0.694 0.691"
  )
  assert (Path("out") / "figure3.csv").read_text().splitlines() == lines
  assert figures.headline("ptx", "base") == [0.85, 0.03]
  assert figures.headline("ppo", "base") is None


PAIRWISE = """
def first(prompts, a, b):
  return [.9 for _ in a]
def longer(prompts, a, b):
  return [verdict(len(x) - len(y)) for x, y in zip(a, b)]
def verdict(gap):
  return {"win": float(gap > 0), "tie": float(gap == 0), "loss": float(gap < 0)}
def wrong(prompts, a, b):
  return [1.5 for _ in a]
def few(prompts, a, b):
  return []
"""


def test_a_judge_that_takes_the_first_is_found_out(config, tmp_path):
  (tmp_path / "pair.py").write_text(PAIRWISE)
  config = settings.replaced(
    config, {"preference.judges": "bias=python:pair.py:first; good=python:pair.py:longer"}
  )
  findings_by_judge = judged_results(config)["prompts"]["prompts"]["judges"]
  assert {
    name: findings_by_judge["bias"]["order"][name]["value"]
    for name in ("first", "inconsistent", "flipped", "tied")
  } == {
    "first": 1,
    "inconsistent": 1,
    "flipped": 1,
    "tied": 0,
  }
  assert findings_by_judge["bias"]["against_baseline"]["ppo"]["rate"]["by_prompt"]["value"] == 0.5
  assert findings_by_judge["bias"]["against_baseline"]["ppo"]["ties"]["value"] == 1
  assert findings_by_judge["good"]["order"]["inconsistent"]["value"] == 0
  assert findings_by_judge["good"]["against_baseline"]["ppo"]["rate"]["by_prompt"]["value"] == 0.625
  for name, message in (("wrong", "answered 1.5; P"), ("few", "returned 0 answers to")):
    config = settings.replaced(config, {"preference.judges": f"python:pair.py:{name}"})
    with pytest.raises(UserError, match=message):
      judged_results(config)


def test_a_reward_that_judges_gets_the_fields_of_the_prompts(config, tmp_path):
  """It has three parameters, as a function that compares two answers has."""
  code = "def right(prompts, responses, fields):\n  return [f.get('answer') == r for f, r in "
  (tmp_path / "right.py").write_text(code + "zip(fields, responses)]\n")
  config = settings.replaced(config, {"preference.judges": "python:right.py:right"})
  fields = {"2 + 2?": {"answer": "4"}, "Who?": {}}
  (judge,) = judges.open_judges(config, fields)
  questions = [("2 + 2?", "4"), ("2 + 2?", "5"), ("Who?", "I"), ("another prompt", "4")]
  assert judge.kind == judges.SCORES
  assert judge.ask(questions, threading.Event()) == [1, 0, 0, 0]
  # Another right answer is another judgement.
  (other,) = judges.open_judges(config, fields | {"2 + 2?": {"answer": "5"}})
  (without,) = judges.open_judges(config)
  assert judge.about != other.about and "fields" not in without.about


def test_nothing_is_asked_twice(config, tmp_path):
  """A run that was killed in the middle of a line goes on: what was answered is not asked again."""
  (tmp_path / "pair.py").write_text(PAIRWISE)
  config = settings.replaced(config, {"preference.judges": "python:pair.py:first"})
  whole = judged_results(config)
  path = Path("out/prompts/judgements-judge.jsonl")
  lines = path.read_text().splitlines(keepends=True)
  assert len(lines) == 14  # 3 + 4 pairs that differ, both orders
  path.write_text("".join(lines[:5]) + lines[5][:20])
  count = []
  judge = judges.open_judges(config)[0]
  counted = judge._replace(
    ask=lambda questions, stop: (count.extend(questions), judge.ask(questions, stop))[1]
  )
  questions = [("p", "a", "b"), ("p", "b", "a"), ("p", "a", "b")]
  first = judgements.ask_all(counted, questions, [{}] * 3, tmp_path / "k.jsonl")
  assert len(count) == 2 and first == judgements.ask_all(
    counted, questions, [{}] * 3, tmp_path / "k.jsonl"
  )
  assert len(count) == 2
  assert judged_results(config) == whole
  assert sorted(path.read_text().splitlines()) == sorted(line.strip() for line in lines)


def test_a_chat_model_judges_in_both_orders(config, server):
  def answer(path, body, number):
    (message,) = body["messages"]
    a, b = (message["content"].split(f"[Output {x}]\n")[1].split("\n[End")[0] for x in "AB")
    assert (
      body["model"] == "llm" and body["temperature"] == 0 and "repeat itself" in message["content"]
    )
    if number == 0:
      return 503, {}, {}
    reply = "Reasons.\n\nVerdict: " + (
      "A" if len(a) > len(b) else "B" if len(a) < len(b) else "tie"
    )
    return 200, {}, {"choices": [{"message": {"content": reply}}]}

  server.answer = answer
  url = server.url.removesuffix("/score")
  config = settings.replaced(config, {"preference.judges": f"openai:{url}#llm,wait=0.01"})
  judge_findings = judged_results(config)["prompts"]["prompts"]["judges"]["judge"]
  assert judge_findings["against_baseline"]["ppo"]["rate"]["by_prompt"]["value"] == 0.625
  assert len(server.asked) == 15  # the first one again
  assert judge_findings["order"]["first"]["value"] == 0.5
  row = json.loads(Path("out/prompts/judgements-judge.jsonl").read_text().splitlines()[0])
  assert set(row) == {"of", "id", "first", "second", "answer"} and row["answer"]["said"].startswith(
    "Reasons."
  )
  assert "template_sha256" in judge_findings["about"]
  assert judged_results(config)["prompts"]["prompts"]["judges"]["judge"] == judge_findings
  assert len(server.asked) == 15


@pytest.mark.parametrize(
  ("text", "p"),
  [
    ("B", 0),
    ("A is longer.\n\n**A**", 1),
    ("Verdict: tie.", 0.5),
    ("[[B]]\n", 0),
    ("My final verdict is: Output A", 1),
    ("The better one: A or B", None),
    ("a draw", None),
    ("", None),
    ("A\nI am not sure", None),
    ("Answer: B", 0),
  ],
)
def test_verdicts(text, p):
  if p is None:
    with pytest.raises(AgainError, match="whose last line is not A, B or tie"):
      templates.read_verdict(text)
  else:
    assert templates.read_verdict(text) == {"p": p, "said": text}


def test_the_words_hold_the_rules_of_the_labelers():
  for text in (templates.PAIR, templates.RATING, templates.SHORT):
    assert (
      text.count("What makes an output good") == 1
      and "much more helpful" in text
      and "{prompt}" in text
    )
    assert "Skip a prompt" not in text
  assert templates.SHORT.endswith("The better output is output")


RATED = """{"overall": %d, "fails_instruction": false, "inappropriate": %s, "hallucination": %s,
"satisfies_constraint": true, "sexual": false, "violent": false, "encourages_harm": false,
"denigrates": false, "harmful_advice": false, "opinion": false,
"moral_judgment": false}"""


def test_a_chat_model_rates(config, server, tmp_path):
  def answer(path, body, number):
    text = body["messages"][0]["content"].split("[Output]\n")[1].split("\n[End")[0]
    reply = "Well.\n" + RATED % (
      min(len(text), 7),
      "true" if "b" in text else "false",
      "true" if "c" in text else "false",
    )
    return 200, {}, {"choices": [{"message": {"content": reply}}]}

  server.answer = answer
  rows = [
    {"prompt": f"say {i}{'!' * i}", "annotations": {"closed_domain": i > 1}} for i in range(4)
  ]
  written(tmp_path / "prompts.jsonl", rows)
  config = settings.replaced(
    config, {"preference.raters": f"openai:{server.url.removesuffix('/score')}#llm"}
  )
  result = judged_results(config)
  rater_findings = result["prompts"]["prompts"]["raters"]["rater"]
  value = lambda measure, model: rater_findings["measures"][measure][model]["by_prompt"]["value"]
  assert value("overall", "ppo") == (4 + 4 + 2 + 6) / 4
  assert value("appropriate", "ppo") == 0.25  # "same" has no b
  assert value("attempts_instruction", "base") == 1
  assert rater_findings["measures"]["hallucination"]["base"]["by_prompt"] == {
    "value": 1,
    "low": pytest.approx(0.178, abs=1e-3),  # 2 of 2
    "high": 1,
    "n": 2,
    "clusters": 2,
  }
  assert rater_findings["over"] == {"hallucination": "closed-domain prompts"}
  likert = {row["model"]: row for row in result["figures"]["5"]}
  assert likert["base"]["paper"] == [2.6] and likert["ppo"]["paper"] is None
  pooled = {(row["measure"], row["model"]): row["paper"] for row in result["figures"]["4"]}
  assert pooled["attempts_instruction", "sft"] == [0.864] and pooled["hallucination", "ppo"] == [
    0.216
  ]
  assert (Path("out") / "figure4.csv").is_file() and not (Path("out") / "figure1.csv").exists()


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("no", "a JSON object"),
    ('{"overall": 8}', "fails_instruction: missing"),
    (RATED % (9, "true", "true"), "overall: 9"),
    (RATED.replace("%s", '"no"') % 3, "inappropriate: "),
  ],
)
def test_ratings_are_checked(text, message):
  with pytest.raises(AgainError, match=message):
    templates.read_rating(text)
  assert templates.rating_problem({"overal": 3}).startswith("overal: unknown field")
  assert templates.read_rating(RATED % (3, "true", "false"))["overall"] == 3


def test_people_judge_what_they_were_given(config, tmp_path):
  """The suite writes the tasks, two labelers rank them, and the same command counts their votes."""
  config = settings.replaced(config, {"preference.judges": ""})
  judged_results(config)
  rows = [json.loads(line) for line in (tmp_path / "out" / "tasks.jsonl").read_text().splitlines()]
  assert rows[1]["completions"] == ["same", "cccccc"] and rows[1]["sources"] == ["sft, ppo", "base"]
  labelled = [
    {
      "prompt": row["prompt"],
      "completions": row["completions"],
      "labeler": labeler,
      "ranks": [1 + (labeler == "x") * at for at in range(len(row["completions"]))],
      "ratings": [{"overall": 7 - at} for at in range(len(row["completions"]))],
    }
    for row in rows
    for labeler in ("x", "y")
  ]
  written(tmp_path / "ranked.jsonl", labelled)
  config = settings.replaced(
    config, {"preference.judges": "labels:ranked.jsonl", "preference.raters": "labels:ranked.jsonl"}
  )
  result = judged_results(config)
  judge_findings = result["prompts"]["prompts"]["judges"]["judge"]
  # x prefers sft in three of four and ties where the text is the same; y ties everything
  assert (
    judge_findings["against_baseline"]["ppo"]["rate"]["by_prompt"]["value"]
    == (3 * 0 + 0.5 + 4 * 0.5) / 8
  )
  assert judge_findings["against_baseline"]["ppo"]["rate"]["by_both"] is not None
  assert (
    judge_findings["labelers"],
    judge_findings["kind"],
    judge_findings["bradley_terry"]["by"],
  ) == (
    2,
    "labels",
    "prompt, labeler",
  )
  likert = result["prompts"]["prompts"]["raters"]["rater"]["measures"]["overall"]["sft"]
  assert likert["by_prompt"]["value"] == 7 and likert["by_both"]["n"] == 8
  assert result["figures"]["1"][0]["n"] == 8


def test_labels_of_other_answers_are_an_error(config, tmp_path):
  rows = [
    {"prompt": p, "completions": c, "ranks": [1, 2]}
    for p, c in (("say 0", ["aa", "zz"]), ("x", ["q", "r"]))
  ]
  written(tmp_path / "ranked.jsonl", rows)
  config = settings.replaced(config, {"preference.judges": "labels:ranked.jsonl"})
  with pytest.raises(
    UserError, match=r"3 of 4 completions are the answers of no model here \(1 of their prompts"
  ):
    judged_results(config)
  written(
    tmp_path / "ranked.jsonl", [{"prompt": "say 0", "completions": ["aa", "aa "], "ranks": [1, 2]}]
  )
  with pytest.raises(UserError, match="ranks no two of the models"):
    judged_results(config)


def test_sources_name_the_model_of_another_sample(config, tmp_path):
  """Other samples of our models count where the records say so; those of a model that is not here
  are left out.
  """
  row = {
    "prompt": "say 0",
    "completions": ["x", "y", "z"],
    "ranks": [1, 2, 3],
    "sources": ["ppo", "sft", "other"],
  }
  written(tmp_path / "ranked.jsonl", [row])
  config = settings.replaced(config, {"preference.judges": "labels:ranked.jsonl"})
  judge_findings = judged_results(config)["prompts"]["prompts"]["judges"]["judge"]
  assert judge_findings["votes"] == 1
  assert judge_findings["against_baseline"]["ppo"]["rate"]["by_prompt"]["value"] == 1


def test_a_judge_is_checked_against_people(config, tmp_path):
  rows = [
    {"prompt": f"q{i}", "completions": ["a", "bb", "cc"], "ranks": ranks, "labeler": labeler}
    for i in range(3)
    for labeler, ranks in (("x", [3, 1, 1]), ("y", [2, 3, 1]))
  ]
  written(tmp_path / "check.jsonl", rows)
  config = settings.replaced(
    config, {"preference.judges": "python:mine.py:longer", "preference.check": "check.jsonl"}
  )
  check = judged_results(config)["check"]
  # the judge: bb = cc > a.  x agrees on both that neither ties and ties bb, cc too; y has cc > a >
  # bb
  assert check["judge"]["agreement"]["value"] == 3 / 4
  assert check["judge"]["agreement_ties"]["value"] == pytest.approx((3 + 0 + 1 + 0.5) / 6)
  assert check["judge"]["tied"]["value"] == pytest.approx(1 / 3)
  assert check["judge"]["inconsistent"]["value"] is None
  assert (
    check["people"]["agreement"]["value"] == 0.5
  )  # of x and y: a, cc alike; a, bb not; bb, cc tied by x
  assert agreement.of_people([]) is None


def test_people_reward_models_and_language_models_are_in_one_table_of_agreement(config, tmp_path):
  """On the same answers: a judge by length, one that ties everything by taking the first, and two
  people, of whom y ties everything.
  """
  (tmp_path / "pair.py").write_text(PAIRWISE)
  labelled = [
    {"prompt": "say 0", "completions": ["aa", "bbbb"], "ranks": ranks, "labeler": labeler}
    for labeler, ranks in (("x", [2, 1]), ("y", [1, 1]))
  ]
  written(tmp_path / "ranked.jsonl", labelled)
  judged_by = "people=labels:ranked.jsonl; rm=python:mine.py:longer; llm=python:pair.py:first"
  config = settings.replaced(config, {"preference.judges": judged_by})
  result = judged_results(config)
  table = result["prompts"]["prompts"]["agreement"]
  assert set(table) == {"people / people", "people / rm", "people / llm", "rm / llm"}
  # The model agrees with x, and half with y, who ties.
  assert table["people / rm"]["agreement"]["value"] == 1
  assert table["people / rm"]["agreement_ties"]["value"] == 0.75
  assert table["people / people"]["agreement_ties"]["value"] == 0.5
  assert table["people / people"]["agreement"]["value"] is None
  # 8 pairs of 4 prompts, one of them the same text: all ties of one, and one tie of the other.
  assert table["rm / llm"]["agreement_ties"]["value"] == (7 * 0.5 + 1) / 8
  assert table["rm / llm"]["agreement_ties"]["clusters"] == 4
  page = preference.draw(result, LOOKS)
  assert "Agreement of judges, prompts" in page and "<td>people / rm</td>" in page


CELL = re.compile(r"([0-9.]+) %<small>([0-9.]+) to ([0-9.]+) %</small><small>n ([0-9,]+)")


def test_the_page_the_terminal_the_table_and_the_card_show_the_same(config, tmp_path, capsys):
  (tmp_path / "pair.py").write_text(PAIRWISE)
  check = [{"prompt": "q", "completions": ["a", "bb"], "ranks": [2, 1], "labeler": n} for n in "xy"]
  written(tmp_path / "check.jsonl", check)
  config = settings.replaced(
    config,
    {
      "preference.judges": "good=python:pair.py:longer; bias=python:pair.py:first",
      "preference.check": "check.jsonl",
      "preference.pairs": "all",
    },
  )
  result = judged_results(config)
  drawn = preference.draw(result, LOOKS).replace("\xa0", " ")
  shown = CELL.findall(drawn)
  folded = drawn[drawn.index("<details>") : drawn.rindex("</details>")]
  assert len(shown) > 40 and len(CELL.findall(folded)) > 4
  part = {"models": list(ANSWERS), "settings": {"baseline": "sft"}, "tasks": {}}
  part["together"] = result
  whole = {
    "models": {name: {} for name in ANSWERS},
    "suites": {"preference": part},
    "notes": [],
  }
  rows = list(csv.DictReader(io.StringIO(results.table_csv(whole))))
  scaled = {
    (*(f"{100 * float(row[name]):.1f}" for name in ("value", "low", "high")), row["n"])
    for row in rows
    if row["value"]
  }
  assert set(shown) <= scaled
  page.show(whole, ["preference"], tmp_path / "report.html")
  terminal = capsys.readouterr().out
  card_lines = "\n".join(card._evaluation(whole, "ppo"))
  outside = set(shown) - set(CELL.findall(folded))
  assert len(outside) > 5
  for value, low, high, _ in outside:
    assert f"{value} % ({low} to {high})" in " ".join(terminal.split())
    assert f"{value} % ({low} to {high})" in card_lines
  assert "win rate against the baseline" in terminal and "win rate" in card_lines
  many = [line for line in terminal.splitlines() if "intervals of 95 % each" in line]
  assert len(many) == 1 and "will miss their true value" in page.render("x", whole, {})


def test_what_is_wrong_is_said_before_anything_runs(config):
  cases = [
    ("prompts", "", "config.preference.prompts is empty"),
    ("prompts", "a=x.jsonl; y.jsonl", "each needs a name"),
    ("prompts", "a=prompts.jsonl; a=prompts.jsonl", "occurs twice"),
    ("pairs", "some", "one of baseline, all is expected"),
    ("judges", "runs/nothing", "no such directory"),
    ("judges", "run:runs/nothing", "no such directory"),
    ("judges", "python:mine.py:shorter", "has no function 'shorter'"),
    ("judges", "openai:nowhere#x", "no valid address"),
    ("judges", "labels:none.jsonl", "no such file"),
    ("raters", "runs/reward", "a rater is openai"),
    ("check", "none.jsonl", "no such file"),
  ]
  for name, value, message in cases:
    with pytest.raises(UserError, match=message):
      preference.open_suite(settings.replaced(config, {f"preference.{name}": value}))
  config = settings.replaced(
    config, {"preference.judges": "python:mine.py:longer", "baseline": "other"}
  )
  with pytest.raises(
    UserError,
    match=r"config.baseline='other' and another model are needed in --models, which has sft, ppo;",
  ):
    preference.open_suite(config).check(["sft", "ppo"])
  config = settings.replaced(config, {"preference.judges": ""})
  assert (
    preference.open_suite(config).check is None
  )  # nobody compares: the answers alone are wanted


def test_sources_are_named():
  assert rows.named("openai:http://h/v1#m,token=KEY", "judge") == {
    "judge": "openai:http://h/v1#m,token=KEY"
  }
  assert rows.named("a=runs/r; b=labels:x.jsonl;", "judge") == {
    "a": "runs/r",
    "b": "labels:x.jsonl",
  }
  assert rows.named("", "judge") == {}


def test_items_have_clusters_slices_and_limits(config, tmp_path):
  written(
    tmp_path / "prompts.jsonl",
    [{"prompt": "x"}, {"prompt": "x", "use_case": "qa"}, {"prompt": "long"}],
  )
  (task,) = preference.open_suite(config).tasks
  assert [item.id for item in task.items] == ["1", "2", "3"]
  assert task.items[0].cluster == task.items[1].cluster != task.items[2].cluster
  (request,) = task.ask(task.items[0])
  assert (request.prompt, request.tokens, request.temperature, request.stop, request.n) == (
    "x",
    1024,
    1.0,
    (),
    1,
  )
  assert task.score(task.items[:1], answers_by_task()["preference/prompts"]["ppo"][:1]) == [
    {"characters": 4.0, "ended": 1.0}
  ]
  config = settings.replaced(config, {"limit": 2})
  assert len(preference.open_suite(config).tasks[0].items) == 2


def test_a_judge_that_fails_keeps_what_it_said(config, tmp_path):
  def ask(questions, stop):
    if questions[0][0] == "3":
      raise UserError("no more")
    return [{"p": 1.0}]

  judge = Judge("j", judges.PAIRS, ask, {}, batch=1)
  with pytest.raises(UserError, match="no more"):
    judgements.ask_all(
      judge, [(str(i), "a", "b") for i in range(5)], [{}] * 5, tmp_path / "j.jsonl"
    )
  assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 3


# --- the page, and the runner ---


def test_the_page_shows_what_was_found(config, tmp_path):
  (tmp_path / "pair.py").write_text(PAIRWISE)
  rows = [
    {"prompt": "q", "completions": ["a", "bb"], "ranks": [2, 1], "labeler": name} for name in "xy"
  ]
  written(tmp_path / "check.jsonl", rows)
  nameless = "<b>=python:pair.py:longer; bias=python:pair.py:first"
  config = settings.replaced(config, {"preference.judges": nameless, "preference.pairs": "all"})
  with pytest.raises(UserError, match="each needs a name"):
    preference.open_suite(config)
  named = "good=python:pair.py:longer; bias=python:pair.py:first"
  config = settings.replaced(
    config, {"preference.judges": named, "preference.check": "check.jsonl"}
  )
  result = judged_results(config, answers=ANSWERS | {"<b>ptx": ["z", "zz", "zzzzz", "zzz"]})
  html = preference.draw(result, LOOKS).replace("\xa0", " ")
  assert "Preferred to sft: good, prompts" in html and "Preferred to sft: bias, prompts" in html
  assert "<b>ptx" not in html and "&lt;b&gt;ptx" in html
  assert (
    "The answer shown first was preferred in 100.0 % (50 % is no bias); 100.0 % of pairs" in html
  )
  assert "ppo / base" in html and "implied by the baseline" in html and "52.4 / 57.8 / 62.6" in html
  assert "<th>use case</th>" in html and "<small>n 2</small>" in html
  assert "nan" not in html
  assert "Judges beside people" in html and "<td>people</td>" in html


def test_figure_5_is_a_figure_with_the_papers_marks(config):
  (Path("rate.py")).write_text(
    "def rate(prompts, responses):\n  return [{'overall': 1 + len(r) % 7} for r in responses]\n"
  )
  config = settings.replaced(config, {"preference.raters": "python:rate.py:rate"})
  result = judged_results(config)
  html = preference.draw(result, LOOKS)
  (figure,) = [
    part for part in html.split("<figure>") if "Overall quality, 1 to 7: rater, prompts" in part
  ]
  assert (
    "<svg" in figure
    and "the paper&#x27;s, 175B" in figure
    and ">4.08<" in figure
    and "nan" not in figure
  )


def test_models_of_several_sizes_are_curves(config):
  """A line a method beside the paper's dashed one, the baseline's point at one half, and each size
  beside the paper's own.
  """
  (Path("rate.py")).write_text(
    "def rate(prompts, responses):\n  return [{'overall': 1 + len(r) % 7} for r in responses]\n"
  )
  config = settings.replaced(
    config,
    {
      "preference.judges": "python:mine.py:longer",
      "preference.raters": "python:rate.py:rate",
      "baseline": "sft@175b",
    },
  )
  answers = {
    "sft@1.3B": ANSWERS["ppo"],
    "sft@175b": ANSWERS["sft"],
    "ppo@1.3b": ANSWERS["base"],
    "ppo@2b": ANSWERS["ppo"],
  }
  result = judged_results(config, answers=answers)
  papers = {row["model"]: row["paper"] for row in result["figures"]["1"]}
  assert papers == {"sft@1.3B": [0.348], "sft@175b": [0.5], "ppo@1.3b": [0.524], "ppo@2b": None}
  assert {row["model"]: row["paper"] for row in result["figures"]["5"]}["sft@175b"] == [4.08]
  sizes = {"1.3b": 1_300_000_000, "175b": 175_000_000_000, "2b": 2_000_000_000}
  look = {name: Look(name[:3], sizes[name[4:].lower()]) for name in answers}
  html = preference.draw(result, look)
  rates, likert = [part for part in html.split("<figure>") if "<svg" in part]
  assert "Preferred to sft@175b" in rates and rates.count("<polyline") == 4
  assert rates.count('class="curve dashed sft"') == 1
  assert (
    "<title>sft, 175B: 50.0 %</title>" in rates
    and "<title>the paper&#x27;s ppo, 6B: 57.8 %</title>" in rates
  )
  assert rates.count("<title>ppo, ") == 2 and "nan" not in html
  assert "Overall quality" in likert and "<title>the paper&#x27;s sft, 175B: 4.08</title>" in likert
  same_size = dict.fromkeys(look, Look("sft", 7))  # of one size: a forest
  assert "polyline" not in preference.draw(result, same_size)


def test_head_to_head_without_the_baseline_is_shown_and_one_model_is_an_error(config):
  config = settings.replaced(
    config, {"preference.judges": "python:mine.py:longer", "preference.pairs": "all"}
  )
  two = {name: ANSWERS[name] for name in ("ppo", "base")}
  html = preference.draw(judged_results(config, answers=two), LOOKS)
  assert "ppo / base" in html
  check = preference.open_suite(config).check
  check(["ppo", "base"])
  with pytest.raises(UserError, match="another model are needed"):
    check(["sft"])


def test_models_answer_and_are_judged_by_a_model(tmp_path, monkeypatch, capsys):
  """From the command line: two models that differ by a prefix, a tiny model as judge, and nothing
  is asked again.
  """
  from instructjax.commands import cli

  monkeypatch.chdir(tmp_path)
  written(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(3)])
  (tmp_path / "pre.txt").write_text("hello. ")
  (tmp_path / "short.txt").write_text("Prompt: {prompt}\nA: {a}\nB: {b}\nBetter:")
  (tmp_path / "mine.py").write_text(LONGER)
  options = {
    "preference.prompts": "prompts.jsonl",
    "preference.judges": "lm=lm:#template=short.txt; long=python:mine.py:longer",
    "preference.response": 8,
    "tokens": 512,
    "model.dtype": "float32",
  }
  command = ["eval", "--models=base=,sft=#prefix=pre.txt", "--suite=preference", "--workdir=out"]
  command += [f"--config.{name}={value}" for name, value in options.items()]
  assert cli.main(command) == 0
  path = tmp_path / "out" / "preference" / "prompts" / "judgements-lm.jsonl"
  before = path.read_text()
  assert len(before.splitlines()) == 6
  assert all(0 < json.loads(line)["answer"]["p"] < 1 for line in before.splitlines())
  results = json.loads((tmp_path / "out" / "results.json").read_text())["suites"]["preference"][
    "together"
  ]
  assert results["prompts"]["prompts"]["judges"]["lm"]["order"]["first"]["n"] == 3
  assert "Preferred to sft: lm, prompts" in (tmp_path / "out" / "report.html").read_text()
  assert cli.main(command) == 0
  assert path.read_text() == before
  (tmp_path / "short.txt").write_text("{prompt}{a}{b}" + "long " * 100)
  assert cli.main(command) == 2
  assert "tokens more than the context of" in capsys.readouterr().err
