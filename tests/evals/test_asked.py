"""Two processes sample and evaluate models exactly as one process does."""

import json

import asked
import processes
import pytest

from instructjax.label import tasks


def close(results, expected, place="results"):
  """Checks that two objects are the same, numbers up to the order of sums."""
  if isinstance(expected, dict):
    assert list(results) == list(expected), place
    for name in expected:
      close(results[name], expected[name], f"{place}.{name}")
  elif isinstance(expected, list):
    assert len(results) == len(expected), place
    for at, (result, expectation) in enumerate(zip(results, expected, strict=True)):
      close(result, expectation, f"{place}[{at}]")
  else:
    assert results == (
      pytest.approx(expected, rel=1e-4, abs=1e-4) if isinstance(expected, float) else expected
    ), place


@pytest.mark.release
def test_two_processes_ask_and_judge_as_one_does(data, finished, reward_run, server, tmp_path):
  """Samples for labelers, then two evaluations with judges of every kind, on 2 x 2 x 2 devices."""
  (tmp_path / "judge.py").write_text(asked.JUDGE)
  (tmp_path / "ask.txt").write_text(asked.TEMPLATE)
  toxicity = [{"prompt": f"So {at}", "toxicity": at / 4} for at in range(5)]
  (tmp_path / "toxicity.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toxicity))
  single, double = tmp_path / "one", tmp_path / "two"
  arguments = lambda out: (data, finished, out, server.url)

  code, _, err = processes.ended(processes.start(asked, *arguments(single)))
  assert code == 0, err
  count = len(server.asked)
  ends = processes.together(asked, *[arguments(double)] * 2)
  assert [code for code, _, _ in ends] == [0, 0], ends
  assert len(server.asked) == 2 * count  # by the first process alone
  assert "Report:" in ends[0][1] and "Report:" not in ends[1][1]

  for name in ("samples.jsonl", "draws.jsonl"):
    rows = [
      [json.loads(line) for line in (out / "round" / name).read_text().splitlines()]
      for out in (double, single)
    ]
    close(*rows, name)
  items, left_out = tasks.read(double / "round" / "samples.jsonl", "comparison")
  assert len(items) == 3 and not left_out
  results = [json.loads((out / "eval" / "results.json").read_text()) for out in (double, single)]
  close(*results)
  assert list(results[0]["suites"]) == ["preference", "toxicity", "hallucination"]
  assert results[0]["suites"]["preference"]["models"] == ["base", "sft", "ppo"]
  assert set(results[0]["suites"]["preference"]["together"]["prompts"]["prompts"]["judges"]) == {
    "sum",
    "lm",
    "pair",
  }
  judged = [
    sorted(path.name for path in (out / "eval" / "preference" / "prompts").iterdir())
    for out in (double, single)
  ]
  assert judged[0] == judged[1]
