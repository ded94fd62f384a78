"""The reward model on ranked completions (Ouyang et al. 2022, section 3.5 and App. C.2).

  instructjax data tone --out=data
  instructjax reward --config=reward:tiny --model=runs/sft --workdir=runs/reward      20 s on two cores

  instructjax reward --config=reward:6b --model=runs/sft-6b --config.data.comparisons=ranked.jsonl \
    --config.data.demonstrations=demos.jsonl --workdir=runs/reward-6b      about 519 steps on the paper's 33,207 prompts

Printed: one 6B model for policies of every size (so all three presets are that one), 1 epoch,
learning rate 9e-6, cosine to 10 %, batches of 64 prompts with all their pairs, the bias that
gives demonstrations the mean score 0. Silent: whether pairs that tie count in the divisor (they
do not), dropout (0).
"""

from ml_collections import ConfigDict


def get_config(arg: str = "tiny") -> ConfigDict:
  tiny = arg == "tiny"
  if arg not in ("tiny", "1.3b", "6b", "175b"):
    raise KeyError(arg)
  c = ConfigDict({"stage": "reward", "seed": 0})
  c.model = {
    # The SFT model: a run, a model folder, a .gguf file, a hub id, file.py:function; "" is random
    # weights
    "source": "",
    "shape": "tiny" if tiny else "6B",  # origin.SHAPES
    # Tokenizer.json, SentencePiece .model or "bytes"; "" is the source's own (tiny: bytes)
    "tokenizer": "",
    "dtype": "float32" if tiny else "bfloat16",  # of matrix products; parameters are float32
    "remat": "none" if tiny else "blocks",  # what the backward pass computes again
    "unroll": 1,  # layers a step of the scan; on a CPU more compile longer and run faster
    # True splits what is kept between blocks along the sequence too, over mesh.model
    "sequence": False,
    # Of whole rows: a kernel of the platform where there is one; or xla, splash, cudnn
    "attention": "auto",
    "dropout": 0.0,
  }
  c.data = {
    "comparisons": "data/comparisons.jsonl",
    "demonstrations": "data/demonstrations.jsonl",  # to fit the bias; "" leaves it at 0
    "valid": "data/test_comparisons_movies.jsonl" if tiny else "",  # held-out comparisons
    "spelling": "native",  # or preference, hh
    "fields": "",  # ours=theirs of another spelling: "prompt=question,completion=answers.text.0"
    # Chat template: "" is plain text, as in the paper; "chat" is the tokenizer's own; or a .jinja
    # file
    "template": "",
    "prompt": 128 if tiny else 1024,  # tokens; a longer prompt is an error
    "response": 96 if tiny else 1024,  # tokens; a longer completion is cut, and ends there
    "separator": " ",  # between prompt and completion
  }
  c.steps = 0  # 0: epochs count
  c.epochs = 1
  c.batch = 8 if tiny else 64  # prompts
  c.micro = 1  # micro-batches a step
  c.pairs = "remaining"  # divide by the pairs that do not tie, or by "all"
  c.top = None  # train only this many blocks from the top; None trains everything
  c.trunk_dtype = "bfloat16"  # of the weights that are not trained, under `top` or LoRA
  c.lora = {
    "rank": 0,  # of an adapter that is trained in the place of the weights (LoRA); 0 is off
    "alpha": 16.0,  # the adapter counts alpha / rank
    "targets": "all",  # products that have one, such as "q,v"; all: q, k, v, o and those of the MLP
  }
  c.optimizer = {
    "lr": 1e-3 if tiny else 9e-6,
    "schedule": "cosine",
    "final": 0.1,
    "warmup": 0,
    "b1": 0.9,
    "b2": 0.95,
    "eps": 1e-8,
    "eps_mode": "optax",
    "weight_decay": 0.0,
    "clip": 1.0 if tiny else None,
  }
  c.mesh = {"data": 1, "fsdp": 1, "model": 1}
  # A metric, eval/accuracy for one: the checkpoint where it is highest is kept besides the last
  # `keep`
  c.best = ""
  c.checkpoint_every, c.keep, c.log_every, c.evaluate_every = (
    (0, 1, 1, 0) if tiny else (100, 2, 1, 100)
  )
  return c
