"""Rewards from outside: the grammar, Python functions, a real server, and PPO, best-of-n and
sampling with them.
"""

import contextlib
import email.utils
import itertools
import json
import socketserver
import threading
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from servers import lengths
from stage_runs import files, leaves, metrics, run

from instructjax import reward, rewards
from instructjax.data.batches import pipeline
from instructjax.data.records import schemas
from instructjax.data.records.records import Prompt
from instructjax.data.tokens import tokenizers
from instructjax.errors import UserError
from instructjax.rewards import endpoint, judge, spec
from instructjax.runs import origin
from instructjax.settings.fields import replaced
from instructjax.settings.reading import load
from instructjax.settings.subjects import LoadedModelSettings
from instructjax.stages import ppo as ppo_stage
from instructjax.stages import reward as reward_stage
from instructjax.types import Rollout

FAST = "wait=0.01,retries=2"
PROMPTS = [f"say {i}" for i in range(5)]
TEXTS = ["a", "bb", "ccc", "", "dd\u00e9"]


@pytest.fixture
def module(tmp_path):
  """Writes a Python file and returns its name."""

  def write(text: str, name: str = "mine.py"):
    (tmp_path / name).write_text(text)
    return tmp_path / name

  return write


def score(source: str, prompts=PROMPTS, texts=TEXTS):
  (scores,) = rewards.score_texts(rewards.open_all(source, {}), prompts, texts).values()
  return scores


def refused(source: str, *args) -> str:
  with pytest.raises(UserError) as error:
    score(source, *args)
  assert "\n" not in str(error.value)
  return str(error.value)


# --- the grammar ---


def test_a_sum_has_weights_kinds_and_options():
  terms = spec.parse(
    "runs/reward + 0.5*python:my.py:polite + -.1 * python:a.b:short + "
    "http://h:1/s?a=b+c#batch=8,token=KEY + "
    "openai:https://x/v1#gpt-x,concurrent=2 + 1e-3*classifier:owner/name#POS,as=probability + "
    "C:\\run"
  )
  assert [(t.weight, t.kind, t.target, t.choice) for t in terms] == [
    (1, "run", "runs/reward", ""),
    (0.5, "python", "my.py:polite", ""),
    (-0.1, "python", "a.b:short", ""),
    (1, "http", "http://h:1/s?a=b+c", ""),
    (1, "openai", "https://x/v1", "gpt-x"),
    (1e-3, "classifier", "owner/name", "POS"),
    (1, "run", "C:\\run", ""),
  ]
  assert (terms[3].options["batch"], terms[3].options["token"], terms[3].options["timeout"]) == (
    8,
    "KEY",
    60.0,
  )
  assert (terms[4].options["concurrent"], terms[5].options["as"]) == (2, "probability")
  assert spec.names(terms[:6]) == ["reward", "polite", "short", "h-1-s", "gpt-x", "name-POS"]
  assert spec.names(spec.parse("a/reward + b/reward + c/reward")) == [
    "reward",
    "reward-2",
    "reward-3",
  ]
  assert rewards.open_all(" ", {}) == ()


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("runs/a + ", "a reward is empty: rewards are written SOURCE, WEIGHT*SOURCE"),
    ("half*python:my.py:f", "rewards are written SOURCE, WEIGHT*SOURCE"),
    ("pyton:my.py:f", "rewards are written SOURCE"),
    ("python:my.py", "names no function, write python:FILE.py:FUNCTION"),
    ("openai:http://h/v1", "names no model"),
    ("http://h/s#batch=0", "batch=0 must be at least 1"),
    ("http://h/s#batch=x", "batch=x is no number; the default is 32"),
    ("http://h/s#timeout=nan", "timeout=nan must be at least"),
    ("http://h/s#size=2", "'size=2' is no option; known are batch=, token="),
    ("http:///s", "no valid address"),
    ("http://h:99999/s", "no valid address"),
    ("https://me:secret@h/s", "put it in an environment variable"),
    ("runs/none", "not the directory of a finished `instructjax reward` run"),
    (
      "http://h/s#token=NO_SUCH_VARIABLE",
      "environment variable NO_SUCH_VARIABLE of #token= is not set",
    ),
    ("http://h/s#header=X-Key", "needs #token=VARIABLE"),
    ("min(runs/a)", "write two sources or more"),
    ("min(runs/a + runs/b)", "write two sources or more"),
    ("min(runs/a, runs/b", "write two sources or more"),
    ("mean - x*std(runs/a, runs/b)", "'x' is no number"),
    ("mean - -1*std(runs/a, runs/b)", "the factor of std must be above 0"),
    ("min(runs/a, )", "a reward is empty"),
  ],
)
def test_what_cannot_be_read_is_explained(text, message):
  with pytest.raises(UserError) as error:
    rewards.open_all(text, LoadedModelSettings())
  assert message in str(error.value)
  assert "secret" not in str(error.value)


