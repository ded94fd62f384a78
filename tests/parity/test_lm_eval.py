"""lm-evaluation-harness on our models: tasks of each kind run, and log-likelihoods equal ours."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.evals import harness, subject
from instructjax.evals.tasks import Generate, Likelihood
from instructjax.runs import origin
from instructjax.settings import reading

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

ROWS = [
  {"question": "The sky is", "choices": ["blue", "made of cheese"], "label": 0, "answer": "blue"},
  {"question": "Two and two are ", "choices": ["five", "four"], "label": 1, "answer": "four"},
  {"question": "Water is", "choices": ["wet", "dry", "square"], "label": 0, "answer": "wet"},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: {target}
metric_list: [{{metric: {metric}}}]
{more}
"""


@pytest.fixture(scope="module")
def config():
  return reading.override(reading.load("eval"), [("model.dtype", "float32"), ("tokens", "512")])


@pytest.fixture(scope="module")
def opened(config):
  return subject.open_subject("", config, 1)


def test_any_task_runs(tmp_path, config, capsys, monkeypatch):
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
  file = tmp_path / "rows.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  folder = tmp_path / "tasks"
  folder.mkdir()
  until = 'generation_kwargs: {until: ["\\n"], max_gen_toks: 200}'
  several = {
    "local_choice": ("multiple_choice", "{{question}}", "label", "acc", "doc_to_choice: choices"),
    "local_text": ("generate_until", "{{question}}", "answer", "exact_match", until),
    "local_whole": ("loglikelihood_rolling", "", '"{{question}}"', "bits_per_byte", ""),
  }
  for name, (kind, text, target, metric, more) in several.items():
    body = TASK.format(
      name=name, file=file, kind=kind, text=text, target=target, metric=metric, more=more
    )
    (folder / f"{name}.yaml").write_text(body)
  harness.main(
    config, "", list(several), tmp_path / "run", shots=None, limit=0, include=str(folder)
  )
  left = json.loads((tmp_path / "run" / "lm_eval.json").read_text())
  results, limits = left["results"], left["limits"]
  assert set(results) == set(several) and 0 <= results["local_choice"]["acc,none"] <= 1
  assert limits["local_choice"] == {"requests": 7, "contexts_cut": 0, "answers_shortened": 0}
  assert limits["local_text"] == {"requests": 3, "contexts_cut": 0, "answers_shortened": 3}
  printed = capsys.readouterr().out
  assert "local_whole" in printed
  assert (
    "note: local_text: of 3 requests the answers of 3 were bounded by 128 tokens; the model's "
    "context is 256" in printed
  )

  model = origin.open_model("", config.model, 0)  # bits per byte by a plain computation
  total = 0.0
  for row in ROWS:
    ids = [model.tokenizer.eos[0], *model.tokenizer.encode(row["question"])]
    hidden = model.lm.hidden(model.params, jnp.asarray([ids]), jnp.ones((1, len(ids)), bool))
    logp = np.asarray(jax.nn.log_softmax(model.lm.logits(model.params, hidden)[0]), np.float64)
    total += logp[np.arange(len(ids) - 1), ids[1:]].sum()
  size = sum(len(row["question"].encode()) for row in ROWS)
  assert results["local_whole"]["bits_per_byte,none"] == pytest.approx(
    -total / size / math.log(2), rel=1e-5
  )


def test_loglikelihoods_are_ours(opened):
  from lm_eval.api.instance import Instance

  adapter = harness.adapter(opened, {})
  pairs = [("The sky is", " blue"), ("", "whole text"), ("spaces ", "move"), ("x" * 400, " cut")]
  ask = lambda kind, arguments_of_instances: [
    Instance(kind, {}, arguments, i) for i, arguments in enumerate(arguments_of_instances)
  ]
  theirs = adapter.loglikelihood(ask("loglikelihood", pairs))
  ours = subject.ask(
    opened, [[Likelihood(*(p if p[0] != "spaces " else ("spaces", " move")))] for p in pairs]
  )
  assert theirs == [(reply.logp().logp, reply.logp().greedy) for reply in ours]
  texts = adapter.generate_until(
    ask("generate_until", [("a", {"until": ["e"], "max_gen_toks": 9}), ("b", {"until": []})])
  )
  mine = subject.ask(opened, [[Generate("a", 9, stop=("e",))], [Generate("b", 128, stop=())]])
  assert texts == [reply.completions()[0].text for reply in mine]


def test_a_text_longer_than_the_context_is_the_sum_of_its_windows(opened):
  from lm_eval import utils

  text = "abcdefghij" * 60  # 600 tokens, the context is 256
  (whole,) = harness.rolling(opened, utils, [text])
  ids = opened.tokenizer.encode(text)
  assert len(ids) == 600
  size = opened.context - 1
  (first,) = harness.rolling(opened, utils, [text[:size]])
  assert whole < first < 0
  pieces = harness.rolling(opened, utils, [text[:size], text[: 2 * size]])
  assert pieces[0] > pieces[1] > whole
