"""The best-of-n stage: it keeps the response that a reward prefers of n."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from instructjax import bestofn, rewards
from instructjax.data.batches import corpora
from instructjax.errors import UserError, naming
from instructjax.runs import writers
from instructjax.runs.origin import Origin
from instructjax.settings.sampling import BestOfNSettings
from instructjax.stages import running
from instructjax.stages.drawing import as_completion, draw_responses
from instructjax.stages.wiring import missing_eos, require_multiple
from instructjax.system import keys
from instructjax.system.places import AnyPath


def run(settings: BestOfNSettings, workdir: AnyPath, sinks: tuple[str, ...] = ()) -> None:
  """Leaves the best responses in samples.jsonl, and the score over the KL bound in metrics.jsonl.

  Raises UserError for whatever is wrong with the settings, the prompts or the models, before the
  first draw.
  """
  with running.devices(settings.mesh) as shards:
    require_multiple(settings.batch * settings.n, shards, "config.batch x config.n", "devices")
    prompts = corpora.read_one(settings.data, "prompts", "prompt")[: settings.prompts or None]
    model = running.open_policy(settings.model.source, settings.model, settings.seed)
    model, template = running.with_template(settings.data.template, model)
    # Nothing to choose by is no default: best of n under no reward is the first response.
    if not settings.rewards.strip():
      raise UserError(
        "config.rewards is empty; give the directory of a reward run, or any other reward: "
        "docs/rewards.md"
      )
    proxy = open_rewards(settings, "rewards", model)
    gold = open_rewards(settings, "gold", model)
    # The choice is by the score that PPO would be paid; the second reward judges as it is.
    change_missing_eos = missing_eos(settings.missing_eos)
    groups = draw_responses(
      settings,
      model,
      template,
      prompts,
      {"rewards": proxy, "gold": gold},
      temperature=settings.sampling.temperature,
      key=keys.run_key(settings.seed, "best of n"),
      name=settings.stage,
    )
    prints = running.fingerprints(prompts=prompts)
    with running.open_run(settings, workdir, sinks, prints) as writer:
      writers.note(workdir, rewards=rewards.manifest(proxy), gold=rewards.manifest(gold))
      # A run that was stopped begins anew.
      writers.keep(workdir / "samples.jsonl", [])
      writer.rewind(settings.stage, 0)
      proxy_scores, gold_scores = [], []
      left_out = 0
      for number, (prompt, drawn_responses) in enumerate(zip(prompts, groups, strict=True)):
        rows, scores = drawn_responses
        responses = rewards.responses(model.tokenizer, rows)
        texts = [as_completion(response, settings.data) for response in responses]
        total = rewards.total(proxy, scores["rewards"])
        gold_total = rewards.total(gold, scores["gold"]) if gold else total
        # Of fewer than n scores the best is none of n, and the mean of the curve no mean.
        if np.isnan(total + gold_total).any():
          left_out += 1
          continue
        score = np.asarray(change_missing_eos(jnp.asarray(total), jnp.asarray(rows.ended)))
        # Equal scores are decided by a key of the prompt, so that a second run decides the same.
        tie_key = keys.run_key(settings.seed, "ties", number)
        best = int(bestofn.choose(tie_key, jnp.asarray(score[None]))[0])
        writer.samples(
          [
            {
              "prompt": prompt.prompt,
              "first": texts[0],
              "best": texts[best],
              "scores": {"first": float(score[0]), "best": float(score[best])},
            }
          ]
        )
        proxy_scores.append(score)
        gold_scores.append(gold_total if gold else score)
      if left_out:
        running.show(
          f"left out: {left_out} of {len(prompts)} prompts, because a reward abstained from a "
          "response"
        )
      if not proxy_scores:
        raise UserError(
          "config.rewards: no prompt has a score of each of its responses; give prompts that the "
          "rewards score"
        )
      write_curve(settings, writer, np.stack(proxy_scores), np.stack(gold_scores), bool(gold))


def open_rewards(
  settings: BestOfNSettings, field: str, model: Origin
) -> tuple[rewards.Reward, ...]:
  """The rewards that a field names; none where it is empty."""
  length = settings.data.prompt + settings.sampling.response
  text = getattr(settings, field)
  with naming(f"config.{field}", text):
    return rewards.open_all(text, settings.model, model, length)


def write_curve(
  settings: BestOfNSettings,
  writer: writers.Writer,
  proxy: np.ndarray,
  gold: np.ndarray,
  has_gold: bool,
) -> None:
  """Writes and prints the mean scores of the best of 1, 2, 4, ... n responses."""
  for point in bestofn.curve(jnp.asarray(proxy), jnp.asarray(gold), doublings(settings.n)):
    values = {"kl": point["kl"], "score": point["proxy"]}
    if has_gold:
      values["gold"] = point["gold"]
    n = int(point["n"])
    writer.metrics(n, settings.stage, values)
    running.show("  ".join([f"n {n}", *(f"{name} {value:.3f}" for name, value in values.items())]))


def doublings(n: int) -> list[int]:
  """1, 2, 4, ... and n."""
  # n itself need not be a power of two.
  powers = {1 << exponent for exponent in range(n.bit_length())}
  return sorted({power for power in powers if power <= n} | {n})
