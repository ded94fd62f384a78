"""The paper's evaluations of any set of models, side by side.

  instructjax eval --models base=MODEL,sft=runs/sft,ppo=runs/ppo,ptx=runs/ptx --suite nlp,truthfulqa \
    --workdir=runs/eval --config.nlp.drop=tfds:drop@dev

Answers and scores are kept item by item: run the command again to go on, or to add models and suites.  docs/evaluation.md
says what each suite needs; a task whose data is "" is left out.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "paper") -> ConfigDict:
  if arg != "paper":
    raise KeyError(arg)
  c = ConfigDict({"stage": "eval", "seed": 0})
  c.baseline = "sft"  # the model that win rates and differences are against
  c.limit = 0  # the first items of each task only; 0 takes all
  c.model = {
    "shape": "tiny",  # origin.SHAPES, for random weights
    "tokenizer": "",  # "" is each source's own
    "dtype": "bfloat16",
    "remat": "none",
    "unroll": 1,  # layers a step of the scan; on a CPU more compile longer and run faster
    "sequence": False,
    "attention": "auto",  # of whole rows: a kernel of the platform where there is one; or xla, splash, cudnn
    "dropout": 0.0,
  }
  c.template = ""  # chat template: "" is plain text, as in the paper; "chat" is the tokenizer's own; or a .jinja file
  c.tokens = 16384  # of a batch, padding included, over all devices
  c.folder = ""  # where TFDS data sets were prepared; "" is TFDS's own default
  c.mesh = {"data": 1, "fsdp": 1, "model": 1}
  return c