def test_weights_make_the_sum(module):
  file = module(
    "def size(p, r):\n  return [len(t) for t in r]\ndef first(p, r):\n  return [float(t[-1]) for t "
    "in p]\n"
  )
  sources = rewards.open_all(f"2*python:{file}:size + -0.5*python:{file}:first", {})
  scores = rewards.score_texts(sources, PROMPTS, TEXTS)
  np.testing.assert_array_equal(scores["size"], [1, 2, 3, 0, 3])
  np.testing.assert_array_equal(scores["first"], [0, 1, 2, 3, 4])
  np.testing.assert_array_equal(rewards.total(sources, scores), [2, 3.5, 5, -1.5, 4])
  about = rewards.manifest(sources)
  assert about["first"]["weight"] == -0.5
  assert len(about["size"]["sha256"]) == 64


# --- Python functions ---


ENSEMBLE = """
def a(p, r):
  return [1, 2, 3, None, None]
def b(p, r):
  return [4, 0, 3, 5, None]
def c(p, r):
  return [1, 1, 1, 1, 1]
"""


def test_an_ensemble_is_one_term_of_the_sum(module):
  """The least of the weighted scores; a member that abstains is none, and all of them no term."""
  file = module(ENSEMBLE)
  a, b, c = (f"python:{file}:{name}#limit=9" for name in "abc")
  sources = rewards.open_all(f"min({a}, 0.5*{b}) + 10*{c}", {})
  scores = {"a": np.array([1, 2, 3, np.nan, np.nan]), "b": np.array([4, 0, 3, 5, np.nan])}
  scores["c"] = np.ones(5)
  np.testing.assert_array_equal(rewards.total(sources, scores), [11, 10, 11.5, 12.5, 10])
  assert [about.get("combined") for about in rewards.manifest(sources).values()] == [
    "min",
    "min",
    None,
  ]
  sources = rewards.open_all(f"{c} + mean - 0.5*std({a}, {b})", {})
  assert [source.name for source in sources] == ["c", "a", "b"]
  expected = [1 + 2.5 - 0.75, 1 + 1 - 0.5, 1 + 3, 1 + 5, 1]
  np.testing.assert_allclose(rewards.total(sources, scores), expected)
  (first, second) = rewards.open_all(f"mean - std({a}, {b})", {})
  assert first.group == second.group == spec.Group(0, 1.0)
  assert np.isnan(rewards.total((first, second), scores)).tolist() == [False] * 4 + [True]


def test_an_ensemble_is_combined_in_a_compiled_function_too():
  scores = np.asarray([[1.0, 4.0, np.nan], [3.0, np.nan, np.nan]], np.float32)
  for combine in (rewards.minimum, partial(rewards.mean_less_deviation, deviations=0.5)):
    on_the_host = combine(scores)
    compiled = jax.jit(combine)(scores)
    assert isinstance(on_the_host, np.ndarray) and isinstance(compiled, jax.Array)
    np.testing.assert_allclose(compiled, on_the_host, rtol=1e-6)
  np.testing.assert_allclose(on_the_host, [1.5, 4.0, np.nan])


def test_two_ensembles_are_two_terms(module):
  file = module(ENSEMBLE)
  pair = f"min(python:{file}:a, python:{file}:b)"
  sources = rewards.open_all(f"{pair} + {pair}", {})
  scores = {source.name: np.array([2.0]) for source in sources}
  np.testing.assert_array_equal(rewards.total(sources, scores), [4])


def test_a_module_by_name_and_one_with_neighbours(module):
  module("def f(p, r):\n  return [1.0] * len(r)\n", "reward_neighbour.py")
  assert score(f"python:{module('from reward_neighbour import f')}:f").tolist() == [1.0] * 5
  assert score("python:reward_neighbour:f").tolist() == [1.0] * 5  # its folder is on the path now


@pytest.mark.parametrize(
  ("code", "message"),
  [
    (
      "def f(p, r):\n  return g(r)\ndef g(r):\n  return 1 / 0\n",
      "f raised ZeroDivisionError: division by zero at {}:4",
    ),
    (
      "import json\ndef f(p, r):\n  return json.loads('{')\n",
      "f raised JSONDecodeError: Expecting property name",
    ),
    ("def f(p, r):\n  return [1.0]\n", "reward f: returned [1.0] of shape (1,) for 5 responses"),
    ("def f(p, r):\n  pass\n", "reward f: returned None of shape ()"),
    ("def f(p, r):\n  return ['x'] * 5\n", "numbers are expected"),
    (
      "def f(p, r):\n  return [1, 2, float('nan'), 4, 5]\n",
      "response 2 is nan; its prompt begins 'say 2', the response 'ccc'",
    ),
    ("def f(p, r):\n  return [1, 2, 3, 4, 1e300]\n", "reward f: the score of response 4 is inf"),
    ("def g(p, r):\n  pass\n", "has no function 'f'; it has g"),
    (
      "x = 1\ny = x.no\n",
      "importing it raised AttributeError: 'int' object has no attribute 'no' at {}:2",
    ),
    ("def f(:\n", "importing it raised SyntaxError"),
  ],
)
def test_what_is_wrong_with_a_function_is_one_line(code, message, module):
  file = module(code)
  assert message.format(file) in refused(f"python:{file}:f")


