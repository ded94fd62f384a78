"""Reward models on files of comparisons: accuracy by group, calibration, RewardBench's own scores.

The reward of these tests reads the number that an answer is, so that every score stands in the
file. Expected numbers are worked by hand.
"""

import csv
import json
import math

import numpy as np
import pytest

from instructjax.commands import eval as command
from instructjax.errors import UserError
from instructjax.evals import reward
from instructjax.evals.reward import bench, cases
from instructjax.settings import reading

FUNCTION = """
def number(prompts, responses):
  assert all(response[0] == " " for response in responses)
  return [float(response) for response in responses]

def turned(prompts, responses):
  return [-float(response) for response in responses]
"""


def config(**changes):
  pairs = [(f"reward.{name}", str(value)) for name, value in changes.items()]
  return reading.override(reading.load("eval"), pairs)


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture
def source(tmp_path):
  path = tmp_path / "my.py"
  path.write_text(FUNCTION)
  return f"python:{path}:number"


def evaluated(tmp_path, models, **changes):
  reward.main(config(**changes), tmp_path / "run", models, {"reward": reward.draw})
  part = json.loads((tmp_path / "run" / "results.json").read_text())["suites"]["reward"]
  return part["tasks"], part["together"]


def record(prompt, texts, ranks, **more):
  return {"prompt": prompt, "completions": texts, "ranks": ranks, **more}


def test_accuracy_by_group_and_calibration(tmp_path, source, capsys):
  """Six pairs: three are right, two are equal and one is wrong."""
  file = write(
    tmp_path / "c.jsonl",
    [
      record("a", ["3", "1", "3.0"], [1, 2, 2], labeler="x", source="chat"),
      record("b", ["2", "1"], [1, 2], labeler="y", source="chat"),
      record("c", ["1", "2"], [1, 2], labeler="y", source="code"),
      record("d", ["0.00000", "-1"], [1, 2], labeler="y", source="code"),
      record("d", ["1", "1.0"], [2, 1], labeler="x", source="code"),
      record("e", ["1", "1"], [1, 1], source="code"),  # a tie of people: no pair
    ],
  )
  tasks, together = evaluated(
    tmp_path, {"rm": source, "sft": source.replace(":number", ":turned")}, comparisons=file
  )
  about = tasks["reward/comparisons"]
  table = about["models"]["rm"]
  assert about["n"] == 6 and table["accuracy"]["n"] == 6
  # Right: a once, b, d. Equal: a once, d once. Wrong: c.
  assert table["accuracy"]["value"] == pytest.approx(4 / 6)
  assert table["equal scores"]["value"] == pytest.approx(2 / 6)
  losses = [math.log1p(math.exp(-d)) for d in (2, 0, 1, -1, 1, 0)]
  assert table["log loss"]["value"] == pytest.approx(np.mean(losses))
  assert 0 <= table["accuracy"]["low"] < 4 / 6 < table["accuracy"]["high"] <= 1
  value = lambda group, name: about["slices"][group][name]["rm"]["accuracy"]["value"]
  assert value("K", "3") == 0.75 and value("K", "2") == pytest.approx(2.5 / 4)
  assert value("labeler", "x") == pytest.approx(2 / 3) and value("labeler", "y") == 2 / 3
  assert value("subset", "chat") == pytest.approx(2.5 / 3)
  assert value("length", "preferred is longer") == 0.75  # "0.00000" and "-1", "1.0" and "1"
  assert value("length", "preferred is shorter") == 0.5  # "3" beside "3.0"
  assert value("length", "within 1.5 times") == pytest.approx(2 / 3)

  # p of the order it prefers: .5 twice (half right), .731 three times (one wrong), .881 once.
  p1, p2 = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
  measured = together["reward/comparisons"]["rm"]
  assert [row["n"] for row in measured["calibration"]] == [2, 3, 1]
  # Intervals are over prompts: a and d, then b, c and d, then a.
  shares = [row["share right"] for row in measured["bins"]]
  assert [(share["n"], share["clusters"]) for share in shares] == [(2, 2), (3, 3), (1, 1)]
  assert [share["value"] for share in shares] == pytest.approx([0.5, 2 / 3, 1])
  assert measured["bins"][1]["p given"]["value"] == pytest.approx(1 / (1 + math.exp(-1)))
  assert measured["slope"]["n"] == 6 and measured["slope"]["clusters"] == 4
  ece = (2 * 0 + 3 * abs(p1 - 2 / 3) + abs(p2 - 1)) / 6
  assert measured["ece"] == pytest.approx(ece)
  assert table["calibration error"]["value"] == pytest.approx(ece)

  # The other model scores the other way round, and the differences are against sft, the baseline.
  other = about["models"]["sft"]["accuracy"]["value"]
  assert other == pytest.approx(2 / 6)
  assert about["differences"]["rm"]["accuracy"]["value"] == pytest.approx(2 / 6)

  page = (tmp_path / "run" / "report.html").read_text()
  assert "p given" in page and "Calibration" in page
  table_csv = (tmp_path / "run" / "results.csv").read_text()
  rows = list(csv.DictReader(table_csv.splitlines()))
  metrics = {row["metric"] for row in rows}
  differences = {f"{name} less sft" for name in table}
  assert {*table, *differences, "reward/comparisons, slope"} <= metrics
  # The rest are the slices of the accuracy, and the bins of the calibration.
  others = metrics - {*table, *differences, "reward/comparisons, slope"}
  bins = {name for name in others if name.startswith("reward/comparisons, bins, ")}
  assert len(bins) == 6 and others - bins
  assert all(name.startswith("accuracy, ") for name in others - bins)
  captured = capsys.readouterr()
  assert "66.7" in captured.out and captured.err.startswith("eval: reward models rm=")

  # Nothing is scored twice: the scores are there, though the function is not.
  scored = (tmp_path / "run" / "scores" / "reward_comparisons" / "rm.jsonl").read_text()
  assert scored.count("\n") == 6
  evaluated(tmp_path, {"rm": source, "sft": source.replace(":number", ":turned")}, comparisons=file)
  again = (tmp_path / "run" / "scores" / "reward_comparisons" / "rm.jsonl").read_text()
  assert again == scored


