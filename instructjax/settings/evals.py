"""The settings of the paper's evaluations: the data of each suite, and how models are asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from instructjax.settings import subjects
from instructjax.settings.fields import group, kinds, setting, settings
from instructjax.settings.subjects import EvaluatedModelSettings, MeshSettings

SHIPPED = "our items (shipped), a file of the same fields, or empty to leave it out"


def test_set(example: str) -> Any:
  return setting("", f"The test set, {example}; empty leaves the task out.")


def exemplars() -> Any:
  return setting("", "The training set that exemplars are drawn from; empty leaves few-shot out.")


def answer_tokens(default: int, sentence: str) -> Any:
  return subjects.tokens(default, sentence)


def forms() -> Any:
  return setting("basic,respectful,biased", "The forms in which the model is asked (App. D).")


def count(default: int, what: str) -> Any:
  return setting(default, f"{what}; 0 takes all.", low=0)


# Sources are written as in `config.data`: a file, tfds:NAME, hub:OWNER/NAME (docs/data.md).


@settings
class ShotSettings:
  """The training sets that few-shot exemplars are drawn from."""

  drop: str = exemplars()
  quac: str = exemplars()
  squad: str = exemplars()
  hellaswag: str = exemplars()
  sst: str = exemplars()
  rte: str = exemplars()
  wsc: str = exemplars()
  wmt: str = exemplars()


@settings
class NLPSettings:
  """Public NLP tasks (docs/evaluation/nlp.md)."""

  drop: str = test_set("tfds:drop@dev")
  quac: str = test_set("hub:allenai/quac@validation")
  squad: str = test_set("tfds:squad/v2.0@validation")
  hellaswag: str = test_set("tfds:hellaswag@validation")
  sst: str = test_set("tfds:glue/sst2@validation")
  rte: str = test_set("tfds:super_glue/rte@validation")
  wsc: str = test_set("tfds:super_glue/wsc.fixed@validation")
  wmt: str = test_set("tfds:wmt15_translate/fr-en@test")
  cnn_dm: str = test_set("tfds:cnn_dailymail@validation")
  tldr: str = test_set("a JSONL file of posts and summaries")
  shots: ShotSettings = group(ShotSettings())
  shot_questions: int = count(
    0, "Questions of a passage that is an exemplar, which in DROP may be long"
  )
  tokens: int = answer_tokens(64, "Tokens of an answer; the paper says only: to the first newline.")
  long_tokens: int = answer_tokens(128, "Tokens of a summary or a translation.")

  def conflicts(self) -> Iterator[tuple[str, str]]:
    for name in kinds(ShotSettings):
      if getattr(self.shots, name) and not getattr(self, name):
        yield f"shots.{name}", f"its task is left out; set nlp.{name}, the test set, too"


@settings
class TruthfulQASettings:
  """TruthfulQA (docs/evaluation/truthfulqa.md)."""

  data: str = test_set("TruthfulQA.csv or hub:truthfulqa/truthful_qa/generation@validation")
  prompts: str = setting("qa,instruction,qa+instruction", "The forms of prompt.")
  qa_prompt: str = setting("", "A text of question-answer pairs; empty is six of our own.")
  tokens: int = answer_tokens(50, "Tokens of an answer; the paper's released answers end there.")
  true_judge: str = setting(
    "", 'A reward (docs/rewards.md) that sees "Q: ...\\nA:" and the answer.'
  )
  info_judge: str = setting("", "A reward that says whether the answer informs.")
  threshold: float = setting(0.5, "At least this is true, or informative.", low=-1e6, high=1e6)


@settings
class PreferenceSettings:
  """Who is preferred to whom (docs/evaluation/preference.md)."""

  prompts: str = setting(
    "",
    "Held-out prompts with user, use_case and source: valid.jsonl, or instruct=a.jsonl; "
    "gpt=b.jsonl.",
  )
  judges: str = setting(
    "",
    "runs/reward, openai:URL#MODEL, lm:MODEL, python:my.py:f, labels:FILE; several by semicolons.",
  )
  raters: str = setting(
    "", "Of Likert 1 to 7 and Table 3's flags: openai:URL#MODEL, python:my.py:f, labels:FILE."
  )
  pairs: Literal["baseline", "all"] = setting(
    "baseline", "Every model against config.baseline, or all head to head too."
  )
  check: str = setting("", "Comparisons by people, which say how far each judge agrees with them.")
  response: int = answer_tokens(1024, "Tokens of an answer.")
  temperature: float = setting(1.0, "The paper's for InstructGPT; .7 for GPT-3.", low=0, high=100)
  stop: tuple[str, ...] = setting((), "Texts that end an answer besides the end-of-text token.")
  margin: float = setting(0.0, "Scores no further apart than this tie.", low=0, high=1e6)


@settings
class ToxicitySettings:
  """Toxicity (docs/evaluation/toxicity.md)."""

  prompts: str = test_set(
    'tfds:real_toxicity_prompts, its prompts.jsonl, or {"prompt", "toxicity"}'
  )
  count: int = count(5000, "Prompts, about equally many of each toxicity")
  forms: str = forms()
  samples: int = setting(
    1,
    "Samples a prompt: 1 is greedy, as in the paper; 25 give the expected maximum.",
    low=1,
    high=100_000,
  )
  top_p: float = setting(
    0.9, "The mass that several samples are drawn from (Gehman et al. 2020).", above=0, high=1
  )
  tokens: int = answer_tokens(
    20, "Tokens of a continuation: where the paper's released samples stop."
  )
  scorer: str = setting(
    "perspective:TOXICITY#cache=runs/perspective.jsonl",
    'Who scores; "stand-in" is offline; or a reward from 0 to 1.',
  )
  labels: str = setting("", "What people said of the suite's tasks.jsonl.")


@settings
class BiasSettings:
  """Bias (docs/evaluation/bias.md)."""

  winogender: str = test_set("templates.tsv of Winogender, tfds:super_glue/axg@test")
  crows: str = test_set("crows_pairs_anonymized.csv")
  pairs: str = setting(
    "", 'Others: NAME=FILE; NAME=FILE, of {"sentences": [stereotyping, less so], "type"}.'
  )
  forms: str = forms()


@settings
class HallucinationSettings:
  """Closed-domain hallucination (docs/evaluation/hallucination.md)."""

  own: str = setting("shipped", f"Closed-domain prompts with their source: {SHIPPED}.")
  cnn_dailymail: str = test_set("tfds:cnn_dailymail@test")
  squad: str = test_set("tfds:squad/v2.0@validation")
  count: int = count(500, "Items of each public data set, drawn at random")
  tokens: int = answer_tokens(128, "Tokens of an answer.")
  judge: str = setting(
    "", "A reward that gives P(the source supports the sentence); empty is the detector."
  )
  labelled: str = setting("shipped", f"What the judge is measured on: {SHIPPED}.")


@settings
class RewardSuiteSettings:
  """Reward models on comparisons and on RewardBench (docs/reward_model.md)."""

  comparisons: str = test_set("ranked.jsonl, several as NAME=FILE; NAME=FILE")
  spelling: str = subjects.spelling("comparisons")
  fields: str = subjects.fields()
  rewardbench: str = test_set("RewardBench's filtered.jsonl")
  prior: str = test_set("its prior sets: shp=FILE; summarize=FILE")
  rewardbench2: str = test_set("RewardBench 2's test.jsonl")


# Items of these suites were written for this project and come with the package.


@settings
class BehaviourSettings:
  """Behaviours that the paper's limitations name (docs/evaluation/behaviours.md)."""

  false_premises: str = setting("shipped", f"Questions with a false premise: {SHIPPED}.")
  hedging: str = setting("shipped", f"Simple questions that need no hedging: {SHIPPED}.")
  constraints: str = setting("shipped", f"Instructions with explicit constraints: {SHIPPED}.")
  languages: str = setting("shipped", f"Instructions in other languages: {SHIPPED}.")
  code: str = setting("shipped", f"Questions about code: {SHIPPED}.")
  harmful: str = setting("shipped", f"Requests that harm: {SHIPPED}.")
  over_refusal: str = setting("shipped", f"Safe requests that sound harmful: {SHIPPED}.")
  perturbations: str = setting("shipped", f"Questions that are asked worse: {SHIPPED}.")
  judge: str = setting(
    "",
    "A reward that gives P(the answer refuses), or openai:URL#MODEL, for harmful and over_refusal.",
  )


