"""The subjects that several stages have settings for: models, adapters, optimizers, meshes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from instructjax.settings.fields import setting, settings

Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "attention", "blocks", "offload"]
Attention = Literal["auto", "xla", "splash", "cudnn"]
Long = Literal["error", "drop"]
Loss = Literal["all", "last"]


# --- fields that many classes have: each call makes one, whose type stands in the class ---


def seed() -> Any:
  return setting(0, "Every random number of a run follows from it.", low=0, high=2**32 - 1)


def batch(default: int, sentence: str) -> Any:
  return setting(default, sentence, low=1)


def micro() -> Any:
  return setting(1, "Micro-batches of a step, whose gradients are added up.", low=1)


def parts() -> Any:
  return setting(
    0,
    "Parts that a batch of the longest prompts is computed in; shorter ones are packed and take "
    "fewer. 0 takes as many as leave each device 192 positions at once, or 2,048 on an "
    "accelerator.",
    low=0,
  )


def tokens(default: int, sentence: str) -> Any:
  return setting(default, sentence, low=1, high=1_000_000)


def dtype() -> Any:
  return setting("bfloat16", "The type of matrix products; parameters and sums are float32.")


def stream() -> Any:
  return setting(
    "float32",
    "The type of the residual stream and of sums over mesh.model; norms and losses are float32.",
  )


def source() -> Any:
  return setting(
    "",
    "A run, a model folder, a .gguf file, a hub id or file.py:function; empty is random weights.",
  )


def remat(default: Remat) -> Any:
  return setting(
    default,
    "What the backward pass keeps of a block: all of it (none), products (dots), what heads have "
    "read (attention), its input (blocks), or its input in the host's memory (offload).",
  )


def unroll() -> Any:
  sentence = "Layers in a step of the scan; on a CPU more compile longer and run faster."
  return setting(1, sentence, low=1, high=1000)


def sequence() -> Any:
  sentence = "Splits what is kept between blocks along the sequence too, over mesh.model."
  return setting(False, sentence)


def attention() -> Any:
  sentence = "The attention of whole rows: auto takes a kernel of the platform where there is one."
  return setting("auto", sentence)


def dropout(default: float = 0.0) -> Any:
  sentence = "Residual dropout: after attention and after the MLP."
  return setting(default, sentence, low=0, below=1)


def tokenizer() -> Any:
  sentence = (
    'A tokenizer.json, a SentencePiece .model, or "bytes"; empty is the own one of the model.'
  )
  return setting("", sentence)


def spelling(kind: str) -> Any:
  sentence = (
    f"The spelling of the {kind}; empty is the file's own, native is ours, and "
    '"comparisons=hh,valid=native" is one for each field (docs/data.md).'
  )
  return setting("", sentence)


def empty_completions() -> Any:
  sentence = "Whether an empty text may be ranked among the completions: a model may say nothing."
  return setting(False, sentence)


def fields() -> Any:
  sentence = 'Ours=theirs of another spelling: "prompt=question,completion=answers.text.0".'
  return setting("", sentence)


def together(records: str) -> Any:
  return setting(1, f"Neighbouring {records} that are drawn together.", low=1, high=1000)


def template() -> Any:
  sentence = "The chat template: empty is plain text, chat the tokenizer's own, or a .jinja file."
  return setting("", sentence)


def separator() -> Any:
  sentence = "The text between a prompt and its completion; nothing else is added or taken away."
  return setting(" ", sentence)


def pack() -> Any:
  return setting(
    False, "Puts several texts in a row, each by itself; `batch` then counts packed rows."
  )


def pack_demonstrations() -> Any:
  return setting(
    True, "Puts the demonstrations of a batch side by side in a row, each by itself; none is moved."
  )


def rows_at_once() -> Any:
  return setting(
    0,
    "Packed rows that a device computes at once; 0 takes what holds 192 positions, or 2,048 on an "
    "accelerator.",
    low=0,
    high=1_000_000,
  )


def lazy() -> Any:
  return setting(
    False, "Reads and tokenises text when it is needed: for a corpus larger than the memory."
  )


def loss() -> Any:
  return setting(
    "all",
    "Under a chat template: learns all replies of a chat, but for messages of weight 0 or train "
    "false, or the last one alone. In plain text the completion is the only reply.",
  )


def held_out() -> Any:
  return setting(
    0.0,
    "The share of the records that is held out and measured on, in the place of `valid`: by user, "
    "or else by the first message of a chat.",
    low=0,
    below=1,
  )


def prompt_tokens() -> Any:
  return tokens(1024, "Tokens of a prompt; a longer prompt is an error (see data.long).")


def response_tokens() -> Any:
  return tokens(
    1024, "Tokens of a completion; a longer one is cut, without an end of text (counted)."
  )


def long() -> Any:
  sentence = "What becomes of a record whose prompt is too long: an error, or left out and counted."
  return setting("error", sentence)


def stems() -> Any:
  sentence = "Computes the untrained blocks once a row and keeps what they give (with config.top)."
  return setting(False, sentence)


def top() -> Any:
  sentence = "Trains only this many blocks from the top; none trains everything."
  return setting(None, sentence, low=1, high=10_000)


def trunk_dtype() -> Any:
  sentence = "The type of weights that are not trained (top, LoRA); none leaves them as they are."
  return setting("bfloat16", sentence)


def best(metrics: str) -> Any:
  sentence = (
    f"A metric ({metrics}) whose best checkpoint is kept besides the last `keep`; empty keeps none."
  )
  return setting("", sentence)


def checkpoint_every(default: int) -> Any:
  return setting(default, "Steps between checkpoints; 0 makes one at the end alone.", low=0)


def keep() -> Any:
  return setting(2, "Checkpoints that are kept, the last ones.", low=1, high=10_000)


def samples(what: str) -> Any:
  """`what` is left of each held-out prompt."""
  return setting(
    8,
    f"Held-out prompts of which {what} at the end, in samples.jsonl; 0 writes none.",
    low=0,
    high=100_000,
  )


def log_every(default: int) -> Any:
  return setting(
    default, "Steps between lines of metrics.jsonl; the last step is always written.", low=1
  )


def evaluate_every(default: int) -> Any:
  return setting(
    default, "Steps between evaluations on held-out data; 0 evaluates at the end alone.", low=0
  )


# --- classes ---

Shape = Literal[
  "tiny",
  "gpt-5m",
  "gpt2-124M",
  "gpt2-355M",
  "gpt2-774M",
  "gpt2-1.5B",
  "125M",
  "350M",
  "760M",
  "1.3B",
  "2.7B",
  "6B",
  "6.7B",
  "13B",
  "175B",
  "SmolLM2-135M",
  "Llama-3-8B",
  "Llama-3.1-8B",
  "Qwen2.5-7B",
]


@settings
class ModelSettings:
  """The model that a stage starts from, and how it is computed."""

  source: str = source()
  shape: Shape = setting("tiny", "The shape of random weights, where there is no source.")
  tokenizer: str = tokenizer()
  dtype: Dtype = dtype()
  stream: Dtype = stream()
  remat: Remat = remat("blocks")
  unroll: int = unroll()
  sequence: bool = sequence()
  attention: Attention = attention()
  dropout: float = dropout()


@settings
class LoadedModelSettings:
  """How a model is trained whose source is named elsewhere, as PPO's `rl_init` is."""

  shape: Shape = setting(
    "tiny", "The shape of random weights, or the one that is planned, where there is no source."
  )
  tokenizer: str = tokenizer()
  dtype: Dtype = dtype()
  stream: Dtype = stream()
  remat: Remat = remat("blocks")
  unroll: int = unroll()
  sequence: bool = sequence()
  attention: Attention = attention()

  @property
  def dropout(self) -> float:
    """None, and no setting: PPO drops nothing out."""
    return 0.0


