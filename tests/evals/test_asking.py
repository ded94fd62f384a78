"""How a model is asked: by the template it was trained with, or in plain text."""

import json

import pytest

from instructjax.data.tokens import chat, tokenizers
from instructjax.errors import UserError
from instructjax.evals import page, subject
from instructjax.evals.tasks import Generate, Likelihood
from instructjax.runs import origin
from instructjax.settings import reading

TEMPLATE = (
  "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'A' + m.content + eos_token }}{% else "
  "%}{{ 'U' + m.content }}"
  "{% endif %}{% endfor %}{% if add_generation_prompt %}A{% endif %}"
)
ABOUT = {"tokenizer": tokenizers.BYTES}


def config(**changes):
  options = [("tokens", "512"), ("model.dtype", "float32"), *changes.items()]
  return reading.override(reading.load("eval"), options)


@pytest.fixture
def tokenizer():
  return origin.open_model("", config().model, 0).tokenizer


@pytest.fixture
def run(tmp_path):
  """The directory of a run."""
  (tmp_path / "checkpoints").mkdir()
  return str(tmp_path)


@pytest.fixture
def public(tmp_path):
  """The description of a public model whose tokenizer has a template."""
  folder = tmp_path / "public"
  folder.mkdir()
  (folder / "tokenizer.json").write_text("{}")
  (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
  return {"tokenizer": str(folder)}


def test_a_public_chat_model_is_asked_by_its_own_template(public, tokenizer):
  template = origin.natural_template("public", public, tokenizer)
  assert template is not None and template.text == TEMPLATE
  assert origin.natural_template("", ABOUT, tokenizer) is None


def test_a_run_is_asked_as_it_was_trained(public, run, tokenizer):
  """A run that was trained in plain text keeps to it, though its tokenizer holds a template."""
  assert origin.natural_template(run, public, tokenizer) is None
  trained = {**ABOUT, "template": {"text": TEMPLATE, "fingerprint": "x"}}
  template = origin.natural_template(run, trained, tokenizer)
  assert template is not None and template.text == TEMPLATE


def test_a_template_that_cannot_be_used_names_the_way_out(public, tokenizer, tmp_path):
  broken = json.dumps({"chat_template": "{{ messages[0].content }}"})
  (tmp_path / "public" / "tokenizer_config.json").write_text(broken)
  with pytest.raises(UserError, match=r"config\.template='' asks in plain text"):
    origin.natural_template("public", public, tokenizer)


def rows_of(opened):
  """The texts of the rows of a question, a likelihood and a likelihood without a context."""
  requests = [Generate("Hi", 4), Likelihood("Hi", " yes"), Likelihood("", "yes")]
  return [opened.tokenizer.decode(entry.row.ids.tolist()) for entry in opened.rows([(0, requests)])]


def test_by_default_questions_are_chats_and_likelihoods_plain(monkeypatch, tokenizer):
  template = chat.load("the template", TEMPLATE, {}, tokenizer)
  monkeypatch.setattr(origin, "natural_template", lambda *_: template)
  opened = subject.open_subject("", config(), 1)
  assert config().template == "auto" and opened.about["asked"] == "by the template"
  assert rows_of(opened) == ["UHiA", "Hi yes", "yes"]
  plain = subject.open_subject("", config(template=""), 1)
  assert plain.about["asked"] == "in plain text" and rows_of(plain) == ["Hi", "Hi yes", "yes"]
  assert plain.settings != opened.settings  # their answers are never mixed


def test_a_template_that_is_named_is_for_everything(monkeypatch, tokenizer):
  template = chat.load("the template", TEMPLATE, {}, tokenizer)
  monkeypatch.setattr(origin, "chat_template", lambda *_: template)
  opened = subject.open_subject("", config(template="chat"), 1)
  assert rows_of(opened) == ["UHiA", "UHiAyes", "UAyes"]


def test_the_page_says_how_each_model_was_asked():
  models = {"base": {"asked": "by the template <x>"}, "sft": {}}
  drawn = page.render("x", {"models": models, "suites": {}, "notes": []}, {})
  assert "by the template &lt;x&gt;" in drawn