@settings
class EvalSettings:
  """The paper's evaluations of any set of models, side by side (section 4, App. D and E)."""

  stage: Literal["eval"] = setting("eval", "The stage that these settings belong to.")
  seed: int = subjects.seed()
  baseline: str = setting("sft", "The model that win rates and differences are against.")
  limit: int = count(0, "About so many items of each task, whole passages and articles together")
  model: EvaluatedModelSettings = group(EvaluatedModelSettings())
  template: str = setting(
    "auto",
    "The chat template: auto is the one a model was trained with, if any; empty is plain text, "
    "chat the tokenizer's own, or a .jinja file.",
  )
  tokens: int = setting(16384, "Tokens of a batch, padding included, over all devices.", low=1)
  folder: str = setting("", "Where TFDS data sets were prepared; empty is TFDS's own default.")
  nlp: NLPSettings = group(NLPSettings())
  truthfulqa: TruthfulQASettings = group(TruthfulQASettings())
  preference: PreferenceSettings = group(PreferenceSettings())
  toxicity: ToxicitySettings = group(ToxicitySettings())
  bias: BiasSettings = group(BiasSettings())
  hallucination: HallucinationSettings = group(HallucinationSettings())
  behaviours: BehaviourSettings = group(BehaviourSettings())
  reward: RewardSuiteSettings = group(RewardSuiteSettings())
  mesh: MeshSettings = group(MeshSettings())


EVAL: Mapping[str, EvalSettings] = {"paper": EvalSettings()}
