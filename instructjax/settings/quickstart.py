"""The settings of the quickstart, from which the settings of its stages follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from instructjax.settings import subjects
from instructjax.settings.fields import replaced, setting, settings
from instructjax.settings.subjects import Dtype


@settings
class QuickstartSettings:
  """The whole method on sentences whose tone people rated.

  Learning rates are larger than the paper's, as a few hundred updates of a small model need.
  """

  stage: Literal["quickstart"] = setting("quickstart", "The stage that these settings belong to.")
  seed: int = subjects.seed()
  model: str = setting(
    "", "A folder, a .gguf file or a hub id; empty fetches SmolLM2-135M-Instruct."
  )
  top: int | None = setting(
    6, "Blocks that are trained, from the top; none trains all.", low=1, high=10_000
  )
  dtype: Dtype = subjects.dtype()
  trunk_dtype: Dtype = setting("bfloat16", "The type of the blocks that are not trained.")
  unroll: int = setting(6, "Layers in a step of the scan.", low=1, high=1000)
  template: str = setting("chat", "The chat template of the instructions; empty is plain text.")
  system: str = setting(
    "Answer in one sentence.", "The system message of every prompt; empty gives none."
  )
  # The gradients of six blocks are added up after each part of a batch: small parts are slow.
  rows_at_once: int = setting(8, "Packed rows of a policy that are computed at once.", low=1)
  # Lengths.
  prompt: int = subjects.tokens(40, "Tokens of a prompt.")
  response: int = subjects.tokens(24, "Tokens of a response.")
  text: int = subjects.tokens(16, "Tokens of a row of pretraining text.")
  # Sizes of the data.
  demonstrations: int = setting(400, "Demonstrations.", low=1, high=100_000)
  comparisons: int = setting(
    400, "Comparisons that the reward model is trained on.", low=2, high=100_000
  )
  gold: int = setting(
    320, "Comparisons of other people that the gold model is trained on.", low=2, high=100_000
  )
  test_prompts: int = setting(72, "Test prompts of each of three domains.", low=2, high=100_000)
  best_of: int = setting(4, "Answers of SFT of which the reward model chooses one.", low=1, high=64)
  test_comparisons: int = setting(36, "Test comparisons of each domain.", low=1, high=100_000)
  text_rows: int = setting(1024, "Rows of pretraining text.", low=1, high=1_000_000)
  text_valid: int = setting(
    48, "Held-out rows of 64 tokens of pretraining text.", low=1, high=100_000
  )
  # A few hundred updates of a small model: rates are larger and epochs fewer than the paper's.
  sft_epochs: int = setting(1, "Epochs of SFT and of rl_init (paper: 16 and 2).", low=1, high=1000)
  sft_batch: int = setting(16, "Rows of a batch of SFT.", low=1)
  sft_lr: float = setting(2e-4, "The peak of SFT's learning rate.", above=0, high=1)
  text_share: float = setting(
    0.1, "The share of pretraining text in the loss of rl_init.", above=0, below=1
  )
  reward_batch: int = setting(2, "Prompts of a batch of the reward models.", low=2)
  reward_lr: float = setting(6e-4, "The peak of the reward models' learning rate.", above=0, high=1)
  # PPO and PPO-ptx share everything but the pretraining mix.
  iterations: int = setting(14, "Iterations of PPO.", low=1, high=100_000)
  episodes: int = setting(128, "Episodes of an iteration.", low=1)
  responses: int = setting(4, "Responses to each prompt of an iteration (paper: 1).", low=1)
  # The responses to a prompt share its row, so few rows are many episodes.
  ppo_rows_at_once: int = setting(3, "Packed rows of PPO that are computed at once.", low=1)
  minibatches: int = setting(8, "Minibatches of an iteration.", low=1)
  halvings: int = setting(
    1, "How often the last rows of a rollout move together (sampling.halvings).", low=0, high=16
  )
  temperature: float = setting(0.7, "The temperature of the policy (paper: 1).", above=0, high=100)
  ppo_lr: float = setting(2.2e-4, "The learning rate of the policy.", above=0, high=1)
  value_lr: float = setting(4e-4, "The peak of the value network's learning rate.", above=0, high=1)
  kl_coef: float = setting(0.2, "The coefficient of the KL penalty (paper: .02).", low=0, high=1000)
  ptx_coef: float = setting(
    0.5, "The weight of the pretraining loss (paper: 27.8).", above=0, high=1e6
  )
  ptx_ratio: int = setting(1, "Rows of pretraining text an episode (paper: 8).", low=1, high=10_000)
  ptx_micro: int = setting(1, "Micro-batches of the pretraining loss.", low=1)
  ema_decay: float = setting(
    0.9, "The decay of the average of weights, over 112 updates.", low=0, below=1
  )
  eos_penalty: float = setting(
    0.5, "Taken from the score of a response that did not end; not in the paper.", low=0, high=1e6
  )

  def conflicts(self) -> Iterator[tuple[str, str]]:
    # Both comparisons of the same texts are in one batch.
    for name in ("comparisons", "gold", "reward_batch", "test_prompts"):
      if getattr(self, name) % 2:
        yield name, "instructions come in pairs, of praise and of criticism; take an even number"
    if self.episodes % (2 * self.responses):
      yield (
        "episodes",
        "instructions come in pairs, of praise and of criticism; take a multiple of "
        f"2 x responses={self.responses}",
      )

  @property
  def prompts(self) -> int:
    """The prompts of an iteration of PPO."""
    return self.episodes // self.responses


# The README holds what each preset costs and gives.
FULL = QuickstartSettings()
FAST = replaced(
  FULL,
  {
    "demonstrations": 128,
    "comparisons": 100,
    "gold": 100,
    "test_prompts": 20,
    "test_comparisons": 16,
    "text_rows": 256,
    "text_valid": 24,
    "iterations": 2,
    "episodes": 64,
  },
)
QUICKSTART: Mapping[str, QuickstartSettings] = {"full": FULL, "fast": FAST}
