"""One example of what each run has learnt: answers to an instruction, or the scores of two answers.

The instruction is the first one of the evaluation, asked both ways. A reward model shows how it
scores what people wrote: the praise and the criticism, as answers to the prompt that asks for
praise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from instructjax import rewards, rollout
from instructjax.data.batches import branches, pipeline
from instructjax.data.records.records import Prompt
from instructjax.quickstart import answers, data, judging
from instructjax.quickstart.models import REWARD_MODELS, model_settings
from instructjax.quickstart.recipe import data_folder, model_folder
from instructjax.runs import origin
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.stages import reward
from instructjax.system import keys
from instructjax.types import Params, Prompts, Rollout


def teller(settings: QuickstartSettings, workdir: Path) -> Callable[[str], list[str]]:
  """Returns the function (name of a finished run) to its example, as lines for the terminal.

  Its programs are compiled once, for all runs. No model stays open, because the next stage needs
  the memory.
  """
  opened_as = model_settings(settings)

  def source(name: str) -> str:
    return str(model_folder(workdir, name))

  # All runs have the functions and the tokenizer of the base.
  base = origin.open_model(source("base"), opened_as, settings.seed)
  lm, tokenizer = base.lm, base.tokenizer
  template = origin.chat_template(settings.template, base.about, tokenizer)
  del base

  asked = data.test_prompts(data_folder(workdir))[:2]
  instructions = [data.instruction(prompt) for prompt in asked]
  by_people = [prompt.completion for prompt in asked]
  lengths = {"prompt": settings.prompt, "template": template}
  prompts = pipeline.prompts(
    [Prompt(prompt.prompt, turns=prompt.turns) for prompt in asked], tokenizer, **lengths
  )
  padded = pipeline.pad_prompts(prompts, length=settings.prompt)
  sampling = answers.sampling_of(settings, tokenizer, template)
  key = keys.run_key(settings.seed, "samples")

  @jax.jit
  def sample(params: Params, prompts: Prompts) -> Rollout:
    return rollout.sample(lm, params, prompts, key, sampling)

  [group] = pipeline.comparisons(
    [judging.as_comparison(asked[0], by_people)],
    tokenizer,
    response=settings.response,
    **lengths,
  )
  scores_of = reward.reward_scores(lm, [branches.of_group(group)], 1)

  def answered(name: str) -> list[str]:
    policy = origin.open_model(source(name), opened_as, settings.seed)
    responses = jax.device_get(sample(policy.params, padded))
    texts = rewards.responses(tokenizer, responses)
    return [
      f"  {instruction} -> {text.strip() or '(nothing)'}"
      for instruction, text in zip(instructions, texts, strict=True)
    ]

  def scored(name: str) -> list[str]:
    model = origin.open_reward_model(source(name), opened_as)
    # One model alone shares no trunk.
    [scores] = scores_of({}, {"lm": model.params, "head": model.head})
    return [
      f"  {instructions[0]} -> {text} (score {score:+.1f})"
      for text, score in zip(by_people, scores, strict=True)
    ]

  return lambda name: scored(name) if name in REWARD_MODELS else answered(name)
