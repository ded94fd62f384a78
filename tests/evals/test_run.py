"""The runner of evaluations: answers equal plain computations, are stored, and make tables."""

import csv
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax import likelihood, rollout, sharding
from instructjax.errors import UserError
from instructjax.evals import answers, harness, page, paper, run, subject
from instructjax.evals.tasks import Generate, Item, Likelihood, Metric, Suite, Task, fingerprint
from instructjax.rollout import Sampling
from instructjax.runs import origin, provenance
from instructjax.settings import reading
from instructjax.types import Demonstrations, Prompts

TEXTS = ["a", "some longer text here", "x" * 70, "the cat sat", "b", "hello there"]
BYTES = {"model.tokenizer": "bytes"}


def config(**changes):
  return reading.override(
    reading.load("eval"),
    [("model.dtype", "float32"), ("tokens", "512"), *((k, str(v)) for k, v in changes.items())],
  )


def ask(item):
  text = item.data["text"]
  return [
    Likelihood(text, " yes"),
    Generate(text, 6),
    Generate(text, 4, temperature=1.0, n=3, stop=()),
  ]


def score(items, replies):
  return [
    {"logp": reply.logp().logp, "letters": float(len(reply.text(1))), "none": None}
    for reply in replies
  ]


def suite(texts=TEXTS, score=score, name="plain", judge="", check=None):
  size = lambda t: {"size": "long" if len(t) > 9 else "short"}
  items = [
    Item(str(i), {"text": t}, cluster=str(i // 2), slices=size(t)) for i, t in enumerate(texts)
  ]
  metrics = (
    Metric("logp", paper=("WSC", "accuracy", "few-shot")),
    Metric("letters", decimals=1),
    Metric("none"),
  )
  task = Task(f"{name}/one", items, ask, score, metrics, batch=4, about="a test", judge=judge)
  return lambda config: Suite(name, [task], check=check)


@pytest.fixture(scope="module", autouse=True)
def once():
  """Each model is opened, and its programs compiled, once for all tests."""
  opened, real = {}, subject.open_subject

  def open_once(source, c, parts):
    key = source, c.model.shape, c.seed
    if key not in opened:
      opened[key] = real(source, c, parts)
    return opened[key]

  subject.open_subject = open_once
  yield
  subject.open_subject = real


@pytest.fixture(scope="module")
def model():
  return origin.open_model("", config().model, 0)


@pytest.fixture(scope="module")
def opened():
  return subject.open_subject("", config(), 1)


@pytest.fixture(scope="module")
def stored(opened):
  """The answers of the suite by place, straight from the batches."""
  (task,) = suite()(None).tasks
  answer_by_place = {}
  for number, batch in enumerate(answers.plan(task, opened)):
    for ask, answer in zip(batch.entries, opened.answer(batch, number), strict=True):
      answer_by_place[ask.item, ask.request, ask.sample] = answer
  return answer_by_place


def test_a_likelihood_is_that_of_the_continuation_alone(model, stored):
  encode = model.tokenizer.encode
  for i in (1, 4):
    text = TEXTS[i]
    ids = jnp.asarray([[*encode(text), *encode(" yes")]])
    logits = np.asarray(
      model.lm.logits(model.params, model.lm.hidden(model.params, ids, jnp.ones_like(ids, bool))),
      np.float64,
    )
    logp = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[0, len(encode(text)) - 1 : -1]
    picked = logp[np.arange(4), encode(" yes")]
    answer = stored[i, 0, 0]
    assert answer.tokens == 4 and answer.logp == pytest.approx(picked.sum(), abs=1e-4)
    assert answer.greedy == bool((logp.argmax(-1) == encode(" yes")).all())


def test_choices_are_weighed_alike_with_their_question_and_alone(opened):
  question = "Which of these animals is the one that lays eggs? Answer: the "
  requests = [
    [Likelihood(question + word, end) for end in (" dog", " hen", " elephants", " ox")]
    for word in ("", "old")
  ]
  together = opened.plan(opened.rows(list(enumerate(requests))))
  assert {(batch.fan, len(batch.entries)) for batch in together} == {(4, 4)}
  shared = {
    (a.item, a.request): answer
    for b in together
    for a, answer in zip(b.entries, opened.answer(b, 0), strict=True)
  }
  for item, several in enumerate(requests):
    for at, request in enumerate(several):
      (batch,) = opened.plan(opened.rows([(0, [request])]))
      (alone,) = opened.answer(batch, 0)
      assert batch.fan == 1 and shared[item, at].logp == pytest.approx(alone.logp, abs=1e-4)
      assert (shared[item, at].tokens, shared[item, at].greedy) == (alone.tokens, alone.greedy)


def test_greedy_text_is_the_likeliest_continuation_whatever_the_batch(model, stored):
  for i in (1, 3):  # they stand in batches of other widths
    ids = jnp.asarray([model.tokenizer.encode(TEXTS[i])])
    cfg = Sampling(
      6,
      0.0,
      eos=(*model.tokenizer.eos, *model.tokenizer.encode("\n")),
      banned=model.tokenizer.banned,
    )
    sample = jax.jit(partial(rollout.sample, model.lm, cfg=cfg))
    samples = sample(model.params, Prompts(ids, jnp.ones_like(ids, bool)), jax.random.key(0))
    whole = model.tokenizer.decode(
      np.asarray(samples.tokens[0, -6:])[np.asarray(samples.mask[0])].tolist()
    )
    assert stored[i, 1, 0].text == whole.partition("\n")[0]


def test_samples_differ_and_come_again(opened, stored):
  assert len({stored[i, 2, s].text for i in range(len(TEXTS)) for s in range(3)}) > len(TEXTS)
  (task,) = suite()(None).tasks
  numbered = list(enumerate(answers.plan(task, opened)))
  number, batch = next((n, b) for n, b in numbered if b.decoding and b.decoding.temperature)
  again, other = opened.answer(batch, number), opened.answer(batch, number + 99)
  assert again == [stored[a.item, a.request, a.sample] for a in batch.entries] != other


def test_a_text_without_a_context_follows_an_end_of_text_token(model):
  tokenizer = model.tokenizer
  assert subject.prompt_encoder(tokenizer, None)("") == [*tokenizer.bos, *tokenizer.encode("")] or [
    tokenizer.eos[0]
  ]
  assert subject.prompt_encoder(tokenizer, None, "before ")("x") == [
    *tokenizer.bos,
    *tokenizer.encode("before x"),
  ]


def test_everything_is_left_in_the_directory(tmp_path):
  run.main(config(), tmp_path, {"base": "", "sft": ""}, {"plain": suite()})
  written = json.loads((tmp_path / "results.json").read_text())
  task = written["suites"]["plain"]["tasks"]["plain/one"]
  assert task["n"] == 6 and set(task["models"]) == {"base", "sft"} and task["about"] == "a test"
  assert task["differences"]["base"]["logp"]["value"] == 0  # the same weights
  assert task["models"]["base"]["none"] == {
    "value": None,
    "low": None,
    "high": None,
    "n": 0,
    "clusters": 0,
  }
  assert task["metrics"][0]["paper"]["base"] == [0.587, 0.654, 0.798]
  assert set(task["slices"]["size"]) == {"long", "short"}
  lines = [
    json.loads(line)
    for line in (tmp_path / "scores" / "plain_one" / "base.jsonl").read_text().splitlines()
  ]
  mean = sum(line["scores"]["logp"] for line in lines) / 6
  assert task["models"]["base"]["logp"]["value"] == pytest.approx(mean)
  rows = list(csv.reader((tmp_path / "results.csv").read_text().splitlines()))
  assert rows[0][:4] == ["suite", "task", "metric", "model"] and len(rows) == 1 + 3 * 2 + 3 + 4
  page = (tmp_path / "report.html").read_text()
  assert "plain/one" in page and "paper 0.587 / 0.654 / 0.798" in page and "a test" in page


def test_sizes_of_a_method_are_a_line(tmp_path):
  run.main(config(), tmp_path, {"sft@1.3b": "", "SFT@125m": ""}, {"plain": suite()})
  written = json.loads((tmp_path / "results.json").read_text())
  papers = written["suites"]["plain"]["tasks"]["plain/one"]["metrics"][0]["paper"]
  assert papers == {"sft@1.3b": [0.615], "sft": [0.615, 0.625, 0.779]}
  table = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
  rows = {row["model"]: row for row in table if row["metric"] == "logp"}
  beside = lambda model: [rows[model][f"paper {size}"] for size in paper.SIZES]
  assert beside("sft@1.3b") == ["0.615", "", ""] and beside("SFT@125m") == ["", "", ""]
  assert "polyline" not in page.render("x", written, {})  # both have as many parameters
  for model, size in (
    ("sft@1.3b", 1_300_000_000),
    ("SFT@125m", 125_000_000),
  ):  # near enough to be drawn beside the paper's
    written["models"][model]["parameters"] = size
  html = page.render("x", written, {})
  assert html.count("<polyline") == 2 and 'class="curve dashed sft"' in html
  assert "<title>the paper&#x27;s sft, 175B: 0.779</title>" in html


@pytest.mark.parametrize(
  "models, whose",
  [
    (["sft", "ppo"], "the paper's, 175B"),
    (["sft@6b", "ppo@1.3b"], "the paper's of that size"),
    (["sft@6b", "ppo"], "the paper's: of the size in the name, else 175B"),
  ],
)
def test_the_key_says_which_size_of_the_paper_stands_beside(models, whose):
  assert page.legend(models) == [("gold", whose)] and page.legend([]) == []


def test_a_stopped_run_goes_on_and_gives_the_same(tmp_path, monkeypatch):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  run.main(config(), whole, {"base": ""}, {"plain": suite()})
  path = answers.file(cut / "answers", "plain/one", "base")
  path.parent.mkdir(parents=True)
  kept = answers.file(whole / "answers", "plain/one", "base").read_text()
  path.write_text(kept[: len(kept) // 2])  # in the middle of a line
  (cut / "manifest.json").write_text("{}")
  run.main(config(), cut, {"base": ""}, {"plain": suite()})
  sort = lambda text: sorted(text.splitlines())
  assert sort(path.read_text()) == sort(kept)
  assert json.loads((cut / "results.json").read_text()) == json.loads(
    (whole / "results.json").read_text()
  )
  monkeypatch.setattr(
    subject, "open_subject", None
  )  # nothing is missing: no model is opened, and no score is computed again
  run.main(config(), cut, {"base": ""}, {"plain": suite(score=None)})


def test_a_suite_and_a_model_can_be_added(tmp_path, capsys):
  run.main(config(), tmp_path, {"base": ""}, {"plain": suite()})
  before = answers.file(tmp_path / "answers", "plain/one", "base").read_text()
  run.main(config(), tmp_path, {"base": "", "sft[/v2] <b>": ""}, {"plain": suite()})
  assert answers.file(tmp_path / "answers", "plain/one", "base").read_text() == before
  assert set(results(tmp_path)["models"]) == {"base", "sft[/v2] <b>"}
  assert (
    "sft[/v2]" in capsys.readouterr().out and "<b>" not in (tmp_path / "report.html").read_text()
  )


def results(folder):
  return json.loads((folder / "results.json").read_text())


def test_the_page_shows_all_suites_of_the_directory(tmp_path, capsys):
  run.main(config(limit=3), tmp_path, {"base": "", "sft": ""}, {"plain": suite()})
  first = results(tmp_path)["suites"]["plain"]
  assert (
    first["models"] == ["base", "sft"]
    and first["settings"]["limit"] == 3
    and first["settings"]["baseline"] == "sft"
  )
  capsys.readouterr()
  draws = {"plain": lambda together, look: pytest.fail("there is nothing to draw")}
  run.main(
    config(baseline="ppo"), tmp_path, {"base": "", "ppo": ""}, {"other": suite(name="other")}, draws
  )
  written = results(tmp_path)
  assert written["suites"]["plain"] == first and list(written["suites"]) == ["plain", "other"]
  assert list(written["models"]) == ["sft", "base", "ppo"]
  assert written["suites"]["other"]["models"] == ["base", "ppo"] and written["notes"] == []
  assert set(written["suites"]["other"]["tasks"]["other/one"]["differences"]) == {"base"}
  printed = capsys.readouterr().out
  assert "other/one" in printed and "plain/one" not in printed  # what this command made
  page = (tmp_path / "report.html").read_text()
  assert "Made with baseline sft, limit 3, seed 0, template auto, dtype float32" in page
  assert "Made with baseline ppo, limit 0, seed 0, template auto, dtype float32" in page
  rows = list(csv.reader((tmp_path / "results.csv").read_text().splitlines()))
  assert {(row[0], row[3]) for row in rows[1:]} == {
    ("plain", "base"),
    ("plain", "sft"),
    ("other", "base"),
    ("other", "ppo"),
  }


def test_a_model_that_answered_before_stays_in_the_table_and_nothing_is_asked_of_it(tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  names = []
  run.main(config(), whole, {"base": "", "sft": "", "ppo": ""}, {"plain": suite()})
  run.main(config(), parts, {"base": "", "sft": ""}, {"plain": suite()})
  scored = []
  counted = lambda items, replies: scored.append(len(items)) or score(items, replies)
  run.main(config(), parts, {"ppo": ""}, {"plain": suite(score=counted, check=names.append)})
  assert results(parts)["suites"] == results(whole)["suites"] and results(parts)["notes"] == []
  assert names == [["base", "sft", "ppo"]] and sum(scored) == len(TEXTS)


@pytest.mark.parametrize(
  "change, options, note",
  [
    (
      {"seed": 1},
      {},
      "plain: base is left out, it has answered other items or under other settings",
    ),
    (
      {},
      {"texts": [*TEXTS, "new"]},
      "plain: base is left out, it has not answered every item; add it to --models",
    ),
    (
      {},
      {"judge": "another"},
      "plain: base is left out, another judge has scored it; add it to --models",
    ),
  ],
)
def test_what_does_not_belong_together_is_left_out_and_said(
  tmp_path, capsys, change, options, note
):
  run.main(config(baseline="ppo"), tmp_path, {"base": ""}, {"plain": suite()})
  run.main(config(baseline="ppo", **change), tmp_path, {"ppo": ""}, {"plain": suite(**options)})
  written = results(tmp_path)
  assert written["suites"]["plain"]["models"] == list(written["models"]) == ["ppo"] and written[
    "notes"
  ] == [note]
  assert note in (tmp_path / "report.html").read_text() and note in " ".join(
    capsys.readouterr().out.split()
  )


@pytest.mark.parametrize("damage", ["weights", "manifest", "layout", "whole"])
def test_tables_of_other_models_or_an_earlier_layout_are_left_out(tmp_path, damage):
  run.main(config(), tmp_path, {"base": ""}, {"plain": suite()})
  path, written = tmp_path / "results.json", results(tmp_path)
  if damage == "weights":
    written["models"]["base"]["weights"] = "others"
  elif damage == "manifest":
    (tmp_path / "manifest.json").unlink()
  elif damage == "layout":
    written["suites"]["plain"] = {"tasks": written["suites"]["plain"]["tasks"], "together": {}}
  path.write_text(json.dumps(written)[: 9 if damage == "whole" else None])
  run.main(config(), tmp_path, {"ppo": ""}, {"other": suite(name="other")})
  now = results(tmp_path)
  assert (
    list(now["suites"]) == ["other"] and list(now["models"]) == ["ppo"] and len(now["notes"]) == 1
  )
  assert "left out" in now["notes"][0] and "left out" in (tmp_path / "report.html").read_text()


def test_a_table_without_the_baseline_says_that_there_are_no_differences(tmp_path):
  run.main(config(), tmp_path, {"base": "", "ppo": ""}, {"plain": suite()})
  assert results(tmp_path)["notes"] == [
    "plain: no model is called sft (config.baseline), so there are no differences"
  ]


def test_what_a_suite_needs_of_the_models_is_checked_before_one_is_opened(tmp_path, monkeypatch):
  monkeypatch.setattr(subject, "open_subject", None)

  def check(names):
    raise UserError(f"only {', '.join(names)}")

  with pytest.raises(UserError, match="only base, ppo"):
    run.main(config(), tmp_path / "x", {"base": "", "ppo": ""}, {"plain": suite(check=check)})
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
  "before, change, texts, message",
  [
    ({}, {}, ["another", *TEXTS[1:]], "'0' was given to another question"),
    ({}, {"seed": 1}, TEXTS, "under other settings"),
    ({}, BYTES, TEXTS, "under other settings"),
    (BYTES, BYTES | {"model.shape": "gpt-5m"}, [*TEXTS, "new"], "has other weights than the base="),
  ],
)
def test_answers_to_something_else_are_refused(tmp_path, before, change, texts, message):
  run.main(config(**before), tmp_path, {"base": ""}, {"plain": suite()})
  with pytest.raises(UserError, match=message):
    run.main(config(**change), tmp_path, {"base": ""}, {"plain": suite(texts)})


def test_an_answer_of_before_top_p_is_still_one_to_its_question(tmp_path):
  def prints(*requests):
    task = Task("plain/one", [Item("a", {})], lambda item: requests, score, ())
    return answers.stored(task, tmp_path / "none", "settings").fingerprints

  before = ["Generate", "a", 4, 1.0, ["\n"], 3]
  assert prints(Generate("a", 4, 1.0, n=3)) == [fingerprint("settings", [before])]
  assert prints(Generate("a", 4, 1.0, n=3, top_p=0.9)) == [
    fingerprint("settings", [[*before, 0.9, 0]])
  ]


def test_a_cut_distribution_reaches_the_sampler(opened):
  sample = lambda *how, **cut: opened.answer(
    opened.plan(opened.rows([(0, [Generate("a", 8, *how, **cut)])]))[0], 3
  )[0]
  assert sample(1.0, top_k=1) == sample(1.0, top_p=1e-6) == sample() != sample(1.0)


def test_how_the_harness_samples(opened):
  ask = lambda **options: harness.generation(opened, "a", options)
  sampled = ask(do_sample=True, top_p=0.9, top_k=40, temperature=0.6, until="e")
  assert sampled == Generate("a", 128, 0.6, ("e",), top_p=0.9, top_k=40)
  assert ask(do_sample=False, top_p=0.9) == Generate("a", 128, 0.0, ())
  assert (
    ask(do_sample=True, top_k=-1)
    == ask(do_sample=True, top_p=None, min_p=None)
    == Generate("a", 128, 1.0, ())
  )
  with pytest.raises(UserError, match="the task samples with"):
    ask(do_sample=True, min_p=0.9)


def test_an_id_that_stands_twice_is_refused(tmp_path):
  twice = lambda c: Suite("plain", [Task("one", [Item("a", {}), Item("a", {})], ask, score, ())])
  with pytest.raises(UserError, match="the id 'a' occurs twice"):
    run.main(config(), tmp_path, {"base": ""}, {"plain": twice})


def test_a_broken_line_is_named(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"a": 1}\nnonsense\n{"b": 2}\n')
  with pytest.raises(UserError, match=r"a\.jsonl:2: broken"):
    answers.lines(path)


def test_a_source_may_have_a_prefix():
  assert subject.split("runs/x#prefix=few.txt") == ("runs/x", "few.txt")
  assert subject.split("runs/x") == ("runs/x", "")
  with pytest.raises(UserError, match="only prefix=FILE"):
    subject.split("runs/x#temperature=1")


def test_a_model_after_another_prefix_needs_another_name(tmp_path):
  """Its table is on one page with that of a suite which is evaluated later."""
  for name, text in {"a": "one ", "b": "two ", "c": "one "}.items():
    (tmp_path / f"{name}.txt").write_text(text)
  evaluate = lambda name, title: run.main(
    config(),
    tmp_path / "eval",
    {"few": f"#prefix={tmp_path / name}.txt"},
    {title: suite(TEXTS[:1], name=title)},
  )
  evaluate("a", "plain")
  with pytest.raises(UserError, match="has another prefix than the few="):
    evaluate("b", "second")
  evaluate("c", "second")
  assert set(results(tmp_path / "eval")["suites"]) == {"plain", "second"}


def test_continuation_gives_sums_counts_and_the_likeliest(model):
  tokens = jnp.asarray([[5, 6, 7, 8], [9, 10, 11, 0]])
  valid = tokens > 0
  mask = jnp.asarray([[False, False, True, True], [False, True, True, False]])
  batch = Demonstrations(tokens, valid, mask)
  weigh = jax.jit(partial(likelihood.continuation, model.lm), static_argnums=2)
  logp, count, _ = weigh(model.params, batch, None)
  each, marked = jax.jit(partial(likelihood.masked_logp, model.lm))(model.params, batch)
  np.testing.assert_allclose(logp, (each * marked).sum(1), rtol=1e-6)
  assert count.tolist() == [2, 2] and math.isfinite(float(logp[0]))
  windowed = weigh(model.params, batch, 2)
  np.testing.assert_allclose(windowed[0], logp, rtol=1e-5)


def test_names_that_are_one_file_name_are_kept_apart(tmp_path):
  names = ("ppo v1", "ppo_v1", "ppo/v1", "ppo@v1")
  assert len({answers.file(tmp_path, "plain/one", name) for name in names}) == len(names)
  assert answers.file(tmp_path, "plain/one", "ppo_v1") == tmp_path / "plain_one" / "ppo_v1.jsonl"
  assert (
    answers.file(tmp_path, "plain/one", "sft@1.3b") == tmp_path / "plain_one" / "sft@1.3b.jsonl"
  )


def test_another_model_under_a_name_that_has_answered_everything_is_noticed(tmp_path, monkeypatch):
  first, second = tmp_path / "first", tmp_path / "second"
  for place in (first, second):
    place.mkdir()
    (place / "weights").write_text("one")
  weights = {}

  real = subject.open_subject
  wrapped = lambda source, c, parts: real("", c, parts)._replace(
    about={
      "source": source,
      "weights": weights.get(source, "one"),
      "files": provenance.digest(source),
      "parameters": 1,
    }
  )
  monkeypatch.setattr(subject, "open_subject", wrapped)
  done = lambda source: run.main(
    config(), tmp_path / "eval", {"base": str(source)}, {"plain": suite()}
  )
  done(first)
  done(second)  # moved: the same weights
  assert json.loads((tmp_path / "eval" / "results.json").read_text())["models"]["base"][
    "source"
  ] == str(second)
  weights[str(second)] = "two"
  done(second)  # nothing says that anything changed
  (second / "weights").write_text("two")
  with pytest.raises(UserError, match="has other weights than the base="):
    done(second)


def test_a_suite_opens_its_judges_on_the_mesh(tmp_path):
  def open_suite(config):
    raise UserError(f"sharded: {sharding.is_sharded()}")

  with pytest.raises(UserError, match="sharded: True"):
    run.main(config(**{"mesh.data": 2}), tmp_path, {"base": ""}, {"plain": open_suite})
