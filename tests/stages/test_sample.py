"""Several models at several temperatures in one command: what is left for people to rank, and how
it goes on.
"""

import json
import shutil

import jax.numpy as jnp
import pytest
from stage_runs import files, run

from instructjax.data.batches import pipeline
from instructjax.data.records.records import Comparison
from instructjax.data.tokens import tokenizers
from instructjax.label import tasks
from instructjax.runs import origin, writers
from instructjax.settings.sampling import PromptData
from instructjax.stages import drawing, sample

SMALL = [
  "--config.data.prompt=12",
  "--config.sampling.response=5",
  "--config.batch=2",
  "--config.prompts=5",
]
BOTH = [*SMALL, "--config.sampling.temperature=0.7,1", "--config.n=2", "--config.k=6"]


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def models(base, sft_run):
  return [f"--model=before={base}", f"--model={sft_run}"]


@pytest.fixture(scope="module")
def round_(data, tmp_path_factory, models):
  folder = tmp_path_factory.mktemp("runs") / "round"
  assert run("sample", folder, *files(data, "prompts"), *models, *BOTH) == 0
  return folder


def test_the_outputs_are_tasks_for_labelers_with_their_sources(round_):
  rows = lines(round_ / "samples.jsonl")
  assert [row["prompt"] for row in rows] == [f"say {i}" for i in range(5)]
  draws = lines(round_ / "draws.jsonl")
  assert [(row["model"], row["temperature"], row["prompt"]) for row in draws] == [
    (model, temperature, prompt)
    for model in ("before", "sft")
    for temperature in (0.7, 1.0)
    for prompt in range(5)
  ]
  said = {(row["model"], row["temperature"], row["prompt"]): row["responses"] for row in draws}
  for at, row in enumerate(rows):
    assert (
      len({text.strip() for text in row["responses"]})
      == len(row["responses"])
      == len(row["sources"])
      == 6
    )
    for text, source in zip(row["responses"], row["sources"], strict=True):
      responses = said[source["model"], source["temperature"], at]
      # The space that parts a response from its prompt is the separator, and no part of it.
      assert text in [response.removeprefix(" ") for response in responses]
      assert source["seed"] == 0
    names = [source["model"] for source in row["sources"]]
    assert 2 <= names.count("sft") <= 4
  found, left_out = tasks.read(round_ / "samples.jsonl", "comparison")
  assert [list(task.sources) for task in found] == [row["sources"] for row in rows] and not left_out


def test_draws_do_not_depend_on_what_else_is_sampled(data, round_, sft_run, tmp_path):
  assert (
    run(
      "sample",
      tmp_path / "one",
      *files(data, "prompts"),
      f"--model={sft_run}",
      *SMALL,
      "--config.n=2",
    )
    == 0
  )
  alone = [row["responses"] for row in lines(tmp_path / "one" / "samples.jsonl")]
  both = lines(round_ / "draws.jsonl")
  assert alone == [
    row["responses"] for row in both if (row["model"], row["temperature"]) == ("sft", 1.0)
  ]
  assert alone != [
    row["responses"] for row in both if (row["model"], row["temperature"]) == ("sft", 0.7)
  ]


@pytest.mark.parametrize("stop", [3, 5, 13])
def test_an_interrupted_round_goes_on_as_if_it_had_not_been(
  data, models, round_, tmp_path, monkeypatch, stop
):
  """After 3 prompts of the first cell (batches of 2), between two cells, and inside the second
  model.
  """
  append, count = writers.append, iter(range(stop))

  def interrupted(path, rows):
    if next(count, None) is None:
      with path.open("a") as file:
        file.write('{"model": "be')
      raise KeyboardInterrupt
    append(path, rows)

  monkeypatch.setattr(writers, "append", interrupted)
  options = [*files(data, "prompts"), *models, *BOTH]
  assert run("sample", tmp_path / "x", *options) == 130
  assert not (tmp_path / "x" / "samples.jsonl").exists()
  monkeypatch.setattr(writers, "append", append)
  opened = []
  real = origin.open_model
  monkeypatch.setattr(
    origin, "open_model", lambda source, *rest: opened.append(source) or real(source, *rest)
  )
  assert run("sample", tmp_path / "x", *options) == 0
  assert len(opened) == (1 if stop > 10 else 2)
  for name in ("draws.jsonl", "samples.jsonl"):
    assert (tmp_path / "x" / name).read_text() == (round_ / name).read_text()


