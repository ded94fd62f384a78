"""The model that PPO starts from and is held to: demonstrations and pretraining text (Ouyang et al.
2022, App. C.3).

  instructjax data tone --out=data
  instructjax rl_init --config=rl_init:tiny --model=runs/pretrain --workdir=runs/rl_init      20 s on two cores

  instructjax rl_init --config=rl_init:1.3b --model=runs/pretrain-1.3b
  --config.data.demonstrations=demos.jsonl \
    --config.data.text=text.jsonl --workdir=runs/rl_init-1.3b

Printed: learning rate and batch of each size, 2 epochs, 10 % pretraining data, cosine to 10 %.
The form of the mix is not: here a tenth of the rows of each batch is pretraining text (3 of 32;
1 of 8), the rest are demonstrations.
"""

from ml_collections import ConfigDict

SIZES = {
  "1.3b": ("1.3B", 5e-6, 32),
  "6b": ("6B", 1.04e-5, 32),
  "175b": ("175B", 2.45e-6, 8),
}  # shape, lr, batch


def get_config(arg: str = "tiny") -> ConfigDict:
  tiny = arg == "tiny"
  shape, lr, batch = ("tiny", 1e-3, 16) if tiny else SIZES[arg]
  c = ConfigDict({"stage": "rl_init", "seed": 0})
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
    "dropout": 0.2,  # residual: after attention and after the MLP
  }
  c.data = {
    "demonstrations": "data/demonstrations.jsonl",  # or a mixture: "2*a.jsonl + b.jsonl"
    "text": "data/text_train.jsonl",
    "valid": "",  # held-out demonstrations
    "spelling": "native",  # of the demonstrations: or preference, alpaca, messages, hh
    "fields": "",  # ours=theirs of another spelling: "prompt=question,completion=answers.text.0"
    # Chat template: "" is plain text, as in the paper; "chat" is the tokenizer's own; or a .jinja
    # file
    "template": "",
    "prompt": 128 if tiny else 1024,  # tokens; a longer prompt is an error
    "response": 96 if tiny else 1024,  # tokens; a longer completion is cut
    # True puts several demonstrations, or documents, in a row, each by itself; `batch` counts
    # packed rows
    "pack": False,
    # True reads and tokenises text when it is drawn: a corpus that does not fit in memory
    "lazy": False,
    "separator": " ",  # between prompt and completion
  }
  c.steps = 0  # 0: epochs count
  c.epochs = 2
  c.batch = batch
  c.micro = 1  # micro-batches a step
  c.text_share = 0.1  # of the rows of a batch, at least one
  c.loss_on_prompt = False
  c.top = None  # train only this many blocks from the top; None trains everything
  c.trunk_dtype = "bfloat16"  # of the weights that are not trained, under `top` or LoRA
  c.lora = {
    "rank": 0,  # of an adapter that is trained in the place of the weights (LoRA); 0 is off
    "alpha": 16.0,  # the adapter counts alpha / rank
    "targets": "all",  # products that have one, such as "q,v"; all: q, k, v, o and those of the MLP
  }
  c.optimizer = {
    "lr": lr,
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
  # A metric, eval/nll for one: the checkpoint where it is lowest is kept besides the last `keep`
  c.best = ""
  c.checkpoint_every, c.keep, c.log_every, c.evaluate_every = (
    (0, 1, 1, 0) if tiny else (500, 2, 1, 500)
  )
  return c