def test_the_line_is_the_users_and_not_a_librarys(module):
  file = module("import json\ndef f(p, r):\n\n  return json.loads('{')\n")
  assert refused(f"python:{file}:f").endswith(f"at {file}:4")
  assert "no such file" in refused("python:none.py:f")
  assert "Python finds no module 'no_such_module'" in refused("python:no_such_module:f")


# --- servers ---


def test_batches_keep_their_order_and_size(server):
  texts = [f"{'x' * (i % 7)}" for i in range(23)]
  assert score(f"{server.url}#batch=5,concurrent=3", ["p"] * 23, texts).tolist() == [
    i % 7 for i in range(23)
  ]
  assert sorted(len(body["responses"]) for _, body, _, _ in server.asked) == [3, 5, 5, 5, 5]
  assert all(body["prompts"] == ["p"] * len(body["responses"]) for _, body, _, _ in server.asked)


def test_a_few_at_a_time(server):
  def slowly(*args):
    time.sleep(0.05)
    return lengths(*args)

  server.answer = slowly
  score(f"{server.url}#batch=1,concurrent=2")
  assert (len(server.asked), server.most) == (5, 2)


@pytest.mark.parametrize("status", [503, 500, 429, 408])
def test_what_may_pass_is_tried_again(server, status):
  server.answer = lambda *args: (status, {}, b"busy") if args[2] < 2 else lengths(*args)
  assert score(f"{server.url}#{FAST}").tolist() == [1, 2, 3, 0, 3]
  assert len(server.asked) == 3
  pauses = np.diff([at for *_, at in server.asked])
  assert pauses[0] >= 0.005 and pauses[1] >= 0.01


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(server, as_date):
  when = lambda: email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "0.3"
  server.answer = lambda *args: (
    (429, {"Retry-After": when()}, b"") if not args[2] else lengths(*args)
  )
  score(f"{server.url}#{FAST}")
  pause = server.asked[1][3] - server.asked[0][3]
  assert (0.9 if as_date else 0.3) <= pause < 10


def test_it_gives_up(server):
  server.answer = lambda *args: (503, {}, b"busy")
  assert "answered 503 Service Unavailable, asked 3 times; see that the server runs" in refused(
    f"{server.url}#{FAST}"
  )
  assert len(server.asked) == 3


def test_nobody_there_and_nobody_answering(server):
  done = threading.Event()
  server.answer = lambda *args: (done.wait(5), lengths(*args))[1]
  try:
    assert "no answer in 0.1 s, asked 3 times" in refused(f"{server.url}#{FAST},timeout=0.1")
  finally:
    done.set()
  assert "no answer (" in refused(f"http://127.0.0.1:9/x#{FAST}")


@pytest.mark.parametrize(
  ("reply", "message"),
  [
    ((400, {}, b"no  such\nfield"), "answered 400 Bad Request: no such field"),
    ((401, {}, b""), "name the variable of its token with #token=VARIABLE"),
    ((302, {"Location": "http://else/"}, b""), "redirects are not followed, to http://else/"),
    ((200, {}, {"scores": [1.0]}), "answered 1 scores for 5 responses"),
    ((200, {}, {"scores": [1, 2, 3, 4, "5"]}), 'score 4 of 5 is "5", a number or null is'),
    ((200, {}, {"scores": [1, 2, None, 4, 5]}), "the score of response 2 is nan; its prompt"),
    ((200, {}, {"scores": [1, True, 3, 4, 5]}), "score 1 of 5 is true"),
    ((200, {}, {"score": 1}), 'answered {"score": 1}; {"scores": [...]} is expected'),
    (
      (200, {}, b'{"scores": [1, 2, NaN, 4, 5]}'),
      "JSON is expected (NaN is no number of JSON)",
    ),
    ((200, {}, b"<html>"), "answered <html>; JSON is expected"),
  ],
)
def test_what_will_not_pass_is_asked_once(server, reply, message):
  server.answer = lambda *args: reply
  assert message in refused(f"{server.url}#{FAST}")
  assert len(server.asked) == 1


def test_the_first_error_ends_all_requests(server):
  server.answer = lambda path, body, number: (
    (400, {}, b"") if "a" in body["responses"] else (503, {}, b"")
  )
  begun = time.monotonic()
  assert "answered 400" in refused(f"{server.url}#batch=1,concurrent=2,wait=20,retries=5")
  assert time.monotonic() - begun < 5
  assert len(server.asked) <= 3


def test_a_token_comes_from_the_environment_and_stays_there(server, monkeypatch):
  monkeypatch.setenv("MY_TOKEN", "s3cret")
  for option, name, value in (
    ("", "Authorization", "Bearer s3cret"),
    (",header=X-Api-Key", "X-Api-Key", "s3cret"),
  ):
    sources = rewards.open_all(f"{server.url}#token=MY_TOKEN{option}", {})
    rewards.score_texts(sources, PROMPTS, TEXTS)
    assert server.asked[-1][2][name] == value
    assert "s3cret" not in json.dumps(rewards.manifest(sources))
  server.answer = lambda *args: (403, {}, b"")
  assert "s3cret" not in refused(f"{server.url}#token=MY_TOKEN")


