"""The report: what it says, that it says it of any run, safely, and that it asks nothing of the
network.
"""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from instructjax.errors import UserError
from instructjax.runs import report
from instructjax.runs.report import figures, files, page, scales

MODELS = ("base", "sft", "ppo", "ptx")
VOID = {"meta", "link", "br"}
EVIL = '<script>alert("1")</script><img src=x onerror=y>&\'"'


class Page(HTMLParser):
  """Tags, attributes and text of a page; fails on tags that do not nest."""

  def __init__(self, source: str):
    super().__init__()
    self.open: list[str] = []
    self.seen: list[tuple[str, dict]] = []
    self.words: list[str] = []
    self.feed(source)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.seen.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.seen.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)

  @property
  def text(self) -> str:
    return " ".join(" ".join(self.words).split())

  @property
  def ids(self) -> list[str]:
    return [attrs["id"] for tag, attrs in self.seen if tag == "section"]


def estimate(value: float, half: float = 0.05, n: int = 96) -> dict:
  return {"value": value, "low": value - half, "high": value + half, "n": n}


def curves(steps: int = 10) -> list[dict]:
  rng = np.random.default_rng(0)
  rows = [
    {"step": i + 1, "stage": stage, "loss": 4 - i / steps, "accuracy": 0.5}
    for stage in ("sft", "reward", "gold")
    for i in range(3 * steps)
  ]
  for stage in ("ppo", "ptx"):
    for i in range(steps):
      row = {
        "step": i + 1,
        "stage": stage,
        "objective/scores": i / 5,
        "objective/kl": i - 0.5,
        "eval/gold": i / 9,
      }
      row |= {
        "response/len_mean": 12.0,
        "response/eos_frac": 0.9,
        "eval/pretrain_nll": 3.6,
        "grad/norm_ppo": 1.0,
      }
      row |= {"policy/clipfrac_avg": float(rng.random()) / 10}
      rows.append(row | ({"loss/ptx": 3.5, "grad/norm_ptx": 6.0} if stage == "ptx" else {}))
  return rows


def results(wins: float = 0.8) -> dict:
  model = {
    "score": 1.0,
    "gold": estimate(0.5),
    "follows": estimate(0.7),
    "kl": 3.0,
    "length": 12.5,
    "eos_rate": 0.9,
  }
  slices = {"movies": estimate(0.8), "amazon": estimate(0.7, n=32), "praise": estimate(0.6)}
  models = {name: model | {"pretrain_nll": 3.6, "win_rate_vs_sft": None} for name in MODELS}
  for name in ("ppo", "ptx"):
    models[name] |= {"win_rate_vs_sft": estimate(wins), "win_rate_vs_sft_by_slice": slices}
  models["ppo"]["pretrain_nll"] = 3.8
  rm = {
    "pair_accuracy": estimate(0.81),
    "by_domain": {"movies": estimate(0.82), "amazon": estimate(0.78)},
    "references": {
      "chance": 0.5,
      "vader": estimate(0.69),
      "raters": estimate(0.78),
      "ceiling": 0.9,
    },
    "calibration": [{"p": 0.55, "correct": 0.5, "n": 20}, {"p": 0.9, "correct": 1.0, "n": 30}],
  }
  notes = [
    "The base model is already instruction-tuned: `base`.",
    "The labels are tone, not helpfulness.",
  ]
  return {
    "rm": rm,
    "models": models,
    "seconds": {"sft": 3.2, "total": 9.0},
    "peak_rss_gb": 1.5,
    "seed": 7,
    "notes": notes,
  }


def sample(i: int) -> dict:
  answers = {name: f"answer {i} of {name}" for name in MODELS}
  return {
    "prompt": f"prompt {i}",
    "domain": "movies",
    "use_case": "praise",
    "responses": answers,
    "scores": {"ppo": 1.25},
  }


