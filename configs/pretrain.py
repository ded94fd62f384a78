"""Pretraining on plain text (Brown et al. 2020, App. B): the model that everything else starts
from.

  instructjax data tone --out=data
  instructjax pretrain --config=pretrain:tiny --workdir=runs/pretrain      20 s on two cores

  instructjax pretrain --config=pretrain:1.3b --config.data.text=text.jsonl \
    --config.model.tokenizer=gpt2/tokenizer.json --config.mesh.data=8 --config.mesh.fsdp=32 \
    --workdir=runs/pretrain-1.3b            300 billion tokens, 2.4e21 FLOP

Printed by Brown et al.: the learning rate and batch of each size, Adam .9/.95/1e-8, clipping at
1, weight decay .1, a warmup over 375M tokens and a cosine to 10 % over 260B tokens.
"""

from ml_collections import ConfigDict

# shape, learning rate, batch in rows of 2048 tokens (1M, 2M and 3.2M tokens)
SIZES = {"1.3b": ("1.3B", 2.0e-4, 512), "6b": ("6B", 1.2e-4, 1024), "175b": ("175B", 0.6e-4, 1600)}


def get_config(arg: str = "tiny") -> ConfigDict:
  tiny = arg == "tiny"
  shape, lr, batch = ("tiny", 3e-3, 16) if tiny else SIZES[arg]
  length = 64 if tiny else 2048
  tokens = length * batch
  c = ConfigDict({"stage": "pretrain", "seed": 0})
  c.model = {
    # "": random weights of `shape`; or a run, a model folder, a .gguf file, a hub id,
    # file.py:function
    "source": "",
    "shape": shape,  # origin.SHAPES
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
    "text": "data/text_train.jsonl",  # or a mixture: "0.7*a.jsonl + 0.3*tfds:c4"
    "valid": "data/text_valid.jsonl" if tiny else "",
    "length": length,
    # True puts several documents in a row, each by itself (docs/data.md); `batch` counts packed
    # rows
    "pack": False,
    # True reads and tokenises text when it is drawn: a corpus that does not fit in memory
    "lazy": False,
    "spelling": "native",
    "fields": "",  # "text=body" where the documents stand in another field
  }
  c.steps = 300 if tiny else round(300e9 / tokens)
  c.epochs = 0  # counts where steps is 0
  c.batch = batch
  c.micro = 1  # micro-batches a step
  c.text_share = 1.0
  c.top = None  # train only this many blocks from the top; None trains everything
  c.trunk_dtype = "bfloat16"  # of the weights that are not trained, under `top` or LoRA
  c.lora = {
    "rank": 0,  # of an adapter that is trained in the place of the weights (LoRA); 0 is off
    "alpha": 16.0,  # the adapter counts alpha / rank
    "targets": "all",  # products that have one, such as "q,v"; all: q, k, v, o and those of the MLP
  }
  c.optimizer = {
    "lr": lr,
    "schedule": "warmup_cosine",
    "final": 0.1,
    "warmup": 20 if tiny else round(375e6 / tokens),
    "decay": 0 if tiny else round(260e9 / tokens),
    "b1": 0.9,
    "b2": 0.95,
    "eps": 1e-8,
    "eps_mode": "optax",
    "weight_decay": 0.1,
    "clip": 1.0,
  }
  c.mesh = {"data": 1, "fsdp": 1, "model": 1}
  # A metric, eval/nll for one: the checkpoint where it is lowest is kept besides the last `keep`
  c.best = ""
  c.checkpoint_every, c.keep, c.log_every, c.evaluate_every = (
    (0, 1, 1, 100) if tiny else (1000, 2, 10, 1000)
  )
  return c
