"""One model under lm-evaluation-harness twice: our run under our adapter, and what `instructjax
export` wrote of it under the harness's own transformers model. The printed tables are the same.

All tasks run on local files, of every kind of request: choices with and without exemplars, a last
word, whole texts, and texts until a stop; then three of them as chats in the model's template.
"""

import json

import jax
import pytest
import tiny

from instructjax import models
from instructjax.data.tokens import tokenizers
from instructjax.evals import harness
from instructjax.runs import origin
from instructjax.settings import reading
from instructjax.stages import export

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

CONFIG = origin.SHAPES["tiny"]
WORDS = ["sky", "sea", "tree", "iron", "four", "wet", "blue", "old", "bird", "stone", "rain", "sun"]
ROWS = [
  {
    "question": f"Is the {a} like the {b}? {'It is. ' * (n % 4)}The {a} is",
    "choices": [b, f"not {c}", f"{c} and {a}"],
    "label": n % 3,
    "answer": b,
    "text": f"The {a} saw the {b}; then the {c} came, {n} times.",
  }
  for n, (a, b, c) in enumerate(
    zip(WORDS, WORDS[1:] + WORDS[:1], WORDS[5:] + WORDS[:5], strict=True)
  )
]
HEAD = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}, train: {file}}}}}
test_split: test
fewshot_split: train
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: label
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
UNTIL = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: answer
generation_kwargs: {until: UNTIL, max_gen_toks: 12, do_sample: false}
"""
TASKS = {
  "local_choice": CHOICE,
  "local_choice_shots": CHOICE + "num_fewshot: 1\nfewshot_config: {sampler: first_n}\n",
  "local_last_word": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{answer}}"
metric_list: [{metric: acc}]
""",
  "local_whole": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
  "local_until": UNTIL.replace("UNTIL", '["\\n"]')
  + "metric_list: [{metric: chrf}, {metric: exact_match}]\n",
  "local_until_filtered": UNTIL.replace("UNTIL", '["q", "e e"]')
  + """
num_fewshot: 1
fewshot_config: {sampler: first_n}
metric_list: [{metric: exact_match, regexes_to_ignore: ["[^a-f]"]}]
filter_list:
  - name: letters
    filter: [{function: regex, regex_pattern: "([a-z]+)"}, {function: take_first}]
""",
}
# Numbers that are printed with more digits than float32 has; they are compared as numbers.
PERPLEXITIES = {
  "local_perplexity": TASKS["local_last_word"].replace("metric: acc", "metric: perplexity"),
  "local_byte_perplexity": TASKS["local_whole"].replace("bits_per_byte", "byte_perplexity"),
}
CHATS = ("local_choice_shots", "local_last_word", "local_until_filtered")
TEMPLATE = (
  "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
  "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
  "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """(The run, what was exported of it, the tasks)."""
  folder = tmp_path_factory.mktemp("parity")
  params = tiny.perturb(models.build(CONFIG).init(jax.random.key(0)), 0.2)
  about = origin.describe(CONFIG, tokenizers.BYTES)
  origin.finish(folder / "run", 1, params, about, "policy")
  exported = export.export(str(folder / "run"), folder / "out")
  (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  (folder / "tasks").mkdir()
  for name, body in (TASKS | PERPLEXITIES).items():
    text = HEAD.format(name=name, file=folder / "rows.jsonl") + body
    (folder / "tasks" / f"{name}.yaml").write_text(text)
  return folder / "run", exported, folder / "tasks"


def ours(folders, tmp_path, tasks, **options):
  run, _, include = folders
  config = reading.override(reading.load("eval"), [("model.dtype", "float32"), ("tokens", "2048")])
  harness.main(
    config, str(run), tasks, tmp_path / "eval", shots=None, limit=0, include=str(include), **options
  )
  return json.loads((tmp_path / "eval" / "lm_eval.json").read_text())


def theirs(folders, tasks, **options):
  from lm_eval.models.huggingface import HFLM
  from lm_eval.tasks import TaskManager

  _, exported, include = folders
  model = HFLM(pretrained=str(exported), dtype="float32", device="cpu", batch_size=4)
  assert model.max_length == 256
  if options:
    model.tokenizer.chat_template = TEMPLATE
  return lm_eval.simple_evaluate(
    model=model,
    tasks=tasks,
    task_manager=TaskManager(include_path=str(include)),
    random_seed=0,
    numpy_random_seed=0,
    torch_random_seed=0,
    fewshot_random_seed=0,
    **options,
  )


def table(results):
  """The lines that the harness prints, without those that are empty for one of the two."""
  from lm_eval.utils import make_table

  return make_table(results).splitlines()


def test_six_tasks_print_the_same_digits(folders, tmp_path, monkeypatch):
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
  tasks = list(TASKS)
  mine, public = ours(folders, tmp_path, tasks), theirs(folders, tasks)
  assert len(tasks) == 6
  assert table(mine) == table(public)
  # The tasks tell models apart: their numbers are no zeros and ones.
  values = [
    value
    for results in mine["results"].values()
    for name, value in results.items()
    if isinstance(value, float) and "stderr" not in name
  ]
  assert sum(value not in (0, 1) for value in values) >= 5


def test_perplexities_are_the_same(folders, tmp_path, monkeypatch):
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
  tasks = list(PERPLEXITIES)
  mine, public = ours(folders, tmp_path, tasks), theirs(folders, tasks)
  for task, metric in zip(tasks, ("perplexity,none", "byte_perplexity,none"), strict=True):
    value = mine["results"][task][metric]
    assert value == pytest.approx(public["results"][task][metric], rel=1e-4) and value > 10


def test_chats_print_the_same_digits(folders, tmp_path, monkeypatch):
  """Exemplars as turns, with a message of the system, through the model's own template."""
  from instructjax.data.tokens import chat
  from instructjax.evals import subject

  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
  real = subject.open_subject

  def with_template(source, config, parts):
    opened = real(source, config, parts)
    template = chat.load("test", TEMPLATE, {}, opened.tokenizer)
    return opened._replace(own_template=lambda: template)

  monkeypatch.setattr(subject, "open_subject", with_template)
  mine = ours(folders, tmp_path, list(CHATS), chats=True, system="Be brief.")
  public = theirs(
    folders,
    list(CHATS),
    apply_chat_template=True,
    fewshot_as_multiturn=True,
    system_instruction="Be brief.",
  )
  assert table(mine) == table(public)
  (sample, *_) = json.loads((tmp_path / "eval" / "lm_eval.local_choice_shots.json").read_text())
  context = sample["arguments"][0][0]
  assert context.startswith("[system] Be brief.[user] ") and context.count("[user]") == 2
  assert context.endswith("[assistant] ")
