"""The settings of pretraining, SFT and the model that PPO starts from, with the paper's presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from instructjax.settings import subjects
from instructjax.settings.fields import group, replaced, setting, settings
from instructjax.settings.method import MissingEosSettings
from instructjax.settings.subjects import (
  Dtype,
  Long,
  LoraSettings,
  Loss,
  MeshSettings,
  ModelSettings,
  OptimizerSettings,
)

METRICS = "eval/nll for one, which is best where it is lowest"


@settings
class TextData:
  """Plain text, in rows of one length."""

  text: str = setting(
    "data/text_train.jsonl", 'Documents, or a mixture: "0.7*a.jsonl + 0.3*tfds:c4".'
  )
  valid: str = setting("", "Held-out documents; empty evaluates nothing.")
  length: int = subjects.tokens(2048, "Tokens of a row.")
  pack: bool = subjects.pack()
  lazy: bool = subjects.lazy()
  spelling: str = subjects.spelling("documents")
  fields: str = subjects.fields()


@settings
class DemonstrationData:
  """Demonstrations: prompts with their completions."""

  demonstrations: str = setting(
    "data/demonstrations.jsonl", 'Demonstrations, or a mixture: "2*a.jsonl + b.jsonl".'
  )
  valid: str = setting("", "Held-out demonstrations; empty evaluates nothing.")
  held_out: float = subjects.held_out()
  spelling: str = subjects.spelling("demonstrations")
  fields: str = subjects.fields()
  template: str = subjects.template()
  prompt: int = subjects.prompt_tokens()
  response: int = subjects.response_tokens()
  long: Long = subjects.long()
  loss: Loss = subjects.loss()
  pack: bool = subjects.pack_demonstrations()
  stems: bool = subjects.stems()
  separator: str = subjects.separator()


@settings
class MixedData:
  """Demonstrations and pretraining text."""

  demonstrations: str = setting(
    "data/demonstrations.jsonl", 'Demonstrations, or a mixture: "2*a.jsonl + b.jsonl".'
  )
  text: str = setting("data/text_train.jsonl", "Documents of the kind the model was pretrained on.")
  valid: str = setting("", "Held-out demonstrations; empty evaluates nothing.")
  held_out: float = subjects.held_out()
  valid_text: str = setting("", "Held-out documents; empty evaluates nothing.")
  spelling: str = subjects.spelling("demonstrations")
  fields: str = subjects.fields()
  template: str = subjects.template()
  prompt: int = subjects.prompt_tokens()
  response: int = subjects.response_tokens()
  long: Long = subjects.long()
  loss: Loss = subjects.loss()
  pack: bool = subjects.pack_demonstrations()
  pack_text: bool = setting(
    False, "Puts several documents in a row, each by itself; else all are joined and cut in rows."
  )
  lazy: bool = subjects.lazy()
  stems: bool = subjects.stems()
  separator: str = subjects.separator()


@settings
class SelectSettings:
  """How SFT chooses its checkpoint by a reward (section 3.5 and App. C.1)."""

  reward: str = setting(
    "",
    "What scores the samples of a checkpoint: runs/reward, python:my.py:f; empty keeps the last "
    "checkpoint.",
  )
  prompts: str = setting("", "Validation prompts that are sampled from.")
  count: int = setting(512, "How many of them, the first ones; 0 takes all.", low=0)
  batch: int = setting(32, "Prompts that are sampled together.", low=1)
  response: int = subjects.tokens(256, "Tokens of a sample.")
  temperature: float = setting(1.0, "The temperature of the samples; 0 is greedy.", low=0, high=100)
  missing_eos: MissingEosSettings = group(MissingEosSettings())

  def conflicts(self) -> Iterator[tuple[str, str]]:
    if self.reward.strip() and not self.prompts:
      yield "prompts", "give validation prompts, whose samples config.select.reward scores"


@settings
class PretrainSettings:
  """Pretraining on plain text (Brown et al. 2020, App. B)."""

  stage: Literal["pretrain"] = setting("pretrain", "The stage that these settings belong to.")
  seed: int = subjects.seed()
  model: ModelSettings = group(ModelSettings())
  data: TextData = group(TextData())
  steps: int = setting(0, "Optimizer updates; 0 counts epochs.", low=0)
  epochs: int = setting(1, "Passes over the text, where steps is 0.", low=1, high=1_000_000)
  batch: int = subjects.batch(512, "Rows of a batch, over all devices.")
  micro: int = subjects.micro()
  top: int | None = subjects.top()
  trunk_dtype: Dtype | None = subjects.trunk_dtype()
  lora: LoraSettings = group(LoraSettings())
  optimizer: OptimizerSettings = group(OptimizerSettings())
  mesh: MeshSettings = group(MeshSettings())
  best: str = subjects.best(METRICS)
  checkpoint_every: int = subjects.checkpoint_every(1000)
  keep: int = subjects.keep()
  log_every: int = subjects.log_every(10)
  evaluate_every: int = subjects.evaluate_every(1000)

  def conflicts(self) -> Iterator[tuple[str, str]]:
    yield from one_part(self.top, self.lora)
    yield from chosen_metric(self.best, ("loss", "eval/nll"), bool(self.data.valid))


@settings
class SFTSettings:
  """Supervised fine-tuning on demonstrations (Ouyang et al. 2022, App. C.1)."""

  stage: Literal["sft"] = setting("sft", "The stage that these settings belong to.")
  seed: int = subjects.seed()
  model: ModelSettings = group(ModelSettings(dropout=0.2))
  data: DemonstrationData = group(DemonstrationData())
  steps: int = setting(0, "Optimizer updates; 0 counts epochs.", low=0)
  epochs: int = setting(
    16, "Passes over the demonstrations, where steps is 0 (paper: 16).", low=1, high=1_000_000
  )
  batch: int = subjects.batch(32, "Rows of a batch, over all devices.")
  micro: int = subjects.micro()
  rows_at_once: int = subjects.rows_at_once()
  loss_on_prompt: bool = setting(False, "Trains on the tokens of the prompt too.")
  top: int | None = subjects.top()
  trunk_dtype: Dtype | None = subjects.trunk_dtype()
  lora: LoraSettings = group(LoraSettings())
  optimizer: OptimizerSettings = group(OptimizerSettings())
  select: SelectSettings = group(SelectSettings())
  mesh: MeshSettings = group(MeshSettings())
  best: str = subjects.best(METRICS)
  checkpoint_every: int = subjects.checkpoint_every(500)
  keep: int = subjects.keep()
  log_every: int = subjects.log_every(1)
  evaluate_every: int = subjects.evaluate_every(500)
  samples: int = subjects.samples("an answer is left")

  def conflicts(self) -> Iterator[tuple[str, str]]:
    yield from one_part(self.top, self.lora)
    yield from held_out_twice(self.data.valid, self.data.held_out)
    yield from loss_on_less(self.loss_on_prompt, self.data.loss)
    # Without a reward the checkpoint is the last one, or the best by a metric of the loss.
    if not self.select.reward.strip():
      yield from chosen_metric(
        self.best, ("loss", "eval/nll"), bool(self.data.valid or self.data.held_out)
      )
      return
    if self.best not in ("", "eval/score"):
      yield (
        "best",
        "with config.select.reward the checkpoint is chosen by eval/score; leave it empty",
      )
    if not self.checkpoint_every:
      yield (
        "checkpoint_every",
        "this leaves the last checkpoint alone, and config.select.reward nothing to choose from; "
        "set it to the steps between checkpoints",
      )


@settings
class RLInitSettings:
  """The model that PPO starts from and is held to (Ouyang et al. 2022, App. C.3)."""

  stage: Literal["rl_init"] = setting("rl_init", "The stage that these settings belong to.")
  seed: int = subjects.seed()
  model: ModelSettings = group(ModelSettings(dropout=0.2))
  data: MixedData = group(MixedData())
  steps: int = setting(0, "Optimizer updates; 0 counts epochs.", low=0)
  epochs: int = setting(
    2, "Passes over the demonstrations, where steps is 0 (paper: 2).", low=1, high=1_000_000
  )
  batch: int = subjects.batch(32, "Rows of a batch, over all devices, text included.")
  micro: int = subjects.micro()
  rows_at_once: int = subjects.rows_at_once()
  text_share: float = setting(
    0.1,
    "The share of the loss that is that of pretraining text (paper: 10 %).",
    above=0,
    below=1,
  )
  text_rows: int | None = setting(
    None,
    "Rows of text in a batch: more of them make its loss less noisy and weigh no more; none takes "
    "text_share of the batch, at least one.",
    low=1,
    high=1_000_000,
  )
  loss_on_prompt: bool = setting(False, "Trains on the tokens of the prompt too.")
  top: int | None = subjects.top()
  trunk_dtype: Dtype | None = subjects.trunk_dtype()
  lora: LoraSettings = group(LoraSettings())
  optimizer: OptimizerSettings = group(OptimizerSettings())
  mesh: MeshSettings = group(MeshSettings())
  best: str = subjects.best(METRICS)
  checkpoint_every: int = subjects.checkpoint_every(500)
  keep: int = subjects.keep()
  log_every: int = subjects.log_every(1)
  evaluate_every: int = subjects.evaluate_every(500)
  samples: int = subjects.samples("an answer is left")

  def conflicts(self) -> Iterator[tuple[str, str]]:
    yield from one_part(self.top, self.lora)
    yield from held_out_twice(self.data.valid, self.data.held_out)
    yield from loss_on_less(self.loss_on_prompt, self.data.loss)
    metrics = ["loss", "loss/demonstrations", "loss/text"]
    is_measured = bool(self.data.valid or self.data.held_out)
    if is_measured:
      metrics.append("eval/nll")
    if self.data.valid_text:
      metrics.append("eval/nll_text")
    if is_measured and self.data.valid_text:
      metrics.append("eval/nll_mixed")
    yield from chosen_metric(self.best, tuple(metrics), True)
    if self.rows_of_text >= self.batch:
      yield (
        "batch",
        f"with {self.rows_of_text} rows of text it holds no demonstration; raise it",
      )

  @property
  def rows_of_text(self) -> int:
    """The rows of a batch that are pretraining text."""
    if self.text_rows is not None:
      return self.text_rows
    return max(round(self.text_share * self.batch), 1)


SupervisedSettings = PretrainSettings | SFTSettings | RLInitSettings


def held_out_twice(valid: str, share: float) -> Iterator[tuple[str, str]]:
  """Yields the conflict of two kinds of held-out records: a file, and a share of the others."""
  if valid and share:
    yield (
      "data.held_out",
      f"config.data.valid={valid} is measured on; leave that empty, or this 0",
    )


def loss_on_less(loss_on_prompt: bool, loss: Loss) -> Iterator[tuple[str, str]]:
  """Yields the conflict of a loss on whole rows and one on last replies alone."""
  if loss_on_prompt and loss == "last":
    yield "loss_on_prompt", "config.data.loss=last learns the last reply alone; choose one of them"


def one_part(top: int | None, lora: LoraSettings) -> Iterator[tuple[str, str]]:
  """Yields the conflict of training the top blocks and an adapter."""
  if top is not None and lora.rank:
    yield (
      "top",
      f"config.lora.rank={lora.rank} trains an adapter; choose one, the other is none or 0",
    )


def neighbours(batch: int, together: int, long: Long) -> Iterator[tuple[str, str]]:
  """Yields the conflicts of records that are drawn together with their neighbours."""
  if batch % together:
    yield "batch", f"choose a multiple of config.data.together={together}"
  if together > 1 and long == "drop":
    yield (
      "data.long",
      f"a prompt that is left out would part the neighbours of config.data.together={together}; "
      "leave it error, and take long prompts out of the file",
    )


def chosen_metric(
  best: str, metrics: tuple[str, ...], evaluates: bool
) -> Iterator[tuple[str, str]]:
  """Yields the conflict of a best checkpoint by a metric that the stage does not measure."""
  # What is evaluated on held-out data is measured only where there are any.
  measured = tuple(name for name in metrics if evaluates or not name.startswith("eval/"))
  if best and best not in measured:
    reason = (
      "" if best not in metrics else " without held-out data (config.data.valid or .held_out)"
    )
    yield "best", f"this stage does not measure it{reason}; it measures {', '.join(measured)}"


# --- presets ---

# Sizes, learning rates and batches are those of the paper's Appendix C and of Brown et al. 2020.

# A model that is not trained has no `remat`.
TINY_DRAWN_MODEL = {"model.shape": "tiny", "model.dtype": "float32"}
TINY_MODEL = TINY_DRAWN_MODEL | {"model.remat": "none"}
# A tiny run is over in seconds: one checkpoint at the end, every step logged.
TINY_RUN = {"checkpoint_every": 0, "keep": 1, "log_every": 1, "evaluate_every": 0}
# The quickstart's sentences fit these lengths in bytes.
TINY_LENGTHS = {"data.prompt": 128, "data.response": 96}


def _pretrain(shape: str, lr: float, batch: int) -> PretrainSettings:
  """A size of Brown et al. 2020: 300B tokens, a warm-up over 375M, a cosine over 260B."""
  # The paper counts tokens, a run counts updates.
  tokens = 2048 * batch
  changes = {
    "model.shape": shape,
    "batch": batch,
    "steps": round(300e9 / tokens),
    "optimizer.lr": lr,
    "optimizer.warmup": round(375e6 / tokens),
    "optimizer.start": 0.0,
    "optimizer.decay": round(260e9 / tokens),
    "optimizer.weight_decay": 0.1,
    "optimizer.clip": 1.0,
  }
  return replaced(PretrainSettings(), changes)


PRETRAIN: Mapping[str, PretrainSettings] = {
  "tiny": replaced(
    PretrainSettings(),
    TINY_MODEL
    | TINY_RUN
    | {
      "data.valid": "data/text_valid.jsonl",
      "data.length": 64,
      "steps": 300,
      "batch": 16,
      "optimizer.lr": 3e-3,
      "optimizer.warmup": 20,
      "optimizer.start": 0.0,
      "optimizer.weight_decay": 0.1,
      "optimizer.clip": 1.0,
      "evaluate_every": 100,
    },
  ),
  # Brown et al. 2020, Table 2.1: batches of 1M, 2M and 3.2M tokens.
  "1.3b": _pretrain("1.3B", 2.0e-4, 512),
  "6b": _pretrain("6B", 1.2e-4, 1024),
  "175b": _pretrain("175B", 0.6e-4, 1600),
}


def _sft(shape: str, lr: float, batch: int, epochs: int = 16) -> SFTSettings:
  changes = {"model.shape": shape, "optimizer.lr": lr, "batch": batch, "epochs": epochs}
  return replaced(SFTSettings(), changes)


def _stiennon(shape: str, lr: float) -> SFTSettings:
  """Summaries of TL;DR, whose posts have 512 tokens and whose summaries 48, without dropout."""
  changes = {"model.dropout": 0.0, "data.prompt": 512, "data.response": 48}
  return replaced(_sft(shape, lr, 128, epochs=1), changes)


SFT: Mapping[str, SFTSettings] = {
  "tiny": replaced(
    SFTSettings(),
    TINY_MODEL
    | TINY_RUN
    | TINY_LENGTHS
    | {
      "epochs": 2,
      "batch": 16,
      "optimizer.lr": 1e-3,
      "optimizer.clip": 1.0,
      "select.count": 64,
      "select.response": 48,
    },
  ),
  # App. C.1: the learning rates were chosen by a search of each size.
  "1.3b": _sft("1.3B", 9.65e-6, 32),
  "6b": _sft("6B", 9.65e-6, 32),
  "175b": _sft("175B", 5.03e-6, 8),
  # App. C.5: the baselines on public tasks, 896,000 examples once.
  "flan": _sft("175B", 4e-6, 64, epochs=1),
  "t0": _sft("175B", 4e-6, 128, epochs=1),
  # Stiennon et al. 2020, App. B.1: one epoch of reference summaries.
  "stiennon": _stiennon("1.3B", 6.35e-5),
  "stiennon-6.7b": _stiennon("6.7B", 2.83e-5),
}


def _rl_init(shape: str, lr: float, batch: int) -> RLInitSettings:
  return replaced(RLInitSettings(), {"model.shape": shape, "optimizer.lr": lr, "batch": batch})


RL_INIT: Mapping[str, RLInitSettings] = {
  "tiny": replaced(
    RLInitSettings(),
    TINY_MODEL
    | TINY_RUN
    | TINY_LENGTHS
    | {"batch": 16, "optimizer.lr": 1e-3, "optimizer.clip": 1.0},
  ),
  # App. C.3: two epochs, a tenth of pretraining data.
  "1.3b": _rl_init("1.3B", 5e-6, 32),
  "6b": _rl_init("6B", 1.04e-5, 32),
  "175b": _rl_init("175B", 2.45e-6, 8),
}
