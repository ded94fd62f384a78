"""The settings of sampling and of best-of-n, with their presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from instructjax.settings import subjects
from instructjax.settings.fields import group, replaced, setting, settings
from instructjax.settings.method import MissingEosSettings
from instructjax.settings.subjects import MeshSettings, SampledModelSettings
from instructjax.settings.supervised import TINY_DRAWN_MODEL

Stored = Literal["float", "int8"]  # how weights or a cache are stored
RANKED = (2, 9)  # outputs of a prompt that people rank; the paper has 4 to 9


def response(default: int) -> Any:
  return subjects.tokens(default, "Tokens of a response.")


def top_k() -> Any:
  return setting(
    0, "The likeliest tokens that are sampled from; 0 takes all, as in the paper.", low=0
  )


def top_p() -> Any:
  return setting(
    1.0,
    "The mass of likeliest tokens that is sampled from; 1 takes all, as in the paper.",
    above=0,
    high=1,
  )


def whole() -> Any:
  return setting(
    True,
    "Gathers the weights along fsdp once; false gathers a layer at a time, where they do not fit.",
  )


def slots() -> Any:
  return setting(
    0,
    "Responses that are sampled at a time; as one ends, the next prompt takes its place. 0 is a "
    "quarter of a device's share of the batch, and at least 64 on each.",
    low=0,
  )


def halvings() -> Any:
  return setting(
    3,
    "How often the last responses move together into half as many slots. Each time saves steps and "
    "takes longer to compile, so a short run wants fewer.",
    low=0,
    high=16,
  )


def weights() -> Any:
  return setting(
    "float",
    "The weights that sample: as they are, or int8, rounded once a rollout with a scale for "
    "each output; scores and updates read the weights themselves.",
  )


def cache() -> Any:
  return setting(
    "float",
    "Keys and values while sampling: in the model's dtype, or int8 with a scale for each head and "
    "position.",
  )


@settings
class PromptData:
  """Prompts to answer."""

  prompts: str = setting("data/prompts.jsonl", "The prompts.")
  spelling: str = subjects.spelling("prompts")
  fields: str = subjects.fields()
  template: str = subjects.template()
  separator: str = setting(
    " ",
    "The text between a prompt and its completion in training; samples.jsonl leaves it out of "
    "responses.",
  )
  prompt: int = subjects.tokens(1024, "Tokens of a prompt; a longer prompt is an error.")
  buckets: int = setting(
    4,
    "Lengths that prompts are padded to, each half of the next; 1 pads all to `prompt`.",
    low=1,
    high=16,
  )


@settings
class DrawSettings:
  """How best-of-n samples."""

  response: int = response(1024)
  temperature: float = setting(1.0, "The temperature; 0 is greedy.", low=0, high=100)
  top_k: int = top_k()
  top_p: float = top_p()
  whole: bool = whole()
  weights: Stored = weights()
  cache: Stored = cache()
  slots: int = slots()
  halvings: int = halvings()


@settings
class BestOfNSettings:
  """The best of n responses under a reward (Stiennon et al. 2020; Nakano et al. 2021)."""

  stage: Literal["bestofn"] = setting("bestofn", "The stage that these settings belong to.")
  seed: int = subjects.seed()
  rewards: str = setting("", "What chooses: a reward run, or any sum of rewards (docs/rewards.md).")
  gold: str = setting("", "A second reward that judges the choice; empty has none.")
  model: SampledModelSettings = group(SampledModelSettings())
  data: PromptData = group(PromptData())
  prompts: int = setting(512, "The first prompts of the file; 0 takes all.", low=0)
  n: int = setting(64, "Responses of a prompt.", low=1, high=100_000)
  batch: int = subjects.batch(8, "Prompts that are sampled together.")
  sampling: DrawSettings = group(DrawSettings())
  missing_eos: MissingEosSettings = group(MissingEosSettings())
  mesh: MeshSettings = group(MeshSettings())


@settings
class SeveralDrawSettings:
  """How samples are drawn, at one temperature or at several."""

  response: int = response(1024)
  temperature: tuple[float, ...] = setting(
    (1.0,), "Temperatures, several by commas: 0.7,1.", low=0, high=100
  )
  top_k: int = top_k()
  top_p: float = top_p()
  whole: bool = whole()
  weights: Stored = weights()
  cache: Stored = cache()
  slots: int = slots()
  halvings: int = halvings()

  def conflicts(self) -> Iterator[tuple[str, str]]:
    if not self.temperature or len(set(self.temperature)) < len(self.temperature):
      yield "temperature", "give different numbers, such as 0.7,1"


@settings
class SampleSettings:
  """Responses of one or several models (Ouyang et al. 2022, section 3.5 and App. F)."""

  stage: Literal["sample"] = setting("sample", "The stage that these settings belong to.")
  seed: int = subjects.seed()
  prompt: str = setting("", "One prompt, instead of a file of them.")
  rewards: str = setting(
    "", "Scores for samples.jsonl: runs/reward, python:my.py:f ... (docs/rewards.md)."
  )
  model: SampledModelSettings = group(SampledModelSettings())
  data: PromptData = group(PromptData())
  prompts: int = setting(8, "The first prompts of the file; 0 takes all.", low=0)
  n: int = setting(1, "Responses of each model at each temperature.", low=1, high=100_000)
  k: int = setting(
    0, "Different responses of all that are kept for people to rank; 0 keeps all.", low=0
  )
  batch: int = subjects.batch(8, "Prompts that are sampled together.")
  sampling: SeveralDrawSettings = group(SeveralDrawSettings())
  mesh: MeshSettings = group(MeshSettings())
  format: Literal["", "alpaca_eval", "arena_hard", "mt_bench"] = setting(
    "", "A benchmark whose question file data.prompts is, and whose answer files are written."
  )

  def conflicts(self) -> Iterator[tuple[str, str]]:
    if self.format:
      # Each has one answer to a question.
      alone = {"n": self.n != 1, "k": bool(self.k), "prompt": bool(self.prompt)}
      alone |= {"rewards": bool(self.rewards), "sampling.temperature": self._temperatures > 1}
      for name, is_set in alone.items():
        if is_set:
          yield name, f"format={self.format} has one answer to each question of its file; leave it"
    least, most = RANKED
    if self.k and not least <= self.k <= most:
      yield (
        "k",
        f"people rank {least} to {most} outputs of a prompt; choose k among them, or 0 keeps all",
      )

  @property
  def _temperatures(self) -> int:
    return len(self.sampling.temperature)


TINY_DRAWS = TINY_DRAWN_MODEL | {"data.prompt": 128}
TINY_BESTOFN = {"prompts": 32, "n": 8, "batch": 4, "sampling.response": 24}
# The size is that of the model: the presets of the paper's sizes are one.
BESTOFN: Mapping[str, BestOfNSettings] = {
  "tiny": replaced(BestOfNSettings(), TINY_DRAWS | TINY_BESTOFN),
  "1.3b": BestOfNSettings(),
  "6b": BestOfNSettings(),
  "175b": BestOfNSettings(),
}
SAMPLE: Mapping[str, SampleSettings] = {
  "tiny": replaced(SampleSettings(), TINY_DRAWS | {"sampling.response": 48}),
  "1.3b": SampleSettings(),
  "6b": SampleSettings(),
  "175b": SampleSettings(),
}