def test_a_chat_model_judges(server, tmp_path):
  def chat(path, body, number):
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("llm", 0)
    message = body["messages"][0]["content"]
    response = message.split("|")[1]
    answer = "I would say so"  # without a number, at first
    if number:
      answer = f"3 points for style, so {len(response)}/10"
    return 200, {}, {"choices": [{"message": {"content": answer}}]}

  server.answer = chat
  (tmp_path / "t.txt").write_text("{prompt}|{response}")
  url = server.url.replace("/score", "/v1/")
  scores = score(
    f"openai:{url}#llm,template={tmp_path / 't.txt'},concurrent=1,{FAST}",
    ["p"] * 2,
    ["abc", "{prompt}"],
  )
  assert scores.tolist() == [3, 8]  # "{prompt}" in a response is text
  assert len(server.asked) == 3  # the answer without a number was asked for again
  server.answer = lambda *args: (200, {}, {"choices": [{"message": {"content": "11"}}]})
  assert (
    "the model said '11', which does not end with a number from 1 to 10, asked 3 times"
    in refused(f"openai:{url}#llm,{FAST}")
  )
  server.answer = lambda *args: (200, {}, {"error": "no model"})
  assert "no chat completion" in refused(f"openai:{url}#llm,{FAST}")
  (tmp_path / "t.txt").write_text("{prompt}")
  assert "{response} is missing" in refused(f"openai:{url}#llm,template={tmp_path / 't.txt'}")


def test_the_template_of_a_judge_has_both_texts():
  text = judge.filled(judge.TEMPLATE, prompt="a question", response="an answer")
  assert "Instruction:\na question\n" in text and "Response:\nan answer\n" in text
  assert endpoint.brief("x" * 200) == "x" * 117 + "..."


# --- stages ---


def ppo(data, workdir, init, source, *options):
  size = {
    "batch": 8,
    "iterations": 4,
    "ppo.minibatches": 2,
    "sampling.response": 6,
    "data.prompt": 12,
    "data.length": 24,
    "ptx_ratio": 1,
  }
  settings = [f"--config.{name}={value}" for name, value in size.items()]
  reward = [f"--model={init}", f"--config.rewards={source}"]
  return run("ppo", workdir, *files(data, "prompts", "text"), *reward, *settings, *options)


COUNT = """\
def letters(prompts, responses):
  return [sum(c in 'aeiou' for c in text) for text in responses]
"""


@pytest.mark.slow
def test_ppo_goes_on_after_its_server_failed_bit_for_bit(
  data, base, reward_run, server, module, tmp_path, capsys
):
  """Three sources; nothing compiles after the first iteration; the state before the failure is
  saved.
  """
  sources = f"python:{module(COUNT)}:letters + 0.5*{server.url}#batch=3,{FAST} + 2*{reward_run}"
  again = partial(ppo, data, init=base, source=sources)
  with tiny.compilations("draw") as drawing, tiny.compilations("update") as learning:
    assert again(tmp_path / "whole") == 0
  assert (len(drawing), len(learning)) == (1, 1)
  name = spec.names(spec.parse(server.url))[0]
  for row in metrics(tmp_path / "whole"):
    parts = [row[f"objective/score/{source}"] for source in ("letters", name, "reward")]
    assert row["objective/scores"] == pytest.approx(np.dot(parts, [1, 0.5, 2]), rel=1e-5)
  assert {body["prompts"][0] for _, body, _, _ in server.asked} <= {f"say {i}" for i in range(8)}
  count = len(server.asked)
  server.answer = lambda *args: (
    lengths(*args) if args[2] < count + 7 else (400, {}, b"broken")
  )  # 3 requests an iteration
  assert again(tmp_path / "parts") == 2
  error = capsys.readouterr().err
  assert "Traceback" not in error
  assert "answered 400 Bad Request: broken" in error
  assert "ppo: step 2 of 4 is kept; run the same command again to go on from there" in error
  server.answer = lengths
  assert again(tmp_path / "parts") == 0
  assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
  whole = leaves(tmp_path / "whole", "ppo")
  parts = leaves(tmp_path / "parts", "ppo")
  assert whole.keys() == parts.keys()
  for leaf in whole:
    np.testing.assert_array_equal(whole[leaf], parts[leaf], err_msg=leaf)
  about = json.loads((tmp_path / "parts" / "manifest.json").read_text())["rewards"]
  assert (about["reward"]["weight"], about[name]["source"]) == (2, f"{server.url}#batch=3,{FAST}")


@pytest.mark.slow  # 40 iterations, about 20 s
def test_ppo_learns_a_function(data, base, module, tmp_path):
  options = [
    "--config.iterations=40",
    "--config.batch=32",
    "--config.sampling.response=12",
    "--config.ppo.ptx_coef=0",
  ]
  options += ["--config.policy_optimizer.lr=3e-3", "--config.kl.coef=0", "--config.ppo.epochs=2"]
  assert ppo(data, tmp_path / "ppo", base, f"python:{module(COUNT)}:letters", *options) == 0
  scores = [row["objective/scores"] for row in metrics(tmp_path / "ppo")]
  assert np.mean(scores[-5:]) > 2 * np.mean(scores[:5])


