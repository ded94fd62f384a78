"""Exported tasks and answers come back unchanged, and every bad file is a UserError."""

import dataclasses
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructjax.commands import cli
from instructjax.data.records import records
from instructjax.errors import UserError
from instructjax.label import argilla, exchange, labelstudio, store
from instructjax.label.answers import FLAGS, Answer
from instructjax.label.tasks import Task

OFF = dict.fromkeys(FLAGS, False)
NASTY = '<script>alert(1)</script> & "é" \u2028'
FROM = (
  {"model": "sft", "temperature": 0.7, "seed": 3},
  {"model": "ppo", "temperature": 1, "seed": 3},
  {"model": "gpt"},
)
TASKS = [
  Task(
    "first",
    ("a", NASTY, "c"),
    id="1",
    user="u",
    source="s",
    use_case="chat",
    organisation="o",
    consent=False,
    annotations={"ambiguous": True},
    sources=FROM,
  ),
  Task("second", ("x", "y")),
  Task("nobody's", ("x", "y")),
]
ANSWERS = [
  Answer(
    TASKS[0],
    "ana",
    {
      "ranks": [2, 1, 2],
      "notes": ["", NASTY, ""],
      "ratings": [
        {"overall": 3} | OFF,
        {"overall": 7} | OFF | {"hallucination": True, "opinion": True},
        {"overall": 1} | OFF,
      ],
    },
    order=(2, 0, 1),
    seconds=12.5,
  ),
  Answer(
    TASKS[0],
    "ben@example.org",
    {"ranks": [1, 2, 3], "notes": [""] * 3, "ratings": [{"overall": 4} | OFF] * 3},
  ),
  Answer(
    TASKS[1], "ana", {"ranks": [1, 1], "notes": ["", ""], "ratings": [{"overall": 4} | OFF] * 2}
  ),
  Answer(TASKS[1], "ben@example.org", None, "in Greek"),
]
WRITTEN = [
  Answer(Task("first", id="1"), "ana", {"completion": NASTY}),
  Answer(Task("first", id="1"), "ben", {"completion": "b\nc"}),
]


def fill(path, kind, tasks, answers):
  db = store.create(path, kind, 2)
  store.add(db, tasks)
  store.put(db, answers, 100.0)
  db.close()
  return path


def values_by_key(answers):
  """Returns the values of answers by task and labeler."""
  return {(a.task.prompt, a.task.completions, a.labeler): a.value for a in answers}


@pytest.mark.parametrize("form", ["records", "labelstudio", "argilla"])
@pytest.mark.parametrize("kind", ["comparison", "demonstration"])
def test_round_trips(tmp_path, form, kind, capsys):
  tasks, answers = (
    (TASKS, ANSWERS) if kind == "comparison" else ([WRITTEN[0].task, Task("unanswered")], WRITTEN)
  )
  db = fill(tmp_path / "a.sqlite", kind, tasks, answers)
  out = tmp_path / f"out.{'jsonl' if form == 'records' else 'json'}"
  assert cli.main(["label", "export", f"--db={db}", f"--out={out}", f"--format={form}"]) == 0
  back = tmp_path / "b.sqlite"
  assert (
    cli.main(
      ["label", "import", f"--db={back}", f"--file={out}", f"--format={form}", f"--kind={kind}"]
    )
    == 0
  )
  capsys.readouterr()
  opened = store.open_existing(back)
  returned_answers = store.answers(opened)
  returned_tasks = store.tasks(opened)
  opened.close()
  expected = values_by_key(answers)
  # These records name no labeler, so the second answer of a task counts as the first.
  if kind == "demonstration" and form == "records":
    assert values_by_key(returned_answers) == {("first", (), "unnamed"): {"completion": NASTY}}
    return
  # Records and Argilla have no place for skips, records none for notes.
  if form in ("records", "argilla"):
    expected = {key: value for key, value in expected.items() if value}
  if form == "records":
    no_notes = {key: [""] * len(value["ranks"]) for key, value in expected.items()}
    expected = {key: value | {"notes": no_notes[key]} for key, value in expected.items()}
  assert values_by_key(returned_answers) == expected
  # The users of other tools must not see which model an output is from.
  lost = {} if form == "records" else {"sources": ()}
  expected_tasks = tasks[:2] if form == "records" else tasks
  assert returned_tasks == [dataclasses.replace(task, **lost) for task in expected_tasks]
  assert cli.main(["label", "import", f"--db={back}", f"--file={out}", f"--format={form}"]) == 0
  assert "0 new tasks" in capsys.readouterr().out  # a second time changes nothing