@settings
class SampledModelSettings:
  """The model that answers, and how it is computed: without a backward pass and dropout."""

  source: str = source()
  shape: Shape = setting("tiny", "The shape of random weights, where there is no source.")
  tokenizer: str = tokenizer()
  dtype: Dtype = dtype()
  stream: Dtype = stream()
  unroll: int = unroll()
  sequence: bool = sequence()
  attention: Attention = attention()

  @property
  def remat(self) -> Remat:
    """No setting: there is no backward pass that could compute anything again."""
    return "none"

  @property
  def dropout(self) -> float:
    """None, and no setting: samples are drawn without it."""
    return 0.0


@settings
class EvaluatedModelSettings:
  """How the models of an evaluation are computed, whose sources are those of --models."""

  shape: Shape = setting("tiny", "The shape of random weights, where there is no source.")
  tokenizer: str = tokenizer()
  dtype: Dtype = dtype()
  stream: Dtype = stream()
  unroll: int = unroll()
  sequence: bool = sequence()
  attention: Attention = attention()

  @property
  def remat(self) -> Remat:
    """No setting: there is no backward pass that could compute anything again."""
    return "none"

  @property
  def dropout(self) -> float:
    """None, and no setting: nothing is trained."""
    return 0.0


AnyModelSettings = (
  ModelSettings | LoadedModelSettings | SampledModelSettings | EvaluatedModelSettings
)