@pytest.mark.slow
def test_the_same_reward_model_inside_and_outside(data, base, reward_run, tmp_path):
  """Scores that a compiled part computes, and those that come between two, give the same run."""
  judged = f"--config.reward_model={reward_run}"
  assert ppo(data, tmp_path / "in", base, "", judged, "--config.iterations=2") == 0
  assert ppo(data, tmp_path / "out", base, str(reward_run), judged, "--config.iterations=2") == 0
  for inside, outside in zip(metrics(tmp_path / "in"), metrics(tmp_path / "out"), strict=True):
    for name in inside.keys() - {"stage"}:
      assert outside[name] == pytest.approx(inside[name], rel=2e-4, abs=2e-5), name
    assert outside["objective/score/reward"] == pytest.approx(outside["objective/scores"], rel=1e-5)


def test_bestofn_and_sample_with_functions(data, base, module, reward_run, tmp_path):
  small = [
    "--config.data.prompt=12",
    "--config.sampling.response=6",
    "--config.batch=2",
    "--config.prompts=3",
  ]
  options = [*files(data, "prompts"), f"--model={base}", *small, "--config.n=4"]
  file = module(COUNT + "def spaces(p, r):\n  return [float(t.count(' ')) for t in r]\n")
  sources = f"--config.rewards=python:{file}:letters + 2*python:{file}:spaces"
  assert run("bestofn", tmp_path / "best", *options, sources, f"--config.gold={reward_run}") == 0
  rows = [
    json.loads(line) for line in (tmp_path / "best" / "samples.jsonl").read_text().splitlines()
  ]
  worth = lambda text: sum(c in "aeiou" for c in text) + 2 * text.count(" ")
  for row in rows:
    assert row["scores"] == {"first": worth(row["first"]), "best": worth(row["best"])}
    assert row["scores"]["best"] >= row["scores"]["first"]
  assert [(row["step"], "gold" in row) for row in metrics(tmp_path / "best")] == [
    (1, True),
    (2, True),
    (4, True),
  ]
  left = [(tmp_path / "best" / name).read_text() for name in ("samples.jsonl", "metrics.jsonl")]
  assert (
    run("bestofn", tmp_path / "best", *options, sources, f"--config.gold={reward_run}") == 0
  )  # again: no line twice
  assert left == [
    (tmp_path / "best" / name).read_text() for name in ("samples.jsonl", "metrics.jsonl")
  ]
  assert run("sample", tmp_path / "sample", *options, sources) == 0
  for line in (tmp_path / "sample" / "samples.jsonl").read_text().splitlines():
    row = json.loads(line)
    assert row["scores"]["spaces"] == [text.count(" ") for text in row["responses"]]


def test_a_run_scores_texts_as_it_scores_ids(reward_run):
  settings = LoadedModelSettings(dtype="float32", remat="none", unroll=1)
  scores = score_with(reward_run, settings, ["say 1", "say"], [" good", " bad and worse"])
  model = origin.open_reward_model(str(reward_run), settings)
  for text, value in zip(("say 1 good", "say bad and worse"), scores):
    ids = jnp.asarray([[*text.encode(), 256]])
    direct = reward.score(
      model.lm, {"lm": model.params, "head": model.head}, ids, jnp.ones_like(ids, bool)
    )
    assert float(direct[0]) == pytest.approx(float(value), abs=1e-5)


def test_a_cut_response_has_one_score(reward_run):
  """As ids of a rollout, as a text, and as a row of a comparison: one row, ended by an end of text.

  80 responses had two scores each before, with a correlation of about 0.
  """
  settings = LoadedModelSettings(dtype="float32", remat="none", unroll=1)
  policy = origin.open_reward_model(str(reward_run), settings)
  prompt, response = "say", " good and bad"
  ids = np.asarray([[*prompt.encode(), *response.encode()]], np.int32)
  mask = np.ones((1, len(response)), bool)
  rows = Rollout(ids, np.ones_like(ids, bool), mask, mask.astype(np.float32), np.zeros(1, bool))
  sources = rewards.open_all(str(reward_run), settings, policy, ids.shape[1])
  on_devices = jax.tree.map(jnp.asarray, rows)
  (as_ids,) = rewards.score_rollout(sources, on_devices, rows, [prompt], policy.tokenizer).values()
  (as_text,) = rewards.score_texts(sources, [prompt], [response[:-1]]).values()
  assert float(as_ids[0]) == pytest.approx(float(as_text[0]), abs=1e-5)
  comparison = schemas.Comparison(prompt, (response[1:] + " more", "x"), (1, 2))
  (group,) = pipeline.comparisons(
    [comparison], policy.tokenizer, prompt=len(prompt), response=len(response)
  )
  np.testing.assert_array_equal(
    group.rows[0].ids, reward.closed(on_devices, policy.tokenizer.eos)[0]
  )
  # A demonstration that fits the bias is made in the same way.
  demonstration = schemas.Demonstration(prompt, response[1:] + " more")
  data = settings_of_data(prompt=len(prompt), response=len(response))
  (row,) = reward_stage.demonstration_rows(data, [demonstration], policy.tokenizer, None, {})
  np.testing.assert_array_equal(row.ids, group.rows[0].ids)