def test_the_export_is_valid_and_has_what_the_paper_asks_for(tmp_path, capsys):
  db = fill(tmp_path / "a.sqlite", "comparison", TASKS, ANSWERS)
  out = tmp_path / "ranked.jsonl"
  assert cli.main(["label", "export", f"--db={db}", f"--out={out}"]) == 0
  assert cli.main(["data", "check", str(out), "--kind=comparison"]) == 0
  assert "3 comparisons, no problem" in capsys.readouterr().out
  first = records.read(out, "comparison")[0]
  assert (first.labeler, first.ranks, first.completions) == ("ana", (2, 1, 2), TASKS[0].completions)
  assert (first.id, first.user, first.source, first.use_case) == ("1", "u", "s", "chat")
  assert (first.organisation, first.consent, first.annotations) == ("o", False, {"ambiguous": True})
  assert set(first.ratings[1]) == set(records.RATINGS) and first.ratings[1]["hallucination"] is True
  assert (
    cli.main(
      ["label", "export", f"--db={db}", f"--out={tmp_path / 'all.jsonl'}", "--format=answers"]
    )
    == 0
  )
  rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().split("\n") if line]
  assert (
    rows[0]["notes"] == ["", NASTY, ""]
    and rows[0]["shown"] == [2, 0, 1]
    and rows[0]["seconds"] == 12.5
  )
  assert rows[0]["sources"] == list(FROM) and rows[3]["skipped"] == "in Greek"
  assert [record.sources for record in records.read(out, "comparison")] == [FROM, FROM, None]


def test_continuations_go_out_and_in_as_records_alone(tmp_path, capsys):
  rated = [
    {"continuity": 7 - at, "toxicity": at % 3, "relative_toxicity": at % 3 - 1} for at in range(3)
  ]
  value = {"ranks": [1, 2, 2], "ratings": rated, "notes": [""] * 3}
  answers = [Answer(TASKS[0], name, value, order=(0, 1, 2)) for name in ("ana", "ben")]
  db = fill(tmp_path / "a.sqlite", "continuation", TASKS[:1], answers)
  out = tmp_path / "rated.jsonl"
  assert cli.main(["label", "export", f"--db={db}", f"--out={out}"]) == 0
  assert [list(record.ratings) for record in records.read(out, "comparison")] == [rated, rated]
  take = lambda form: cli.main(
    [
      "label",
      "import",
      f"--db={tmp_path / 'b.sqlite'}",
      f"--file={out}",
      f"--format={form}",
      "--kind=continuation",
    ]
  )
  assert take("records") == 0 and "2 new answers" in capsys.readouterr().out
  assert take("argilla") == 2 and "no form of argilla for continuations" in capsys.readouterr().err
  assert (
    cli.main(["label", "export", f"--db={db}", f"--out={tmp_path / 'x'}", "--format=labelstudio"])
    == 2
  )
  assert "no form of labelstudio for continuations" in capsys.readouterr().err
  assert cli.main(["label", "agreement", f"--db={db}"]) == 0
  assert "alpha/relative_toxicity" in capsys.readouterr().out


def test_agreement_of_a_file(tmp_path, capsys):
  db = fill(tmp_path / "a.sqlite", "comparison", TASKS, ANSWERS)
  assert cli.main(["label", "agreement", f"--db={db}", "--json"]) == 0
  estimates = json.loads(capsys.readouterr().out)
  # Outputs ab are ordered apart, bc alike, and ana ties ac.
  assert estimates["agreement"]["value"] == 0.5 and estimates["agreement"]["n"] == 2
  assert cli.main(["label", "agreement", f"--db={db}"]) == 0
  assert "agreement_ties" in capsys.readouterr().out
  written = fill(tmp_path / "d.sqlite", "demonstration", [], WRITTEN)
  assert cli.main(["label", "agreement", f"--db={written}"]) == 2
  assert "agreement is about rankings" in capsys.readouterr().err


def test_the_label_studio_interface_names_every_field_of_the_tasks():
  rows = labelstudio.to_rows(TASKS, ANSWERS)
  tree = ElementTree.fromstring(labelstudio.interface("comparison", 3))
  tags = {tag.get("name"): tag for tag in tree.iter() if tag.get("name")}
  shown = {
    tag.get("value")[1:] for tag in tags.values() if (tag.get("value") or "").startswith("$")
  }
  assert all(shown <= set(row["data"]) for row in rows)
  regions = [
    region for row in rows for annotation in row["annotations"] for region in annotation["result"]
  ]
  assert {region["type"] for region in regions} == {"ranker", "rating", "choices", "textarea"}
  for region in regions:
    assert (
      tags[region["from_name"]].get("toName") == region["to_name"] and region["to_name"] in tags
    )
    assert tags[region["from_name"]].tag.lower() == region["type"]
  buckets = regions[0]["value"]["ranker"]
  assert buckets == {"rank_1": ["2"], "rank_2": ["1", "3"], "rank_3": []}
  assert [bucket.get("name") for bucket in tags["ranks"]] == list(buckets)


