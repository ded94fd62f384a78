"""A chat template through the stages by the command line: ids, the reward model's template, what is
exported.
"""

import json

import pytest

from instructjax.commands import cli
from instructjax.data.tokens import chat, tokenizers
from instructjax.runs import origin
from instructjax.runs.checkpoint import Checkpoints

TEMPLATE = (
  "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'A' + m.content + eos_token }}{% else "
  "%}{{ 'U' + m.content }}"
  "{% endif %}{% endfor %}{% if add_generation_prompt %}A{% endif %}"
)
SIZE = [
  "--config.data.prompt=16",
  "--config.data.response=8",
  "--config.batch=2",
  "--config.steps=1",
  "--config.epochs=1",
]


def run(stage, workdir, *options):
  return cli.main([stage, f"--config={stage}:tiny", f"--workdir={workdir}", *options])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Demonstrations of two turns, an SFT run and a reward model."""
  folder = tmp_path_factory.mktemp("chat")
  (folder / "t.jinja").write_text(TEMPLATE)
  ask = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
  ]
  rows = {
    "demonstrations": [{"messages": [*ask, {"role": "assistant", "content": "b"}]}] * 2,
    "comparisons": [{"prompt": ask, "completions": ["b", "c"], "ranks": [1, 2]}] * 2,
    "prompts": [{"prompt": ask}, {"prompt": "q"}] * 2,
    "text": [{"text": "the quick brown fox " * 8}] * 4,
  }
  for name, part in rows.items():
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
  data = f"--config.data.demonstrations={folder / 'demonstrations.jsonl'}"
  assert (
    run(
      "sft",
      folder / "sft",
      data,
      f"--config.data.template={folder / 't.jinja'}",
      "--config.data.spelling=messages",
      *SIZE,
    )
    == 0
  )
  ranked = [f"--config.data.comparisons={folder / 'comparisons.jsonl'}"]
  ranked += ["--config.data.demonstrations=", "--config.data.valid="]
  (folder / "t.jinja").unlink()  # the run remembers it
  assert (
    run(
      "reward",
      folder / "reward",
      f"--model={folder / 'sft'}",
      *ranked,
      "--config.data.template=chat",
      *SIZE,
    )
    == 0
  )
  return folder


def ppo(runs, *options):
  files = [f"--config.data.{name}={runs / name}.jsonl" for name in ("prompts", "text")]
  size = [
    "--config.batch=2",
    "--config.iterations=1",
    "--config.ppo.minibatches=1",
    "--config.sampling.response=4",
  ]
  size += ["--config.data.prompt=16", "--config.data.length=16", "--config.ptx_ratio=1"]
  models = [f"--model={runs / 'sft'}", f"--config.reward_model={runs / 'reward'}"]
  return run("ppo", runs / "ppo", *files, *models, *size, *options)


def about(workdir):
  return Checkpoints(workdir / "checkpoints" / "final").extra()["model"]


def test_a_run_remembers_its_template(runs):
  assert about(runs / "sft")["template"]["text"] == TEMPLATE
  assert origin.template_of(about(runs / "sft")) == origin.template_of(about(runs / "reward")) != ""


def test_another_template_than_the_reward_models_is_an_error(runs, capsys):
  assert ppo(runs) == 2
  said = capsys.readouterr().err
  assert "config.data.template gives plain text, the reward model was trained on" in said
  assert "note: the model was trained on a chat template" in said


@pytest.mark.slow
def test_ppo_through_the_template(runs):
  assert ppo(runs, "--config.data.template=chat") == 0
  assert origin.template_of(about(runs / "ppo")) == origin.template_of(about(runs / "sft"))


def test_sample_and_export(runs, capsys):
  small = [
    "--config.data.prompt=16",
    "--config.sampling.response=4",
    "--config.batch=1",
    "--config.prompt=hi",
  ]
  assert (
    run("sample", runs / "sample", f"--model={runs / 'sft'}", "--config.data.template=chat", *small)
    == 0
  )
  assert "> hi" in capsys.readouterr().out
  assert cli.main(["export", f"--model={runs / 'sft'}", f"--out={runs / 'out'}"]) == 0
  assert chat.find(runs / "out")[0] == TEMPLATE
  found = tokenizers.by_reference(str(runs / "out"))
  template = origin.chat_template("chat", {"tokenizer": str(runs / "out")}, found)
  assert found.encode(
    chat.render(template, [{"role": "user", "content": "hi"}], prompt=True)
  ) == list(b"UhiA")


@pytest.mark.oracle
def test_transformers_renders_the_exported_chat_as_we_do(runs):
  transformers = pytest.importorskip("transformers")
  assert cli.main(["export", f"--model={runs / 'sft'}", f"--out={runs / 'public'}"]) == 0
  theirs = transformers.AutoTokenizer.from_pretrained(runs / "public")
  messages = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "b"}]
  ids = theirs.apply_chat_template(messages)["input_ids"]
  assert ids == [*"UhéAb".encode(), 256]


def tune(runs, tmp_path, rows, *options):
  """Trains one step on chats, from the SFT run and with its template."""
  path = tmp_path / "chats.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  options = [f"--config.data.demonstrations={path}", "--config.data.template=chat", *options]
  model = f"--model={runs / 'sft'}"
  return run("sft", tmp_path / "run", model, "--config.data.spelling=messages", *SIZE, *options)


def test_the_loss_of_a_stage_is_on_the_replies_that_are_named(runs, tmp_path, capsys):
  text = (runs / "demonstrations.jsonl").read_text()
  chat_rows = [json.loads(line) for line in text.splitlines()]
  assert tune(runs, tmp_path, chat_rows, "--config.data.loss=last") == 0
  assert "; 2 earlier replies are not learnt" in capsys.readouterr().err
  manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
  (counts,) = manifest["rows"].values()
  assert counts["unlearnt"] == 2


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ("--config.data.loss=last", "config.data.loss=last learns the last reply alone"),
    ("--config.data.loss=all", "chats.jsonl:2: 1 records have a reply of weight 0 or train false"),
  ],
)
def test_whole_rows_and_single_replies_exclude_each_other(runs, tmp_path, capsys, option, message):
  turns = [{"role": role, "content": "q"} for role in ("user", "assistant", "user", "assistant")]
  marked = [turns[0], turns[1] | {"weight": 0}, *turns[2:]]
  rows = [{"messages": turns}, {"messages": marked}]
  assert tune(runs, tmp_path, rows, option, "--config.loss_on_prompt=true") == 2
  assert message in capsys.readouterr().err