def test_a_row_that_does_not_belong_where_it_is_stops(data, models, round_, tmp_path, capsys):
  """As two processes leave it that drew into one file: rows twice, and under other prompts."""
  options = [*files(data, "prompts"), *models, *BOTH]
  good = lines(round_ / "draws.jsonl")
  other_prompt = [good[0], good[1] | {"of": "0" * 16}]
  for number, (rows, line) in enumerate(
    (
      ([good[0], good[0], *good[1:]], 2),
      (other_prompt, 2),
      ([*good, good[-1]], len(good) + 1),
      ([good[0], good[1] | {"model": "sft"}], 2),
    )
  ):
    work = tmp_path / str(number)
    shutil.copytree(round_, work)
    (work / "samples.jsonl").unlink()
    writers.keep(work / "draws.jsonl", rows)
    assert run("sample", work, *options) == 2
    error = capsys.readouterr().err
    assert f"draws.jsonl:{line}: is of model" in error and "does not belong there" in error
    assert not (work / "samples.jsonl").exists()


def test_a_reward_that_is_not_finite_stops(data, sft_run, reward_run, tmp_path, capsys):
  """The final model of a reward run of an earlier version may hold NaN."""
  from instructjax.runs import checkpoint

  broken = tmp_path / "reward"
  shutil.copytree(reward_run, broken)
  final = checkpoint.Checkpoints(broken / "checkpoints" / "final")
  leaves = {name: jnp.zeros(shape) for name, shape in final.leaves().items()}
  state = {}
  for name, leaf in leaves.items():
    *path, last = name.split("/")
    part = state
    for word in path:
      part = part.setdefault(word, {})
    part[last] = leaf
  state["params"]["head"]["b"] = jnp.float32("nan")
  extra, step = final.extra(), final.latest()
  shutil.rmtree(final.folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint, "first_not_finite", lambda tree: "")
    final.save(step, state, extra)
    final.wait()
  options = [*files(data, "prompts"), f"--model={sft_run}", f"--config.rewards={broken}"]
  for stage in ("sample", "bestofn"):
    work = tmp_path / stage
    assert run(stage, work, *options, *SMALL, "--config.n=2") == 2
    output, error = capsys.readouterr()
    assert "reward reward: the score of response 0 is nan; its prompt begins 'say 0'" in error
    assert "return finite numbers" in error and "nan" not in output
    for path in work.glob("*.json*"):
      assert "NaN" not in path.read_text()


def test_a_finished_round_stays_and_another_needs_another_directory(data, models, round_, capsys):
  before = (round_ / "samples.jsonl").read_text()
  assert run("sample", round_, *files(data, "prompts"), *models, *BOTH) == 0
  assert "30 responses to 5 prompts, drawn before" in capsys.readouterr().out
  assert (round_ / "samples.jsonl").read_text() == before
  assert run("sample", round_, *files(data, "prompts"), *models, *BOTH, "--config.seed=1") == 2
  assert "holds a run with config.seed=0, this one has config.seed=1" in capsys.readouterr().err


def test_a_model_that_was_trained_again_in_its_place_does_not_go_on(
  data, base, sft_run, round_, tmp_path, monkeypatch, capsys
):
  """What was drawn is of other weights: at the end of a round, in the middle of it, and where a run
  only says that it began.
  """
  place, work = tmp_path / "model", tmp_path / "x"
  shutil.copytree(sft_run, place)
  options = [
    *files(data, "prompts"),
    f"--model=sft={place}",
    *SMALL,
    "--config.sampling.temperature=0.7,1",
  ]
  assert run("sample", work, *options) == 0
  known = json.loads((work / "manifest.json").read_text())["models"]["sft"]
  assert known["source"] == str(place) and known["weights"] and known["files"]
  opened, real = [], origin.open_model
  monkeypatch.setattr(
    origin, "open_model", lambda source, *rest: opened.append(source) or real(source, *rest)
  )
  assert run("sample", work, *options) == 0 and not opened
  (place / "manifest.json").write_text('{"started": "again"}')
  assert run("sample", work, *options) == 0 and len(opened) == 1  # the same weights
  shutil.rmtree(place)
  shutil.copytree(base, place)
  capsys.readouterr()
  for drawn in (10, 7):
    writers.keep(work / "draws.jsonl", writers.rows(work / "draws.jsonl")[:drawn])
    assert run("sample", work, *options) == 2
    error = capsys.readouterr().err
    assert (
      f"sft={place} has other weights than the sft={place} that answered in {work} before" in error
    )
  (work / "draws.jsonl").unlink()  # nothing was drawn: it may begin
  assert run("sample", work, *options) == 0