@settings
class LoraSettings:
  """An adapter that is trained in the place of the weights (Hu et al. 2021)."""

  rank: int = setting(
    0, "The rank of the adapter; 0 trains the weights themselves.", low=0, high=10_000
  )
  alpha: float = setting(16.0, "The adapter counts alpha / rank.", above=0, high=1e6)
  targets: str = setting(
    "all", 'The products that have an adapter, such as "q,v"; all: q, k, v, o and the MLP.'
  )


@settings
class MeshSettings:
  """The mesh of devices; the product of the three is the number of devices."""

  data: int = setting(
    1, "Devices that split the batch and hold whole weights.", low=1, high=1_000_000
  )
  fsdp: int = setting(
    1, "Devices that split the batch and the stored weights.", low=1, high=1_000_000
  )
  model: int = setting(
    1, "Devices that split heads, hidden units and the vocabulary.", low=1, high=1_000_000
  )
  compiler: str = setting(
    "",
    'Options of the compiler of a step, "xla_a=true,xla_b=none", beside ours (docs/scaling.md).',
  )


@settings
class OptimizerSettings:
  """AdamW and its learning rate (Ouyang et al. 2022, App. C)."""

  lr: float = setting(1e-5, "The peak of the learning rate.", above=0, high=1)
  schedule: Literal["cosine", "constant", "linear"] = setting(
    "cosine", "What the learning rate does after the warm-up."
  )
  warmup: int = setting(
    0, "Updates over which the rate rises (in PPO: iterations); 0 has no warm-up.", low=0
  )
  start: float | None = setting(
    None, "The share of lr at which the warm-up begins; none is .1 (App. C.4).", low=0, high=1
  )
  final: float | None = setting(
    None, "The share of lr at the end; none is .1 for cosine and 0 for linear.", low=0, high=1
  )
  decay: int = setting(0, "The update at which the rate reaches its end; 0 is the last one.", low=0)
  b1: float = setting(0.9, "Adam's decay of the mean gradient.", low=0, below=1)
  b2: float = setting(0.95, "Adam's decay of the mean squared gradient.", low=0, below=1)
  eps: float = setting(1e-8, "Adam's epsilon.", above=0, high=1)
  eps_mode: Literal["optax", "tf"] = setting(
    "optax", "Where epsilon is added: as optax or as TensorFlow 1 does it."
  )
  weight_decay: float = setting(0.0, "Decoupled weight decay of matrices.", low=0, high=1)
  clip: float | None = setting(
    None, "The bound of the global gradient norm; none clips nothing.", above=0, high=1e6
  )

  def conflicts(self) -> Iterator[tuple[str, str]]:
    if self.schedule == "constant" and self.final is not None:
      yield "final", "a constant rate has no end; leave it none, or choose another schedule"
    if self.schedule == "constant" and self.decay:
      yield "decay", "a constant rate has no end; leave it 0, or choose another schedule"
    if self.start is not None and not self.warmup:
      yield "start", "there is no warm-up that begins there; set warmup too"
    if self.decay and self.decay <= self.warmup:
      yield "decay", f"the rate would end before its warm-up of {self.warmup} updates; raise it"