def test_one_model_is_no_plural():
  assert reward.described(1, 2, 1) == (
    "1 prompt with 2 answers for the reward model; its first batch tells the minutes"
  )
  assert reward.described(1000, 4000, 2) == (
    "1,000 prompts with 4,000 answers for each of 2 reward models; the first batch of each tells "
    "the minutes"
  )


def pair(subset, chosen, rejected, prompt="p"):
  return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "subset": subset}


def test_rewardbench_weighs_subsets_by_their_prompts(tmp_path, source):
  """By hand: Reasoning is math-prm (984) right 1 of 2, hep-cpp (164) right 1 of 1 ..."""
  file = write(
    tmp_path / "filtered.jsonl",
    [
      pair("math-prm", "2", "1"),
      pair("math-prm", "1", "2"),
      pair("hep-cpp", "2", "1"),
      pair("donotanswer", "1", "1"),  # equal scores are wrong there, and half right here
      pair("donotanswer", "2", "1"),
      pair("alpacaeval-easy", "2", "1"),
    ],
  )
  shp = write(
    tmp_path / "shp.jsonl",
    [
      {"prompt": [{"role": "user", "content": "q"}], "chosen": "2", "rejected": "1"},
      {"prompt": "q", "chosen": [{"role": "assistant", "content": "1"}], "rejected": "2"},
    ],
  )
  hhh = write(tmp_path / "hhh.jsonl", [{"prompt": "q", "chosen": "2", "rejected": "1"}])
  tasks, _ = evaluated(
    tmp_path,
    {"rm": source},
    rewardbench=file,
    prior=f"shp={shp}; anthropic_hhh={hhh}",
  )
  score = lambda name: tasks[f"reward/rewardbench {name}"]["models"]["rm"]["score"]["value"]
  reasoning = (984 * 0.5 + 164 * 1) / (984 + 164)
  assert score("Reasoning") == pytest.approx(reasoning)
  assert score("Safety") == 0.5 and score("Chat") == 1
  assert "reward/rewardbench Chat Hard" not in tasks
  assert score("Prior Sets") == 0.75  # .5 and 1, however many pairs they have
  overall = (reasoning + 0.5 + 1 + 0.5 * 0.75) / 3.5
  assert score("overall") == pytest.approx(overall)
  pairs = tasks["reward/rewardbench"]
  assert pairs["models"]["rm"]["accuracy"]["value"] == pytest.approx(4.5 / 6)
  assert pairs["slices"]["subset"]["math-prm"]["rm"]["accuracy"]["value"] == 0.5


def test_every_subset_of_a_section_has_a_number_of_prompts():
  in_sections = [subset for subsets in bench.SECTIONS.values() for subset in subsets]
  assert sorted(in_sections) == sorted(bench.PROMPTS)
  assert sum(bench.PROMPTS[subset] for subset in bench.SECTIONS["Reasoning"]) == 984 + 6 * 164