def settings_of_data(**changes):
  """Settings of the reward stage with these lengths."""
  lengths = {f"data.{name}": value for name, value in changes.items()}
  return replaced(load("reward:tiny"), lengths)


def score_with(source, settings, prompts, texts):
  sources = rewards.open_all(str(source), settings)
  (scores,) = rewards.score_texts(sources, prompts, texts).values()
  return scores


def test_best_of_n_changes_the_score_of_a_response_that_did_not_end(data, base, module, tmp_path):
  """As PPO is paid: here no response of the untrained model ends, so that all score -7."""
  options = [
    *files(data, "prompts"),
    f"--model={base}",
    "--config.data.prompt=12",
    "--config.sampling.response=2",
    "--config.batch=2",
    "--config.prompts=2",
    "--config.n=2",
    f"--config.rewards=python:{module(COUNT)}:letters",
    "--config.missing_eos.kind=replace",
    "--config.missing_eos.value=-7",
  ]
  assert run("bestofn", tmp_path / "best", *options) == 0
  lines = (tmp_path / "best" / "samples.jsonl").read_text().splitlines()
  scores = [json.loads(line)["scores"] for line in lines]
  assert scores == [{"first": -7.0, "best": -7.0}] * 2


def test_ppo_without_any_reward_says_what_to_give(data, base, tmp_path, capsys):
  assert ppo(data, tmp_path / "run", base, "") == 2
  assert "config.reward_model is empty" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


# --- fields of prompts, and rewards that abstain ---

SUMS = """
def right(prompts, responses, fields):
  scores = []
  for response, field in zip(responses, fields, strict=True):
    scores.append(float(response.strip() == field["answer"]) if "answer" in field else None)
  return scores


def length(prompts, responses):
  return [float(len(text)) for text in responses]
"""
ASKED = [{"answer": "a"}, {"answer": "b"}, {}, {}, {"answer": "dd\u00e9", "tests": [1]}]


def test_a_function_gets_the_fields_of_the_prompts_and_may_abstain(module):
  sources = rewards.open_all(f"python:{module(SUMS)}:right", {})
  rollout, host, tokenizer = rollout_of(TEXTS)
  scores = rewards.score_rollout(sources, rollout, host, PROMPTS, tokenizer, ASKED)
  np.testing.assert_array_equal(scores["right"], [1, 0, np.nan, np.nan, 1])
  np.testing.assert_array_equal(rewards.total(sources, scores), [1, 0, np.nan, np.nan, 1])
  assert rewards.may_abstain(sources)


def rollout_of(texts):
  """Responses of bytes, as a rollout on the devices and on the host, and their tokenizer."""
  ids = [list(text.encode()) for text in texts]
  mask = np.arange(12) < np.asarray([len(row) for row in ids])[:, None]
  tokens = np.zeros((len(texts), 12), np.int32)
  for row, text_ids in zip(tokens, ids):
    row[: len(text_ids)] = text_ids
  rollout = Rollout(tokens, mask, mask, np.zeros(mask.shape, np.float32), np.ones(len(texts), bool))
  return rollout, rollout, tokenizers.of_bytes()


def test_a_reward_that_abstains_is_left_out_of_the_sum(module):
  """2 * length + right: of the third and the fourth response the length is all there is."""
  file = module(SUMS)
  sources = rewards.open_all(f"2*python:{file}:length + python:{file}:right", {})
  rollout, host, tokenizer = rollout_of(TEXTS)
  scores = rewards.score_rollout(sources, rollout, host, PROMPTS, tokenizer, ASKED)
  assert rewards.total(sources, scores).tolist() == [3, 4, 6, 0, 7]
  measures = ppo_stage.measures_of_rewards(sources, scores)
  assert measures == {
    "objective/score/length": pytest.approx(9 / 5),
    "objective/score/right": pytest.approx(2 / 3),
    "rollout/abstained/length": 0,
    "rollout/abstained/right": pytest.approx(2 / 5),
  }


def test_where_every_response_needs_a_score_nobody_abstains(module):
  (source,) = rewards.open_all(f"python:{module(SUMS)}:right", {})
  with pytest.raises(UserError, match=r"response 2 is nan; .* a reward may not abstain"):
    rewards.score_texts([source], PROMPTS, TEXTS, ASKED)
  by_classifier = source._replace(own=False, texts=lambda prompts, texts: [1, np.nan, 1, 1, 1])
  rollout, host, tokenizer = rollout_of(TEXTS)
  with pytest.raises(UserError, match="response 1 is nan"):
    rewards.score_rollout([by_classifier], rollout, host, PROMPTS, tokenizer, ASKED)
  assert not rewards.may_abstain([source, by_classifier])


