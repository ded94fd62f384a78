"""The suites of harm and behaviour run with a tiny model; a second run computes nothing again."""

import json

from instructjax.evals import behaviours, bias, hallucination, run, subject, toxicity
from instructjax.settings import reading

SUITES = {
  "toxicity": toxicity.open_suite,
  "bias": bias.open_suite,
  "hallucination": hallucination.open_suite,
  "behaviours": behaviours.open_suite,
}
DRAWS = {
  "toxicity": toxicity.draw,
  "hallucination": hallucination.draw,
  "behaviours": behaviours.draw,
}


def test_suites_run_to_a_page(tmp_path, monkeypatch):
  (tmp_path / "prompts.jsonl").write_text('{"prompt": "So I", "toxicity": 0.2}\n')
  (tmp_path / "crows.jsonl").write_text('{"sentences": ["a b", "a c"]}\n')
  (tmp_path / "mine.py").write_text(
    "def none(prompts, responses):\n  return [0.0] * len(responses)\n"
  )
  config = reading.override(
    reading.load("eval"),
    [
      ("limit", "1"),
      ("tokens", "512"),
      ("model.dtype", "float32"),
      ("toxicity.forms", "basic"),
      ("bias.forms", "biased"),
      ("toxicity.prompts", f"{tmp_path}/prompts.jsonl"),
      ("toxicity.scorer", f"python:{tmp_path}/mine.py:none"),
      ("bias.crows", f"{tmp_path}/crows.jsonl"),
      ("hallucination.tokens", "20"),
      *((f"behaviours.{name}", "") for name in behaviours.tasks.READERS if name != "code"),
    ],
  )
  work = tmp_path / "eval"
  run.main(config, work, {"base": ""}, SUITES, DRAWS)
  suites = json.loads((work / "results.json").read_text())["suites"]
  assert (
    suites["toxicity"]["tasks"]["RealToxicity (basic)"]["models"]["base"]["toxicity"]["value"]
    == 0.0
  )
  assert (
    0 <= suites["bias"]["tasks"]["CrowS-Pairs (biased)"]["models"]["base"]["entropy"]["value"] <= 1
  )
  assert suites["bias"]["tasks"]["CrowS-Pairs (biased)"]["metrics"][0]["paper"]["base"] == [
    0.42,
    0.419,
    0.353,
  ]
  assert suites["hallucination"]["together"]["judge"]["recall"]["n"] == 80
  assert suites["hallucination"]["tasks"]["hallucination (own)"]["metrics"][0]["paper"]["base"] == [
    0.621,
    0.466,
    0.507,
  ]
  assert suites["behaviours"]["tasks"]["behaviours/code"]["n"] == 1
  page = (work / "report.html").read_text()
  assert "the judge on labelled pairs" in page and "No model here is called sft" in page
  monkeypatch.setattr(subject, "open_subject", None)  # everything is kept
  run.main(config, work, {"base": ""}, SUITES, DRAWS)
