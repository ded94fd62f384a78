"""Public tasks as instructions: their wordings, how many examples each gives, and none twice."""

import json
from collections import Counter

import pytest
from mapping_cases import CASES, F
from prepared import prepare

from instructjax.commands import cli
from instructjax.data.public import public_tasks
from instructjax.data.public.public_tasks import allot, mixture
from instructjax.data.records import mappings, records
from instructjax.errors import UserError

TASKS = [name for name, (*_, record) in CASES.items() if isinstance(record, records.Demonstration)]


def test_every_task_has_wordings():
  tasks = {name for name, mapping in mappings.TFDS.items() if mapping.kind == "demonstration"}
  assert public_tasks.WORDINGS.keys() == tasks
  assert all(len(set(forms)) >= 3 for forms in public_tasks.WORDINGS.values())


@pytest.mark.parametrize("name", TASKS)
def test_every_wording_asks_for_the_answer_of_the_mapping(name, tmp_path):
  features, row, record = CASES[name]
  place = prepare(tmp_path, name, features, [row] * 12)
  rows, (task,) = mixture(place)
  assert {row.completion for row in rows} == {record.completion}
  prompts = {row.prompt for row in rows}
  assert len(prompts) == task.wordings == 3
  assert record.prompt not in prompts
  for name in ("question", "sentence", "premise"):
    if isinstance(row.get(name), str):
      assert all(row[name] in prompt for prompt in prompts)
  assert {row.source for row in rows} == {f"{place}@train"}


def test_shares_by_hand():
  assert allot([100, 300, 5000], 0, 200) == [100, 200, 200]
  assert allot([100, 300, 5000], 50, 200) == [10, 20, 20]
  assert allot([100, 300, 5000], 50, 0) == [1, 3, 46]
  assert allot([10, 300, 5000], 600, 200) == [10, 295, 295]  # the others give what 10 cannot
  assert allot([10, 20, 5000], 600, 200) == [10, 20, 570]
  assert allot([10, 20], 100, 30) == [10, 20]
  assert sum(allot([7, 11, 13], 10, 5)) == 10


def test_no_example_is_used_twice(tmp_path):
  features, row, _ = CASES["glue/sst2"]
  prepare(
    tmp_path / "tfds", "glue/sst2", features, [row | {"sentence": f"scene-{i}"} for i in range(60)]
  )
  own = tmp_path / "own.jsonl"
  own.write_text(
    "".join(json.dumps({"prompt": f"do {i}", "completion": "done"}) + "\n" for i in range(20))
  )

  def take(**options):
    return mixture(f"tfds:glue/sst2, {own}", folder=str(tmp_path / "tfds"), **options)

  rows, tasks = take(examples=40)
  assert [(task.size, task.taken, task.wordings) for task in tasks] == [(60, 30, 3), (20, 10, 1)]
  assert len({row.prompt for row in rows}) == 40
  words = [word for row in rows for word in row.prompt.split()]
  scenes = Counter(word for word in words if word.startswith("scene-"))
  assert len(scenes) == 30 and set(scenes.values()) == {1}
  assert rows == take(examples=40)[0] != take(examples=40, seed=1)[0]
  assert len(take()[0]) == 80
  assert {row.source for row in rows} == {"tfds:glue/sst2@train", str(own)}


def test_the_command_writes_demonstrations(tmp_path, capsys):
  own = tmp_path / "own.jsonl"
  own.write_text(
    "".join(json.dumps({"prompt": f"do {i}", "completion": "done"}) + "\n" for i in range(20))
  )
  out = tmp_path / "flan.jsonl"
  assert cli.main(["baseline", "mixture", f"--sources={own}", f"--out={out}", "--examples=5"]) == 0
  assert (
    f"{own}: 5 of 20 examples, as they are\n{out}: 5 demonstrations of 1 tasks"
    in capsys.readouterr().out
  )
  assert len(records.read(out, "demonstration")) == 5
  with pytest.raises(SystemExit) as stop:
    cli.main(["baseline", "mixture", f"--sources={own}", f"--out={out}", "--cap=-1"])
  assert stop.value.code == 2
  assert "--cap: -1: a whole number from 0" in capsys.readouterr().err


def test_what_is_no_task_is_an_error(tmp_path):
  place = prepare(tmp_path, "lm1b", {"text": F.Text()}, [{"text": "x"}])
  with pytest.raises(UserError, match="no task with wordings; there are squad, drop"):
    mixture(place)
  features, row, _ = CASES["glue/sst2"]
  hidden = prepare(tmp_path, "glue/sst2", features, [row, row | {"label": -1}])
  with pytest.raises(
    UserError, match=r":[12]: label: -1, the answers of this split are not public"
  ):
    mixture(hidden)