def test_fields_are_the_functions_own_to_change(module):
  code = (
    "def f(p, r, fields):\n  fields[0]['tests'].append(2)\n  return [len(fields[0]['tests'])]\n"
  )
  sources = rewards.open_all(f"python:{module(code)}:f#limit=9", {})
  fields = [{"tests": [1]}]
  for _ in range(2):
    assert rewards.score_texts(sources, ["p"], ["r"], fields)["f"] == 2
  assert fields == [{"tests": [1]}]


def test_a_server_gets_fields_where_there_are_any_and_abstains_by_null(server):
  def answer(path, body, number):
    scores = [None if not field else 1.0 for field in body.get("fields", [{"a": 1}] * 5)]
    return 200, {}, {"scores": scores}

  server.answer = answer
  sources = rewards.open_all(f"{server.url}#batch=3,concurrent=1", {})
  rollout, host, tokenizer = rollout_of(TEXTS)
  (scores,) = rewards.score_rollout(sources, rollout, host, PROMPTS, tokenizer, ASKED).values()
  np.testing.assert_array_equal(scores, [1, 1, np.nan, np.nan, 1])
  assert [body["fields"] for _, body, *_ in server.asked] == [ASKED[:3], ASKED[3:]]
  server.asked.clear()
  # A server that was written before there were fields is asked as ever.
  server.answer = lengths
  assert score(f"{server.url}#batch=5").tolist() == [1, 2, 3, 0, 3]
  assert set(server.asked[0][1]) == {"prompts", "responses"}


def test_the_right_answer_of_the_documentation(module):
  page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
  code = page.partition("# sums.py\n")[2].partition("```")[0]
  sources = rewards.open_all(f"python:{module(code)}:right", {})
  texts = [" It is 42.", " 42 is it", "", " 42"]
  rollout, host, tokenizer = rollout_of(texts)
  fields = [{"answer": 42}] * 3 + [{}]
  scores = rewards.score_rollout(sources, rollout, host, ["p"] * 4, tokenizer, fields)
  np.testing.assert_array_equal(scores["right"], [1, 0, 0, np.nan])


def test_a_prompt_with_two_right_answers_is_an_error():
  prompts = [Prompt("2 + 2?", fields={"answer": "4"}), Prompt("1?")]
  assert rewards.fields_by_text(prompts) == {"2 + 2?": {"answer": "4"}, "1?": {}}
  with pytest.raises(
    UserError, match=r"begins '2 \+ 2\?' comes twice, with the fields .*4.* and .*5"
  ):
    rewards.fields_by_text([*prompts, Prompt("2 + 2?", fields={"answer": "5"})])


VOWELS = """
def of_field(prompts, responses, fields):
  return [
    float(text.count(field["letter"])) if "letter" in field else None
    for text, field in zip(responses, fields)
  ]
"""


@pytest.fixture
def some_with_letters(tmp_path):
  """Eight prompts, of which every other one says which letter counts."""
  rows = [{"prompt": f"say {i}"} | ({"letter": "e"} if i % 2 else {}) for i in range(8)]
  path = tmp_path / "letters.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_fields_go_through_ppo(data, base, module, some_with_letters, tmp_path, capsys):
  options = [f"--config.data.prompts={some_with_letters}", "--config.iterations=2"]
  source = f"python:{module(VOWELS)}:of_field"
  assert ppo(data, tmp_path / "run", base, source, "--config.ppo.ptx_coef=0", *options) == 0
  rows = metrics(tmp_path / "run")
  # Two batches of four are an epoch of the eight prompts.
  assert sum(row["rollout/abstained"] for row in rows) == pytest.approx(1)
  assert [row["rollout/abstained"] for row in rows] == [
    row["rollout/abstained/of_field"] for row in rows
  ]
  twice = tmp_path / "twice.jsonl"
  twice.write_text('{"prompt": "say", "letter": "e"}\n{"prompt": "say", "letter": "a"}\n')
  options = [f"--config.data.prompts={twice}", "--config.ppo.ptx_coef=0"]
  assert ppo(data, tmp_path / "twice", base, source, *options) == 2
  assert "config.data.prompts=" in capsys.readouterr().err


def test_fields_go_through_best_of_n_and_sample(base, module, some_with_letters, tmp_path, capsys):
  options = [
    f"--config.data.prompts={some_with_letters}",
    f"--model={base}",
    "--config.data.prompt=12",
    "--config.sampling.response=6",
    "--config.batch=4",
    "--config.prompts=0",
    "--config.n=2",
    f"--config.rewards=python:{module(VOWELS)}:of_field",
  ]
  assert run("bestofn", tmp_path / "best", *options) == 0
  assert "left out: 4 of 8 prompts, because a reward abstained" in capsys.readouterr().out
  lines = (tmp_path / "best" / "samples.jsonl").read_text().splitlines()
  assert [json.loads(line)["prompt"] for line in lines] == [f"say {i}" for i in (1, 3, 5, 7)]
  assert run("sample", tmp_path / "sample", *options) == 0
  for number, line in enumerate((tmp_path / "sample" / "samples.jsonl").read_text().splitlines()):
    row = json.loads(line)
    counts = [float(text.count("e")) for text in row["responses"]]
    assert row["scores"]["of_field"] == (counts if number % 2 else [None, None])
    assert "letter" not in row
  none = tmp_path / "none.jsonl"
  none.write_text('{"prompt": "say"}\n')
  assert run("bestofn", tmp_path / "none", *options, f"--config.data.prompts={none}") == 2
  assert "no prompt has a score of each of its responses" in capsys.readouterr().err


