"""Best-of-n: the response that a reward prefers among n samples (Stiennon et al. 2020; Nakano et
al. 2021).

  instructjax bestofn --config=bestofn:tiny --model=runs/sft --config.rewards=runs/reward
  --workdir=runs/bestofn
                                  half a minute on two cores

Leaves samples.jsonl (the best and the first response of each prompt) and, in metrics.jsonl, the
mean score and the KL bound for n = 1, 2, 4, ... up to `n` (step is n).  1.3b, 6b and 175b are
one preset: the size is the model's.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "tiny") -> ConfigDict:
  tiny = arg == "tiny"
  if arg not in ("tiny", "1.3b", "6b", "175b"):
    raise KeyError(arg)
  c = ConfigDict({"stage": "bestofn", "seed": 0})
  c.rewards = (
    ""  # what chooses: the directory of a reward run, or any sum of rewards (docs/rewards.md)
  )
  c.gold = ""  # a second one that judges the choice; "" has none
  c.model = {
    "source": "",  # a run directory, a model folder, a .gguf file, a hub id or file.py:function
    "shape": "tiny",  # origin.SHAPES, for random weights
    "tokenizer": "",  # "" is the source's own
    "dtype": "float32" if tiny else "bfloat16",
    "remat": "none",
    "unroll": 1,  # layers a step of the scan; on a CPU more compile longer and run faster
    "sequence": False,
    # Of whole rows: a kernel of the platform where there is one; or xla, splash, cudnn
    "attention": "auto",
    "dropout": 0.0,
  }
  c.data = {
    "prompts": "data/prompts.jsonl",
    "spelling": "native",  # or preference, alpaca, messages, hh
    "fields": "",  # ours=theirs of another spelling: "prompt=question"
    # Chat template: "" is plain text, as in the paper; "chat" is the tokenizer's own; or a .jinja
    # file
    "template": "",
    "prompt": 128 if tiny else 1024,  # tokens; a longer prompt is an error
    # Lengths that prompts are padded to, each half of the next; 1 pads all to `prompt`
    "buckets": 4,
  }
  c.prompts = 32 if tiny else 512  # the first ones of the file; 0 takes all
  c.n = 8 if tiny else 64
  c.batch = 4 if tiny else 8  # prompts at a time
  c.sampling = {
    "response": 24 if tiny else 1024,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "whole": True,
  }
  c.mesh = {"data": 1, "fsdp": 1, "model": 1}
  return c