def test_what_label_studio_exports_in_other_projects_is_read():
  items = [{"id": "blog", "title": "t", "body": "x"}, {"id": "wiki", "title": "t", "body": "y"}]
  region = {"from_name": "rank", "to_name": "results", "type": "ranker"}
  for value in ({"ranker": ["wiki", "blog"]}, {"ranker": {"rank": ["wiki", "blog"]}}):
    annotation = {"completed_by": 7, "result": [region | {"value": value}]}
    row = {"id": 3, "data": {"text": "p", "items": items}, "annotations": [annotation]}
    task, ((labeler, answer),), _ = labelstudio.from_row(row, "comparison")
    assert (task, labeler, answer["ranks"]) == (Task("p", ("x", "y")), "7", [2, 1])
  pair = {
    "type": "pairwise",
    "from_name": "pw",
    "to_name": "text1,text2",
    "value": {"selected": "right"},
  }
  row = {
    "data": {"prompt": "p", "text1": "x", "text2": "y"},
    "annotations": [{"result": [pair]}, {"was_cancelled": True}],
  }
  task, values, _ = labelstudio.from_row(row, "comparison")
  assert task.completions == ("x", "y") and [value and value["ranks"] for _, value in values] == [
    [2, 1],
    None,
  ]


def test_what_argillas_own_library_writes_is_read():
  """Read back from its server, a ranking is an ordered list of names: ties are lost there, not
  here.
  """
  fields = {"instruction": "p", "response-1": "x", "response-2": "y"}
  user = "5b5e3b0e-0d5c-4c3b-9d0f-3a3f1d4c2f11"
  ranking = {"value": ["response-2", "response-1"], "user_id": user}
  row = {"id": "9", "fields": fields, "metadata": {}, "responses": {"ranking": [ranking]}}
  task, ((labeler, answer),), left_out = argilla.from_row(row, "comparison")
  assert (task, labeler, answer["ranks"]) == (Task("p", ("x", "y"), id="9"), user, [2, 1])
  assert not left_out


def argilla_record(**responses):
  """A record of two outputs, with the value of each question by one user or by several."""
  fields = {"instruction": "p", "response1": "x", "response2": "y"}
  by_question = {}
  for question, values in responses.items():
    values = values if isinstance(values, dict) else {"ana": values}
    by_question[question] = [{"value": value, "user_id": user} for user, value in values.items()]
  return {"id": "9", "fields": fields, "metadata": {}, "responses": by_question}


def test_an_output_that_is_named_by_a_label_is_preferred():
  """A question of any name; overall and notes stand beside it as beside a ranking."""
  row = argilla_record(preference="response2", overall_1=3, overall_2=6, notes_2="good")
  task, ((labeler, answer),), left_out = argilla.from_row(row, "comparison")
  assert (task.completions, labeler, answer["ranks"]) == (("x", "y"), "ana", [2, 1])
  assert [rating["overall"] for rating in answer["ratings"]] == [3, 6]
  assert answer["notes"] == ["", "good"] and not left_out
  row["fields"]["response3"] = "z"
  _, ((_, answer),), _ = argilla.from_row(row, "comparison")
  assert answer["ranks"] == [2, 1, 2]


@pytest.mark.parametrize(
  ("responses", "line"),
  [
    (
      {"preference": "the first"},
      "responses.preference: no ranking, and no answer is one of response1, response2 (ana)",
    ),
    (
      {"best": "response1", "worst": "response2"},
      "responses.best, responses.worst: more than one answer is an output; keep one of these "
      "questions (ana)",
    ),
    (
      {"ranking": [{"value": "response2", "rank": 1}]},
      "responses.ranking: response1 has no rank (ana)",
    ),
  ],
)
def test_what_argilla_holds_and_we_cannot_read_is_named(tmp_path, responses, line):
  path = tmp_path / "x.json"
  good = argilla_record(ranking=[{"value": "response2"}, {"value": "response1"}])
  path.write_text(json.dumps([argilla_record(**responses), good]))
  loaded = exchange.load(path, "comparison", "argilla")
  assert [answer.value["ranks"] for answer in loaded.answers] == [[2, 1]]
  assert len(loaded.tasks) == 2 and loaded.left_out == [f"{path}: item 0: {line}"]


