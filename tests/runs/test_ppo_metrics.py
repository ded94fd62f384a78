"""The table of PPO's metrics: when an alarm sounds, and the page and the report that it makes."""

import json

import pytest

from instructjax import settings
from instructjax.runs import report
from instructjax.runs.report.ppo_metrics import BY_NAME, METRICS, advice
from instructjax.settings import fields


@pytest.mark.parametrize(
  ("name", "unhealthy", "healthy"),
  [
    # The last quarter of eight values is their last two: a mean of 30, then of 20.
    ("objective/kl", [0, 1, 2, 3, 4, 5, 30, 30], [0, 1, 2, 90, 90, 90, 20, 20]),
    ("policy/clipfrac_avg", [0.1, 0.35], [0.35, 0.1]),
    ("policy/approxkl_avg", [0.2], [0.05]),
    ("loss/value_avg", [1.0, 10.5], [1.0, 9.5]),
    # Of seven iterations the value network has learnt too little for a verdict.
    ("val/explained_var", [-0.1] * 8, [-0.1] * 7),
    ("val/explained_var", [0.5] * 6 + [-0.1] * 2, [-5.0] * 6 + [0.1] * 2),
    ("response/len_mean", [20, 9], [20, 11]),
    ("response/len_mean", [20, 41], [20, 39]),
    ("policy/entropy_avg", [2.0, 0.4], [2.0, 0.6]),
    ("policy/ratio_first", [1.0, 1.02], [1.0, 1.001]),
    ("objective/scores_std", [1.0, 0.0], [0.0, 1.0]),
    ("response/eos_frac", [0.9, 0.4], [0.4, 0.9]),
    ("rollout/logp_error", [0.01, 0.2], [0.01, 0.02]),
    ("rollout/abstained", [0.2], [0.0]),
  ],
)
def test_an_alarm_sounds_where_the_end_of_a_curve_is_not_healthy(name, unhealthy, healthy):
  assert advice(name, unhealthy).startswith("Not healthy (")
  assert advice(name, healthy) == ""


def test_what_has_no_alarm_or_no_values_needs_no_advice():
  assert advice("lr", [9.0]) == advice("objective/kl", []) == advice("mine", [1.0]) == ""
  assert len(BY_NAME) == len(METRICS)


def test_advice_names_settings_that_the_stage_has():
  for metric in METRICS:
    values = [0.0] * 6 + [99.0] * 2
    for word in advice(metric.name, values, "grpo").split("`"):
      path = word.removeprefix("config.")
      if path != word:
        names = [field.path for field in fields.walk(settings.preset("grpo"))]
        assert path in names, f"{metric.name}: {word}"
  assert "`config.grpo.epochs`" in advice("policy/clipfrac_avg", [0.5], "grpo")
  assert "`config.optimizer.lr`" in advice("policy/clipfrac_avg", [0.5], "grpo")


def test_advice_stands_beside_its_curve_and_not_among_the_folded_ones(tmp_path):
  rows = []
  for stage in ("ppo", "ptx"):
    for step in range(1, 9):
      row = {"step": step, "stage": stage, "objective/scores": 1.0, "objective/kl": 1.0}
      row["policy/clipfrac_avg"] = 0.5 if stage == "ptx" else 0.1
      rows.append(row)
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  html = report.write(tmp_path).read_text()
  assert html.count('<p class="advice">') == 1
  assert html.count("<figcaption>policy/clipfrac_avg") == 1
  assert "PPO-ptx: Not healthy (above 0.3)." in html
  assert "<code>config.ppo.epochs</code>" in html
  assert html.index('<p class="advice">') < html.index('id="distance"')