# --- bounds ---


@pytest.fixture
def raw_server():
  """A server that sends what `parts` yields, whatever it is asked; `url` is its address."""

  class Handler(socketserver.BaseRequestHandler):
    def handle(self):
      with contextlib.suppress(OSError):
        self.request.recv(65_536)
        for part in served.parts():
          self.request.sendall(part)

  served = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
  served.daemon_threads = True
  served.block_on_close = False
  served.url = f"http://127.0.0.1:{served.server_address[1]}/score"
  thread = threading.Thread(target=served.serve_forever, args=(0.01,))
  thread.start()
  yield served
  served.shutdown()
  thread.join()
  served.server_close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def slowly(parts, pause=0.05):
  for part in parts:
    yield part
    time.sleep(pause)


@pytest.mark.parametrize("where", ["head", "length", "chunks", "close"])
def test_a_byte_now_and_then_ends_with_the_timeout(raw_server, where):
  """Each pause is far shorter than the timeout, which is for the whole answer."""
  byte = itertools.repeat(b" ", 200)
  begin, parts = {
    "head": (HEAD + b"X: ", byte),
    "length": (HEAD + b"Content-Length: 500\r\n\r\n", byte),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", (b"1\r\n \r\n" for _ in range(200))),
    "close": (HEAD + b"\r\n", byte),
  }[where]
  raw_server.parts = lambda: slowly(itertools.chain([begin], parts))
  start = time.monotonic()
  assert "no answer in 0.3 s" in refused(f"{raw_server.url}#timeout=0.3,retries=0")
  assert time.monotonic() - start < 3


@pytest.mark.parametrize("begin", [b"Transfer-Encoding: chunked\r\n\r\n", b"\r\n"])
def test_an_endless_answer_takes_no_memory(raw_server, begin, monkeypatch):
  monkeypatch.setattr(endpoint, "MAX_BYTES", 100_000)
  part = b"10000\r\n" + b"1" * 65_536 + b"\r\n" if b"chunked" in begin else b"1" * 65_536
  raw_server.parts = lambda: itertools.chain([HEAD + begin], itertools.repeat(part))
  message = refused(f"{raw_server.url}#timeout=20,retries=0")
  assert "the answer has more than 100,000 bytes" in message


def test_an_answer_that_breaks_off_is_asked_for_again(raw_server):
  raw_server.parts = lambda: [HEAD + b'Content-Length: 90\r\n\r\n{"scores": [1']
  assert "no answer (IncompleteRead" in refused(f"{raw_server.url}#{FAST}")


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"[" * 100_000, "JSON is expected (more than 64 objects"),
    (b'{"scores": [1e999, 2, 3, 4, 5]}', "1e999 is larger than float64 holds"),
    (b'{"scores": [1, 2, 3, 4, ' + b"9" * 5000 + b"]}", "a whole number of 5000 digits"),
    (b'{"scores": [1, 2, 3, 4, 1e300]}', "the score of response 4 is inf"),
    (b'{"scores": [1], "scores": [1, 2, 3, 4, 5]}', "the key 'scores' occurs twice"),
    (b"\xff\xfe", "JSON is expected ("),
  ],
)
def test_numbers_and_levels_of_an_answer_have_bounds(server, content, message):
  server.answer = lambda *args: (200, {}, content)
  assert message in refused(f"{server.url}#{FAST}")


@pytest.mark.parametrize("option", ["timeout=inf", "wait=1e300", "retries=10000000", "batch=-1"])
def test_options_have_two_ends(option):
  assert "must be at least" in refused(f"http://localhost/s#{option}")
  assert "the weight 1e999 must be" in refused("1e999*http://localhost/s")


# --- code that ends the program ---


@pytest.mark.parametrize("code", ["sys.exit()", "sys.exit(0)", "raise GeneratorExit", "exit(3)"])
def test_code_that_would_end_the_run_is_an_error(module, code):
  file = module(f"import sys\ndef f(p, r):\n  {code}\n")
  assert refused(f"python:{file}:f").endswith(f"at {file}:3")
  file = module(f"import sys\n{code}\n")
  assert refused(f"python:{file}:f").endswith(f"at {file}:2")


def test_a_function_may_have_a_limit(module):
  file = module("import time\ndef f(p, r):\n  time.sleep(len(r[0]) / 5)\n  return [1.0] * len(p)\n")
  source = f"python:{file}:f#limit=0.1"
  assert score(source, ["p"], [""]).tolist() == [1]
  with pytest.raises(UserError, match=r"f took longer than the 0\.1 seconds of #limit="):
    score(source, ["p"], ["a word"])


def test_an_error_in_a_thread_of_its_own_is_the_same(module):
  file = module("def f(p, r):\n  raise KeyError('x')\n")
  assert f"f raised KeyError: 'x' at {file}:2" in refused(f"python:{file}:f#limit=5")