def test_a_demonstration_under_another_name_is_named(tmp_path):
  path = tmp_path / "x.json"
  path.write_text(json.dumps([argilla_record(answer={"ana": "text", "ben": "text"})]))
  loaded = exchange.load(path, "demonstration", "argilla")
  line = f"{path}: item 0: responses.answer: no answer to a question 'demonstration'"
  assert loaded.left_out == [f"{line} (ana)", f"{line} (ben)"] and not loaded.answers


def test_one_unfinished_annotation_leaves_the_others(tmp_path, capsys):
  """Of three annotations of a pair one ranks nothing; one of the next has half a rating."""
  pair = {"type": "pairwise", "from_name": "pw", "to_name": "a,b", "value": {"selected": "left"}}
  flags = {
    "type": "choices",
    "from_name": "flags_1",
    "to_name": "a",
    "value": {"choices": ["opinion"]},
  }
  data = {"prompt": "p", "text1": "x", "text2": "y"}
  annotations = [
    {"completed_by": {"email": "ana@x"}, "result": [pair]},
    {"completed_by": {"email": "ben@x"}, "result": []},
    {"completed_by": {"email": "eve@x"}, "was_cancelled": True},
  ]
  incomplete = [{"completed_by": 7, "result": [pair, flags]}]
  rows = [
    {"data": data, "annotations": annotations},
    {"data": data | {"prompt": "q"}, "annotations": incomplete},
  ]
  path = tmp_path / "x.json"
  path.write_text(json.dumps(rows))
  loaded = exchange.load(path, "comparison", "labelstudio")
  assert [(answer.labeler, bool(answer.value)) for answer in loaded.answers] == [
    ("ana@x", True),
    ("eve@x", False),
  ]
  assert loaded.left_out == [
    f"{path}: item 0: annotations[1]: output left has no rank, so it is not finished (ben@x)",
    f"{path}: item 1: ratings[0].overall: an integer from 1 (worst) to 7 (best) is expected (7)",
  ]
  options = [f"--db={tmp_path / 'l.sqlite'}", f"--file={path}", "--format=labelstudio"]
  assert cli.main(["label", "import", *options, "--kind=comparison"]) == 0
  output = capsys.readouterr()
  assert "2 new answers (0 known), 2 answers left out" in output.out
  assert output.err.splitlines() == [f"left out: {line}" for line in loaded.left_out]


def test_all_problems_of_a_foreign_file_are_listed(tmp_path):
  path = tmp_path / "x.json"
  item = {"id": "1", "body": "x"}
  unranked = {
    "data": {"prompt": "p", "items": [item, item | {"id": "2"}]},
    "annotations": [{"result": []}],
  }
  bad = [{"prompt": "p"}, {"prompt": "p", "items": [item]}, {"items": [item, item]}]
  path.write_text(json.dumps([1, *({"data": data} for data in bad), {"data": 1}, unranked]))
  with pytest.raises(UserError) as error:
    exchange.load(path, "comparison", "labelstudio")
  places = [
    line.removeprefix(f"{path}: ").partition(":")[0] for line in str(error.value).split("\n")
  ]
  assert places == [f"item {at}" for at in range(5)]


FUZZ = settings(
  deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
rows = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(),
  lambda inner: st.lists(
    st.dictionaries(
      st.sampled_from(
        [
          "data",
          "fields",
          "annotations",
          "responses",
          "result",
          "ranking",
          "prompt",
          "items",
          "value",
          "response_1",
        ]
      ),
      inner,
      max_size=4,
    ),
    max_size=3,
  ),
  max_leaves=12,
)


forms, kinds = (
  st.sampled_from(["labelstudio", "argilla", "records"]),
  st.sampled_from(["comparison", "demonstration"]),
)


@FUZZ
@given(content=rows | st.binary(max_size=50), form=forms, kind=kinds)
def test_any_file_gives_tasks_or_a_user_error(tmp_path, content, form, kind):
  path = tmp_path / "x.json"
  path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
  try:
    exchange.load(path, kind, form)
  except UserError as error:
    assert str(error)


def test_labeling_starts_without_jax():
  code = (
    "import sys; from instructjax.commands import cli\n"
    "from instructjax.data.records import agreement\n"
    "from instructjax.label import exchange, server, store\n"
    "slow = {'jax', 'flax', 'orbax', 'ml_collections'} & set(sys.modules)\n"
    "sys.exit(f'imported {slow}' if slow else 0)"
  )
  run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert run.returncode == 0, run.stderr


def test_half_a_character_in_the_facts_of_a_record_is_named(tmp_path):
  """JSON can spell half of a pair, which no file and no data base can hold."""
  path = tmp_path / "x.json"
  path.write_text('[{"id": "\\ud800"}]')
  with pytest.raises(UserError, match=r"x\.json: not JSON"):
    exchange.load(path, "comparison", "argilla")
