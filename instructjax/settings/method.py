"""The settings that functions of the method take themselves: PPO's iteration and its KL penalty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from instructjax.settings.fields import setting, settings

# What a loss is the mean of (`losses.WEIGHTS`).
Normalise = Literal["token_mean", "sequence_mean", "sequence_sum"]


@settings
class PPOConfig:
  """An iteration of PPO (Ouyang et al. 2022, section 3.5, Eq. 2, and App. C.4).

  The paper prints epochs, minibatches (512 / 64), clip, the EMA and the pretraining coefficient.
  The rest follows Ziegler et al. 2019 and Stiennon et al. 2020.
  """

  epochs: int = setting(1, "Passes over the episodes of an iteration.", low=1, high=10_000)
  minibatches: int = setting(8, "Optimizer updates of a pass (paper: 512 / 64).", low=1)
  clip: float = setting(0.2, "Half the width of the clipped probability ratio.", above=0, below=1)
  value_clip: float | None = setting(
    0.2, "How far a value may move from its old one; none is not clipped.", above=0, high=1e6
  )
  value_coef: float = setting(0.1, "The weight of the value loss.", low=0, high=1000)
  discount: float = setting(1.0, "The discount of a token (paper: none).", low=0, high=1)
  lam: float = setting(0.95, "Lambda of generalised advantage estimation.", low=0, high=1)
  whiten_advantage: bool = setting(True, "Whitens the advantages of each minibatch.")
  whiten_reward: bool = setting(False, "Divides the rewards by their deviation over the batch.")
  ptx_coef: float = setting(
    27.8,
    "Gamma, the weight of the pretraining loss (normalise, ptx_normalise); 0 is plain PPO.",
    low=0,
    high=1e6,
  )
  normalise: Normalise = setting(
    "token_mean",
    "Policy and value loss: the mean over tokens, over responses of their means, or of their sums.",
  )
  ptx_normalise: Normalise = setting(
    "token_mean",
    "Pretraining loss: the mean over tokens, over rows of their means, or of their sums.",
  )
  ema_decay: float | None = setting(
    0.992,
    "The decay of the average of weights, which the run leaves; none leaves the last ones. In "
    "Python there is an average only where the state has one (`ema=`).",
    low=0,
    below=1,
  )
  ema_every: Literal["minibatch", "iteration"] = setting("minibatch", "When the average moves.")
  old_logp: Literal["trainer", "sampler"] = setting(
    "trainer",
    "Whose log-probabilities ratios begin at: the trainer computes them again, or the sampler's "
    "are taken, which saves a pass of the policy.",
  )
  rows_at_once: int = setting(
    0,
    "Packed rows that a device computes at once; 0 takes what holds 192 positions, or 2,048 on an "
    "accelerator.",
    low=0,
    high=100_000,
  )
  micro: int = setting(
    1,
    "Micro-batches of the PPO loss in a minibatch: no more rows than one has are computed at once.",
    low=1,
  )
  ptx_micro: int = setting(1, "Micro-batches of the pretraining loss in a minibatch.", low=1)


@settings
class GRPOConfig:
  """An iteration of group-relative policy optimisation (Shao et al. 2024).

  The defaults are those of DeepSeekMath: one update on the episodes of an iteration.
  """

  advantage: Literal["group", "batch", "none", "leave_one_out"] = setting(
    "group",
    "A return less the mean of its group, over the deviation of the group, of the batch, or over "
    "nothing; or less the mean of the others (RLOO).",
  )
  kl: Literal["loss", "reward"] = setting(
    "loss", "Whether the KL is a term of the loss (its k3), or paid in the reward (its k1)."
  )
  epochs: int = setting(1, "Passes over the episodes of an iteration.", low=1, high=10_000)
  minibatches: int = setting(1, "Optimizer updates of a pass.", low=1)
  clip: float = setting(0.2, "Half the width of the clipped probability ratio.", above=0, below=1)
  clip_high: float | None = setting(
    None, "How far a ratio may rise above 1, where it is not `clip` (DAPO: .28).", above=0, high=1e6
  )
  bound: float | None = setting(
    None,
    "The bound of a ratio where the advantage is negative (dual clip); none has none.",
    above=1,
    high=100,
  )
  normalise: Normalise = setting(
    "sequence_mean", "The mean over tokens, over responses of their means, or of their sums."
  )
  old_logp: Literal["trainer", "sampler"] = setting(
    "trainer", "Whose log-probabilities ratios begin at, as in PPO."
  )
  rows_at_once: int = setting(
    0,
    "Packed rows that a device computes at once; 0 takes what holds 192 positions, or 2,048 on an "
    "accelerator.",
    low=0,
    high=100_000,
  )
  micro: int = setting(1, "Micro-batches: no more rows than one has are computed at once.", low=1)

  def conflicts(self) -> Iterator[tuple[str, str]]:
    if self.bound is not None and self.clip_high is not None:
      yield "clip_high", "the dual clip has one clip; leave out grpo.bound or this"


@settings
class KLSettings:
  """The coefficient of the KL penalty, fixed or adaptive (Ziegler et al. 2019, section 2.2)."""

  coef: float = setting(0.02, "The coefficient, at first (paper: .02, fixed).", low=0, high=1000)
  control: Literal["fixed", "adaptive"] = setting(
    "fixed", "Whether the coefficient follows the KL."
  )
  target: float | None = setting(
    None, "Nats an episode that an adaptive coefficient aims at; none is 6.", above=0, high=1e6
  )
  horizon: float | None = setting(
    None, "Episodes over which it adapts; none is 10,000.", above=0, high=1e12
  )

  def conflicts(self) -> Iterator[tuple[str, str]]:
    for name in ("target", "horizon"):
      if self.control == "fixed" and getattr(self, name) is not None:
        yield name, "a fixed coefficient does not adapt; set kl.control=adaptive too"


@settings
class MissingEosSettings:
  """What becomes of the score of a response that did not end."""

  kind: Literal["keep", "replace", "subtract"] = setting(
    "keep", "Keeps the score, replaces it by `value`, or subtracts `value` from it."
  )
  value: float | None = setting(
    None, "The score in its place, or what is subtracted; none is 1.", low=-1e6, high=1e6
  )

  def conflicts(self) -> Iterator[tuple[str, str]]:
    if self.kind == "keep" and self.value is not None:
      yield "value", "the score is kept as it is; set missing_eos.kind to replace or subtract"