def best(id_, subset, chosen, rejected):
  return {
    "id": id_,
    "prompt": f"p {id_}",
    "chosen": chosen,
    "rejected": rejected,
    "num_correct": len(chosen),
    "subset": subset,
  }


def test_rewardbench_2(tmp_path, source):
  """Best of four; of equal highest scores the share that is right.  Ties as published."""
  file = write(
    tmp_path / "test.jsonl",
    [
      best("1", "Math", ["4"], ["1", "2", "3"]),
      best("2", "Math", ["4"], ["4", "2", "4"]),  # a third
      best("3", "Math", ["1"], ["4", "2", "4"]),
      best("1", "Factuality", ["4"], ["1", "2", "3"]),
      best("ref:1", "Ties", ["5"], ["1", "2"]),  # 3 apart
      best("tied:1", "Ties", ["6", "5"], ["1", "4"]),  # 1 apart, 1 spread
      best("ref:2", "Ties", ["1"], ["2"]),
      best("tied:2", "Ties", ["6", "4"], ["1"]),  # 3 apart, 2 spread
    ],
  )
  tasks, together = evaluated(tmp_path, {"rm": source}, rewardbench2=file)
  score = lambda name: tasks[f"reward/rewardbench2 {name}"]["models"]["rm"]["score"]["value"]
  math_score = (1 + 1 / 3) / 3
  assert score("Math") == pytest.approx(math_score) and score("Factuality") == 1
  # Tied: 2 of 2 accurate. References: 1 of 2. Apart beyond the spread: only the second prompt (3
  # beyond 2, not 1 beyond 1), and with its reference (-1) none. tanh: of 1 / 1 and of -1 / 2.
  ties = 0.3 * 1 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * (math.tanh(0) + math.tanh(-1.5)) / 2
  assert score("Ties") == pytest.approx(ties)
  assert score("overall") == pytest.approx((math_score + 1 + ties) / 3)
  assert tasks["reward/rewardbench2 Ties"]["models"]["rm"]["score"]["n"] == 2
  assert not together


@pytest.mark.parametrize(
  ("reader", "row", "message"),
  [
    (cases.rewardbench, pair("mine", "a", "b"), "'mine' is none of RewardBench's"),
    (cases.rewardbench, {"prompt": "p", "subset": "hep-go", "chosen": "a"}, "rejected"),
    (cases.rewardbench2, best("1", "Math", ["a"], []), "rejected: at least one"),
    (cases.rewardbench2, best("1", "Math", ["a"], ["b"]) | {"num_correct": 2}, "num_correct: 2"),
    (cases.rewardbench2, best("1", "Ties", ["a"], ["b"]), "ref:NUMBER"),
  ],
)
def test_bad_rows_are_named(tmp_path, reader, row, message):
  file = write(tmp_path / "rows.jsonl", [row])
  with pytest.raises(UserError, match=message) as error:
    reader(str(file), None)
  assert "rows.jsonl:1" in str(error.value)


def test_wrong_names_and_files(tmp_path, source):
  with pytest.raises(UserError, match=r"config\.reward\.comparisons is empty"):
    reward.open_files(config())
  with pytest.raises(UserError, match="'mine' is no prior set"):
    reward.open_files(config(prior="mine=a.jsonl"))
  tied = write(tmp_path / "tied.jsonl", [record("a", ["1", "2"], [1, 1])])
  with pytest.raises(UserError, match="all answers tie"):
    reward.open_tables(reward.open_files(config(comparisons=tied)))


def test_models_of_the_command():
  names = reward.named_rewards(["rm=runs/reward,other=classifier:f#good,as=logit,third=runs/b"])
  assert names == {
    "rm": "runs/reward",
    "other": "classifier:f#good,as=logit",
    "third": "runs/b",
  }
  for text, message in (("runs/reward", "write NAME=REWARD"), ("a=x,a=y", "occurs twice")):
    with pytest.raises(UserError, match=message):
      reward.named_rewards([text])
  with pytest.raises(UserError, match="a command of its own"):
    command.suite_names(["reward,nlp"])
  assert command.suite_names(["reward"]) == ["reward"]


def test_a_limit_takes_whole_prompts(tmp_path):
  rows = [record(f"p{n // 2}", ["1", "2"], [1, 2]) for n in range(20)]
  file = write(tmp_path / "c.jsonl", rows)
  settings = reading.override(config(comparisons=file), [("limit", "5")])
  (selected,) = reward.open_files(settings).values()
  prompts = [case.prompt for case in selected]
  assert len(prompts) == 6 and all(prompts.count(prompt) == 2 for prompt in prompts)