def test_facts_chats_and_scores_come_along(sft_run, reward_run, tmp_path):
  chat = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
  ]
  rows = [
    {"prompt": chat, "user": "u", "use_case": "chat", "consent": True},
    {"prompt": "say", "id": "7"},
  ]
  (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  options = [
    f"--config.data.prompts={tmp_path / 'p.jsonl'}",
    f"--model={sft_run}",
    *SMALL,
    "--config.data.prompt=60",
  ]
  judged = [f"--config.rewards={reward_run}", "--config.n=3", "--config.k=2"]
  assert run("sample", tmp_path / "x", *options, *judged) == 0
  found = lines(tmp_path / "x" / "samples.jsonl")
  assert [
    {name: row[name] for name in asked} for row, asked in zip(found, rows, strict=True)
  ] == rows
  drawn = lines(tmp_path / "x" / "draws.jsonl")
  for row, draw in zip(found, drawn, strict=True):
    of = dict(zip(draw["responses"], draw["scores"]["reward"], strict=True))
    assert row["scores"]["reward"] == [of[text] for text in row["responses"]]
  (first, second), _ = tasks.read(tmp_path / "x" / "samples.jsonl", "comparison")
  assert (
    first.turns == tuple(chat) and first.user == "u" and second.id == "7" and second.turns is None
  )


def test_one_prompt_after_another_in_one_directory(sft_run, tmp_path, capsys):
  for prompt in ("one", "two"):
    assert run("sample", tmp_path, f"--config.prompt={prompt}", f"--model={sft_run}", *SMALL) == 0
    assert f"> {prompt}" in capsys.readouterr().out
  assert [row["prompt"] for row in lines(tmp_path / "samples.jsonl")] == ["one", "two"]


@pytest.mark.parametrize(
  ("options", "what"),
  [
    (
      ["--config.k=7"],
      "config.k=7: 1 models x 1 temperatures x config.n=1 draw 1 responses of a prompt; lower it",
    ),
    (
      ["--config.k=10"],
      "config.k=10: people rank 2 to 9 outputs of a prompt; choose k among them",
    ),
    (
      ["--config.sampling.temperature=0.7,.7"],
      "config.sampling.temperature=0.7,0.7: give different numbers",
    ),
    (
      ["--config.sampling.temperature=-1"],
      "config.sampling.temperature=-1: several by commas, each a number from 0 to 100 is expected",
    ),
    (
      ["--config.sampling.top_p=0"],
      "config.sampling.top_p=0: a number above 0 and up to 1 is expected",
    ),
    (
      ["--config.sampling.temperature=hot"],
      "config.sampling.temperature=hot: several by commas, each a number from 0 to 100",
    ),
    (
      ["--model=x=runs/a", "--model=x=runs/b"],
      "--model: two models are called 'x'; name them: --model=NAME=runs/a",
    ),
    (
      ["--model=a/sft", "--model=b/sft"],
      "--model: two models are called 'sft'; name them: --model=NAME=a/sft",
    ),
  ],
)
def test_what_cannot_be_sampled(data, tmp_path, capsys, options, what):
  assert run("sample", tmp_path / "x", *files(data, "prompts"), *SMALL, *options) == 2
  assert what in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_every_run_is_looked_at_before_the_first_draw(data, sft_run, reward_run, tmp_path, capsys):
  (tmp_path / "half" / "checkpoints").mkdir(parents=True)
  for other, what in (
    (tmp_path / "half", "this run is not finished"),
    (reward_run, "a policy model is needed"),
  ):
    models = [f"--model={sft_run}", f"--model=b={other}"]
    assert run("sample", tmp_path / "x", *files(data, "prompts"), *models, *SMALL) == 2
    assert what in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_names_of_models(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert sample.named_models("", "tiny") == (("tiny", ""),)
  assert sample.named_models("a=runs/x, owner/name,m.py:make", "tiny") == (
    ("a", "runs/x"),
    ("name", "owner/name"),
    ("m.py:make", "m.py:make"),
  )
  (tmp_path / "k=1,n=2").mkdir()
  assert sample.named_models("k=1,n=2", "tiny") == (("k=1,n=2", "k=1,n=2"),)


def test_a_damaged_line_ends_what_is_known(tmp_path):
  shutil.copy(__file__, tmp_path / "x")
  assert writers.rows(tmp_path / "x") == [] == writers.rows(tmp_path / "none")
  (tmp_path / "x").write_text('{"a": 1}\n{"a": 2}\n{"a"')
  assert writers.rows(tmp_path / "x") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("response", [" one", "  two", "three", "    return x"])
def test_a_response_becomes_the_row_that_was_sampled(response):
  """As the completion of a record it gets the separator back, and no space more or less."""
  data = PromptData()
  completion = drawing.as_completion(response, data)
  record = Comparison("p", (completion, "other"), (1, 2))
  (group,) = pipeline.comparisons([record], tokenizers.of_bytes(), prompt=9, response=99)
  row = bytes(group.rows[0].ids[1:-1].tolist()).decode()
  # A response that begins without the separator is given one: the record has no room to say so.
  assert row == (response if response.startswith(" ") else f" {response}")
  chat = PromptData(template="chat")
  assert drawing.as_completion(response, chat) == response


@pytest.mark.parametrize(
  ("separator", "template", "completion"),
  [(" ", "", "good"), ("x", "", " good"), ("", "", " good"), (" ", "chat", " good")],
)
def test_a_response_loses_the_separator_of_its_prompt(separator, template, completion):
  data = PromptData(separator=separator, template=template)
  assert drawing.as_completion(" good", data) == completion