def put(workdir: Path, metrics=(), samples=(), **wholes) -> Path:
  workdir.mkdir(exist_ok=True)
  for name, rows in (("metrics", metrics), ("samples", samples)):
    if rows:
      (workdir / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  for name, tree in wholes.items():
    (workdir / f"{name}.json").write_text(json.dumps(tree))
  return workdir


def full(workdir: Path) -> Path:
  manifest = {"versions": {"jax": "0.10.2"}, "seed": 7}
  return put(
    workdir,
    curves(),
    [sample(i) for i in range(40)],
    results=results(),
    config={"top": 6},
    manifest=manifest,
  )


def test_a_whole_run_shows_every_section(tmp_path):
  written = report.write(full(tmp_path))
  html_page = Page(written.read_text())
  assert written == tmp_path / "report.html"
  assert html_page.ids == [
    "results",
    "slices",
    "ranking",
    "losses",
    "ppo",
    "distance",
    "tax",
    "samples",
    "cost",
    "curves",
  ]
  links = [attrs["href"] for tag, attrs in html_page.seen if tag == "a"]
  assert links == [f"#{name}" for name in html_page.ids]
  for words in (
    "PPO-ptx beats SFT",
    "75.0 to 85.0",
    "already instruction-tuned",
    "tone, not helpfulness",
    "VADER lexicon",
    "noise ceiling",
    "amazon (new domain)",
    "√KL",
    "−0.200",
    "9 seconds in all, 1.5 GB at the peak, seed 7",
    "0.10.2",
    "The first 24 of 40 test prompts, not chosen",
    "answer 0 of ptx",
    "RM 1.25",
    "nats a token",
  ):
    assert words in html_page.text.replace("\u00a0", " "), words
  assert "answer 23 of base" in html_page.text
  assert "answer 24 of base" not in html_page.text


def test_the_page_asks_nothing_of_the_network(tmp_path):
  source = report.write(full(tmp_path)).read_text()
  html_page = Page(source)
  assert not re.search(r"https?:|url\(|@import|//", source.replace("<!doctype", ""))
  assert not {"script", "iframe", "img", "object", "embed", "video", "audio"} & {
    tag for tag, _ in html_page.seen
  }
  for tag, attrs in html_page.seen:
    assert "src" not in attrs
    assert attrs.get("href", "#").startswith("#") or (tag, attrs["href"]) == ("link", "data:,")
    assert not any(name.startswith("on") for name in attrs)
  policy = next(attrs["content"] for tag, attrs in html_page.seen if attrs.get("http-equiv"))
  assert policy.startswith("default-src 'none'")


def test_every_text_of_the_data_is_escaped(tmp_path):
  metrics = [
    {"step": i, "stage": s, EVIL: 1.0, "loss": 2.0} for s in (EVIL, "sft") for i in range(3)
  ]
  metrics += [
    {"step": i, "stage": EVIL + "rl", "objective/scores": 1.0, "objective/kl": 1.0, EVIL: 2.0}
    for i in range(3)
  ]
  model = {
    "score": 1.0,
    "win_rate_vs_sft": estimate(0.6),
    "win_rate_vs_sft_by_slice": {EVIL: estimate(0.6)},
  }
  rm = {"pair_accuracy": 0.8, "by_domain": {EVIL: 0.8}, "references": {EVIL: 0.7}}
  result_file = {
    "models": {EVIL: model, "ppo": model},
    "rm": rm,
    "seconds": {EVIL: 1.0},
    "notes": [EVIL],
    "seed": EVIL,
  }
  record = {
    "prompt": EVIL,
    "domain": EVIL,
    "use_case": EVIL,
    "responses": {EVIL: EVIL},
    "scores": {EVIL: 1.0},
  }
  workdir = put(
    tmp_path, metrics, [record], results=result_file, config={EVIL: EVIL}, manifest={EVIL: [EVIL]}
  )
  source = report.write(workdir).read_text()
  assert "<script" not in source
  assert "<img" not in source
  html_page = Page(source)
  assert EVIL in "".join(html_page.words)
  for _, attrs in html_page.seen:
    assert "<" not in attrs.get("class", "")


def test_a_run_of_one_stage_shows_its_curve(tmp_path):
  rows = [
    {"step": i, "stage": "sft", "loss": 3 - i / 50, "tokens": 320, "grad/norm": 1.0}
    for i in range(100)
  ]
  html_page = Page(report.write(put(tmp_path, rows)).read_text())
  assert html_page.ids == ["losses", "curves"]
  assert "SFT: loss 2.91 → 1.11" in html_page.text
  assert "Means of the first and the last 10 of 100 steps." in html_page.text
  assert (
    sum(tag == "polyline" for tag, _ in html_page.seen) == 4
  )  # every step, running mean, two more metrics


def test_a_run_that_is_not_finished_says_so(tmp_path):
  rows = [{"step": i, "stage": "ppo", "objective/scores": 0.1} for i in range(1, 13)]
  config = {"stage": "ppo", "iterations": 500}
  run = put(tmp_path, rows, config=config)
  sentence = "Not finished: its last line is of step 12 of 500. Run its command again to go on."
  assert sentence in Page(report.write(run).read_text()).text
  # A step that is being written has another name.
  (tmp_path / "checkpoints" / "final" / "500.orbax-checkpoint-tmp").mkdir(parents=True)
  assert sentence in Page(report.write(run).read_text()).text
  (tmp_path / "checkpoints" / "final" / "500").mkdir()
  assert "finished" not in Page(report.write(run).read_text()).text


def test_a_run_that_a_hook_stopped_says_so(tmp_path):
  stopped = {"sft": {"step": 4, "by": "mine.py:stop: KL is <12>"}}
  run = put(tmp_path, config={"stage": "sft"}, manifest={"stopped": stopped})
  (tmp_path / "checkpoints" / "final" / "4").mkdir(parents=True)
  text = Page(report.write(run).read_text()).text
  assert "Stopped at step 4 by mine.py:stop: KL is <12>." in text


def test_samples_of_training_are_those_of_the_first_and_the_last_iteration(tmp_path):
  samples = [
    {"stage": "ppo", "iteration": i, "prompt": EVIL, "response": f"r{i}", "score": -i, "kl": 0.5}
    for i in (25, 50, 75)
  ]
  text = Page(report.write(put(tmp_path, samples=samples)).read_text()).text
  assert "The first responses of iterations 25 and 75, not chosen" in text
  assert "r25" in text
  assert "r50" not in text
  assert "score −75.00 · KL 0.50" in text


def test_the_samples_of_a_stage_stand_beside_the_answers_of_people(tmp_path):
  row = {"stage": "dpo", "iteration": 9, "prompt": EVIL, "response": "", "reference": "a & b"}
  text = Page(report.write(put(tmp_path, samples=[row])).read_text()).text
  assert "Answers to the first held-out prompts" in text
  assert "DPO" in text and "empty" in text
  assert "people" in text and "a & b" in text
  assert "PPO" not in text


def test_a_reward_model_shows_what_it_scores_highest_and_lowest(tmp_path):
  row = {
    "stage": "reward",
    "iteration": 9,
    "prompt": "p",
    "responses": {"highest": "fine", "lowest": "poor"},
    "scores": {"highest": 1.5, "lowest": -2},
    "ranks": {"highest": 2, "lowest": None},
  }
  text = Page(report.write(put(tmp_path, samples=[row])).read_text()).text
  assert "highest score RM 1.50 · rank 2" in text
  assert "lowest score RM −2.00" in text


@pytest.mark.parametrize(("held_out", "says"), [(0, True), (0.05, False)])
def test_a_stage_without_held_out_prompts_says_how_to_get_samples(tmp_path, held_out, says):
  config = {"stage": "sft", "data": {"valid": "", "held_out": held_out}}
  text = Page(report.write(put(tmp_path, config=config)).read_text()).text
  assert ("config.data.held_out=0.05" in text) == says


@pytest.mark.parametrize("name", files.NAMES)
def test_one_file_alone_is_enough(tmp_path, name):
  full(tmp_path)
  for other in set(files.NAMES) - {name}:
    (tmp_path / other).unlink()
  assert Page(report.write(tmp_path).read_text()).ids


@pytest.mark.parametrize("name", files.NAMES)
def test_any_file_may_be_missing(tmp_path, name):
  (full(tmp_path) / name).unlink()
  assert Page(report.write(tmp_path).read_text()).ids


def test_nothing_to_read_is_an_error_that_names_the_place(tmp_path):
  with pytest.raises(UserError, match="no directory"):
    report.write(tmp_path / "absent")
  with pytest.raises(UserError, match=r"none of these files.*metrics\.jsonl"):
    report.write(tmp_path)
  (tmp_path / "results.json").write_text("{")
  with pytest.raises(UserError, match=r"results\.json: left out"):
    report.write(tmp_path)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json"]


def test_a_disk_that_cannot_be_written_leaves_the_old_page(tmp_path, monkeypatch):
  target = report.write(full(tmp_path))
  before = target.read_bytes()

  def refuse(descriptor):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", refuse)
  with pytest.raises(UserError, match="No space left"):
    report.write(tmp_path)
  assert target.read_bytes() == before
  assert not (tmp_path / "report.html.part").exists()


def test_broken_lines_and_numbers_are_named_not_hidden(tmp_path):
  rows = "\n".join(json.dumps({"step": i, "stage": "sft", "loss": 1.0}) for i in range(5))
  put(tmp_path, results=results() | {"notes": None})
  (tmp_path / "metrics.jsonl").write_text(
    rows + '\n{"step": 5, "stage": "sft", "loss": NaN}\n[1]\n{"step": 6, "sta'
  )
  text = Page(report.write(tmp_path).read_text()).text
  assert "metrics.jsonl: left out what is no JSON object, line 7, 8" in text
  assert "sft: loss is not finite at step 5" in text


def test_a_step_that_was_run_again_counts_once():
  rows = iter(
    [
      {"step": s, "stage": "sft", "loss": v}
      for s, v in ((1, 3.0), (2, 2.0), (3, 9.0), (2, 2.5), (3, 2.2))
    ]
  )
  assert files.gather(rows, [])["sft"]["loss"] == {1: 3.0, 2: 2.5, 3: 2.2}


def test_a_win_without_a_rise_of_the_reward_is_no_headline(tmp_path):
  """Two iterations, 63 prompts and a judge that errs on a third: nothing is known."""
  measured = results(0.68)
  for name in ("sft", "ptx"):
    measured["models"][name] |= {"score": estimate(0.3, 0.4), "empty": estimate(0.0, 0.02)}
  measured["rm"]["gold_pair_accuracy"] = estimate(0.658)
  text = Page(report.write(put(tmp_path, curves(2), results=measured)).read_text()).text
  assert "The measures disagree on PPO-ptx: it wins 68.0" in text
  assert "beats" not in text
  assert "Not known" not in text
  assert "The judge is right on 65.8" in text


def test_a_run_of_ppo_alone_says_what_nobody_has_measured(tmp_path):
  rows = [{"step": i, "stage": "ppo", "objective/scores": 0.1 * i} for i in range(1, 13)]
  text = Page(report.write(put(tmp_path, rows)).read_text()).text
  assert "No judge has compared answers: the score that PPO was trained on rose from" in text
  assert "Whether answers got better: name a second reward in config.gold" in text


def test_numbers_may_be_plain_or_estimates():
  assert files.estimate(0.5)[0] == 0.5
  assert files.estimate({"value": 1, "low": 0, "high": 2, "n": 9}) == (1.0, 0.0, 2.0, 9, 0)
  assert [files.number(v) for v in (None, True, "1", float("nan"), {"value": None}, 10**400)] == [
    None
  ] * 6
  assert page.cell(files.estimate(0.5)) == "0.50"
  assert page.cell(None) == "–"
  assert page.minus(-0.001) == "0.00"


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize(
  "values",
  [
    (0, 1),
    (3.59, 3.61),
    (-2, 900),
    (1e-7, 4e-7),
    (1.7e-16, 6.5e-16),
    (5, 5),
    (0, 0),
    (-1e9, 1e9),
    (0.7, 0.7),
  ],
)
def test_axes_hold_their_values_and_have_round_ticks(values, fit):
  scale = scales.axis(values, 40, 340, fit=fit)
  assert scale.low <= min(values)
  assert scale.high >= max(values)
  assert 2 <= len(scale.ticks) <= 9
  assert all(scale.low <= t <= scale.high for t in scale.ticks)
  labels = scales.tick_labels(scale.ticks, percent=False)
  assert len(set(labels)) == len(labels)


def test_long_curves_are_thinned_and_smoothed():
  x = list(range(100_000))
  thin = figures.thinned(figures.Series("", "sft", x, x))
  assert len(thin.x) == figures.POINTS
  assert thin.x == thin.y
  assert np.mean(thin.y) == pytest.approx(np.mean(x), rel=1e-3)
  flat = figures.smooth([2.0] * 50)
  assert flat == pytest.approx([2.0] * 50)
