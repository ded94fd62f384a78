"""What every metric of a PPO run is, what is healthy, and what to do where it is not.

One table serves the report, which puts a sentence below a curve that is not healthy, and the page
docs/ppo_metrics.md, which is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

# A curve shorter than this has no quarter to speak of, and a value network that has learnt from
# few iterations has had no chance yet.
FEWEST = 8

# A rule of thumb, which no paper states. It lies between the 6 to 10 nats that Ziegler et al. 2019
# aimed at and the 50 to 85 at which 1B runs of Huang et al. 2024 won less than a fifth of their
# comparisons, with responses of 24 and 53 tokens. The quickstart ends at 4 to 8. The KL is a sum
# over tokens, so long responses lie further away.
FAR_KL = 25.0
# Tokens whose ratio is clipped teach nothing. At .3 a third of the experience is thrown away.
MOST_CLIPPED = 0.3
# The mean of (log ratio)²/2 within an iteration. At .1 a typical ratio is off by e^.45: the
# episodes are those of another policy.
MOST_APPROXKL = 0.1
# The value loss falls while the value network learns. Ten times what it was is no noise.
EXPLODED = 10.0
# Half of the tokens, or twice as many, is a style that a reward model may have asked for.
SHRUNK, GROWN = 0.5, 2.0
# The quickstart keeps two thirds of its entropy a token. With a quarter a policy says one thing.
COLLAPSED = 0.25
# Responses that are cut have no end, and the reward model reads them as it was never taught.
FEWEST_ENDED = 0.5
# Sampler and trainer compute the same thing: .01 to .02 nats a token in bfloat16, 0 in float32.
MOST_ERROR = 0.1


class Alarm(NamedTuple):
  """When a curve is not healthy, in words and as a test of its values, and what to do then."""

  when: str
  sounds: Callable[[Sequence[float]], bool]
  advice: str


class Metric(NamedTuple):
  """A metric of PPO: its name, what it is with its unit, what is healthy, and its alarms."""

  name: str
  meaning: str
  healthy: str
  alarms: tuple[Alarm, ...] = ()


def first_quarter(values: Sequence[float]) -> float:
  """Returns the mean of the first quarter of a curve."""
  quarter = max(1, len(values) // 4)
  return math.fsum(values[:quarter]) / quarter


def last_quarter(values: Sequence[float]) -> float:
  """Returns the mean of the last quarter of a curve."""
  quarter = max(1, len(values) // 4)
  return math.fsum(values[-quarter:]) / quarter


def above(limit: float) -> Callable[[Sequence[float]], bool]:
  """Returns whether the last quarter of a curve lies above a limit."""
  return lambda values: last_quarter(values) > limit


def below(limit: float) -> Callable[[Sequence[float]], bool]:
  """Returns whether the last quarter of a curve lies below a limit."""
  return lambda values: last_quarter(values) < limit


def late_below(limit: float) -> Callable[[Sequence[float]], bool]:
  """As `below`, of curves that are long enough to have learnt something."""
  return lambda values: len(values) >= FEWEST and last_quarter(values) < limit


def grown(factor: float) -> Callable[[Sequence[float]], bool]:
  """Returns whether a positive curve ended above so many times its beginning."""
  return lambda values: (
    first_quarter(values) > 0 and last_quarter(values) > factor * first_quarter(values)
  )


def shrunk(factor: float) -> Callable[[Sequence[float]], bool]:
  """Returns whether a positive curve ended below this share of its beginning."""
  return lambda values: (
    first_quarter(values) > 0 and last_quarter(values) < factor * first_quarter(values)
  )


def off_one(values: Sequence[float]) -> bool:
  """Returns whether a ratio that should be 1 is not."""
  return max(abs(value - 1) for value in values) > 0.01


METRICS = (
  # What the method is about.
  Metric(
    "objective/scores",
    "mean score of the reward model, before the KL penalty",
    "rises, faster at first; compare with `eval/gold`",
  ),
  Metric(
    "objective/scores_std",
    "its deviation over the episodes of an iteration",
    "of the size that the reward model has on its own data",
    (
      Alarm(
        "below .001",
        below(1e-3),
        "All answers have the same score, so there is nothing to learn from: look at the samples "
        "and at the reward.",
      ),
    ),
  ),
  Metric(
    "objective/kl",
    "log π(y|x) / π_ref(y|x), summed over a response, in nats",
    "0 at first, then rises slowly to some nats; may be slightly negative by chance",
    (
      Alarm(
        f"above {FAR_KL:g} nats a response",
        above(FAR_KL),
        "The policy is so far from its start that the reward model may no longer know what it "
        "reads: read the samples, raise `config.kl.coef`, lower `config.policy_optimizer.lr`, or "
        "take an earlier checkpoint.",
      ),
    ),
  ),
  Metric(
    "objective/kl_k2",
    "the estimate Σ d²/2 of the same, d the log-ratio of a token",
    "near `objective/kl` while the policy is near; biased, never negative",
  ),
  Metric(
    "objective/kl_k3",
    "the estimate Σ (e^-d - 1 + d), which is never negative",
    "near `objective/kl`; where they part, few tokens make most of it",
  ),
  Metric("objective/kl_coef", "β, the weight of the penalty", "constant, or following the KL"),
  Metric("objective/non_score_reward", "-β KL: the penalty that was paid", "small beside scores"),
  Metric("objective/rlhf_reward", "score less penalty: what PPO maximises", "rises"),
  Metric(
    "objective/entropy",
    "-Σ log π of a response by the whole distribution, in nats",
    "falls with the length and as the policy gets surer",
  ),
  # What the policy does in an iteration.
  Metric("loss/total", "policy loss + `value_coef` times value loss", "says little by itself"),
  Metric("loss/policy_avg", "the clipped policy loss", "around 0, noisy; it need not fall"),
  Metric(
    "policy/approxkl_avg",
    "½ (log ratio)² between the policy that sampled and the one that learns, a token, nats",
    ".001 to .05",
    (
      Alarm(
        f"above {MOST_APPROXKL:g}",
        above(MOST_APPROXKL),
        "The policy moves too far within an iteration: lower `config.policy_optimizer.lr` or "
        "`config.ppo.epochs`.",
      ),
    ),
  ),
  Metric(
    "policy/clipfrac_avg",
    "the share of tokens without a gradient, because the loss clips them",
    ".01 to .2; 0 throughout means that hardly anything is learnt",
    (
      Alarm(
        f"above {MOST_CLIPPED:g}",
        above(MOST_CLIPPED),
        "A large share of the tokens teaches nothing: lower `config.policy_optimizer.lr` or "
        "`config.ppo.epochs`, or take larger batches.",
      ),
    ),
  ),
  Metric(
    "policy/entropy_avg",
    "the entropy of a token's distribution, nats",
    "falls slowly",
    (
      Alarm(
        f"below {COLLAPSED:g} of its beginning",
        shrunk(COLLAPSED),
        "The policy nearly always says the same: look at the samples for one phrase, raise "
        "`config.kl.coef`, and look for what the reward model pays for.",
      ),
    ),
  ),
  Metric("policy/ratio_max", "the largest ratio of a token", "2 to 10; single spikes are no harm"),
  Metric("policy/ratio_min", "the smallest ratio of a token", "above 0; .1 is usual"),
  Metric(
    "policy/ratio_first",
    "the largest ratio of the first update, when nothing is learnt yet",
    "1",
    (
      Alarm(
        "more than .01 from 1",
        off_one,
        "The first update should start at the policy that sampled and does not: please report this "
        "as a bug, with the model's family and types.",
      ),
    ),
  ),
  Metric("policy/ema_distance", "|θ - average| / |θ|", "small and flat; .001 in the quickstart"),
  # The value network.
  Metric(
    "loss/value_avg",
    "the clipped value loss, ½ (V - target)²",
    "falls",
    (
      Alarm(
        f"above {EXPLODED:g} times its beginning",
        grown(EXPLODED),
        "The value loss explodes: lower `config.value_optimizer.lr`, and look whether scores have "
        "outliers.",
      ),
    ),
  ),
  Metric("val/clipfrac_avg", "the share of tokens whose value is clipped", "0 to .2"),
  Metric("val/mean", "mean value", "follows `val/target_mean`"),
  Metric("val/target_mean", "mean target (advantage + old value)", "near `objective/scores`"),
  Metric(
    "val/explained_var",
    "1 - var(target - V) / var(target)",
    "above 0 after some iterations, rising to .5 and more",
    (
      Alarm(
        f"below 0, from {FEWEST} iterations on",
        late_below(0.0),
        "The value network predicts worse than a constant, so advantages are noisy: raise "
        "`config.value_optimizer.lr`, take more episodes an iteration, or start from a better "
        "reward model.",
      ),
    ),
  ),
  Metric("val/ratio", "mean ratio of the tokens", "near 1"),
  Metric("val/ratio_var", "variance of the ratios", "far below 1"),
  Metric("val/advantage_mean", "mean advantage before whitening", "near 0"),
  Metric("val/advantage_std", "its deviation", "of the size of the scores' own, or less"),
  # The responses.
  Metric("response/tokens", "response tokens of the iteration", "follows the mean length"),
  Metric(
    "response/len_mean",
    "mean tokens of a response",
    "stays within a factor of 2 of its beginning",
    (
      Alarm(
        f"below {SHRUNK:g} of its beginning",
        shrunk(SHRUNK),
        "Answers have become much shorter: see whether the reward model prefers short ones, and "
        "whether the end of text is rewarded too early.",
      ),
      Alarm(
        f"above {GROWN:g} times its beginning",
        grown(GROWN),
        "Answers have become much longer: reward models often prefer long ones; compare at equal "
        "length, or penalise length.",
      ),
    ),
  ),
  Metric("response/len_max", "the longest of them", "at most `config.sampling.response`"),
  Metric(
    "response/eos_frac",
    "the share of responses that ended by themselves",
    "near 1",
    (
      Alarm(
        f"below {FEWEST_ENDED:g}",
        below(FEWEST_ENDED),
        "Most answers are cut before their end: raise `config.sampling.response`, or penalise them "
        "by `config.missing_eos.kind`.",
      ),
    ),
  ),
  # The sampler, and rewards from outside.
  Metric(
    "rollout/logp_error",
    "|log π of the sampler - of the trainer|, a token, nats",
    "0 in float32, .01 to .02 in bfloat16",
    (
      Alarm(
        f"above {MOST_ERROR:g}",
        above(MOST_ERROR),
        "Sampler and trainer disagree about the policy: sample without int8 and in the type that "
        "is trained, and report it if it stays.",
      ),
    ),
  ),
  Metric("rollout/logp_error_max", "the largest of these", "below 1"),
  Metric("rollout/useful", "share of the sampler's work that was no padding", "above .5"),
  Metric(
    "rollout/abstained",
    "share of episodes without a score, where a reward from outside abstains; "
    "`rollout/abstained/NAME` is that of each reward",
    "0",
    (
      Alarm(
        "above .1",
        above(0.1),
        "Many episodes have no score and are not learnt from: look at the reward's errors.",
      ),
    ),
  ),
  Metric("scoring/useful", "the same of scoring", "above .7"),
  Metric("update/useful", "the same of the update", "above .7"),
  # The gradients and the pretraining mix.
  Metric(
    "grad/norm_ppo", "the norm of the policy's PPO gradient", "flat; single spikes are no harm"
  ),
  Metric("grad/norm_value", "that of the value network", "falls"),
  Metric("grad/norm_ptx", "γ times that of the pretraining loss", "of the size of the PPO one"),
  Metric("loss/ptx", "loss on pretraining text, nats a token", "stays or falls slowly"),
  Metric("lr", "learning rate of the policy", "as its schedule says"),
  Metric("lr_value", "that of the value network", "as its schedule says"),
  # Held-out prompts (config.data.valid, config.gold).
  Metric("eval/score", "score on held-out prompts", "rises with `objective/scores`"),
  Metric("eval/gold", "a second reward on the same, never trained on", "rises too, or stop"),
  Metric("eval/kl", "KL of the same, nats", "as `objective/kl`"),
  Metric("eval/length", "their tokens", "as `response/len_mean`"),
  Metric("eval/ended", "the share that ended by itself", "near 1"),
  # The machine.
  Metric("tokens/episodes", "tokens of prompts and responses", "flat"),
  Metric("tokens/real", "the same with pretraining text", "flat"),
  Metric("tokens/s", "real tokens a second", "flat; see [monitoring](monitoring.md)"),
  Metric("mfu", "share of the devices' peak (only where it is known)", "flat"),
  Metric("memory/peak", "bytes, the most so far", "flat after the first iterations"),
  Metric("time/seconds", "seconds of the iteration", "flat after the first, which compiles"),
  Metric("time/rollout", "of these, sampling", "a third to a half"),
  Metric("time/scoring", "of these, scoring", "less than sampling"),
  Metric("time/update", "of these, learning", "the rest"),
  Metric("time/goodput", "share of the time that went into kept steps", "near 1 in a long run"),
)

BY_NAME = {metric.name: metric for metric in METRICS}


def advice(name: str, values: Sequence[float], stage: str = "ppo") -> str:
  """Returns what is not healthy about a curve and what to do; "" where nothing is.

  The settings that it names are those of the stage: GRPO has one optimizer.
  """
  if not values or name not in BY_NAME:
    return ""
  sounding = [alarm for alarm in BY_NAME[name].alarms if alarm.sounds(values)]
  text = " ".join(f"Not healthy ({alarm.when}). {alarm.advice}" for alarm in sounding)
  if stage == "grpo":
    text = text.replace("`config.policy_optimizer.", "`config.optimizer.")
    text = text.replace("`config.ppo.", "`config.grpo.")
  return text
