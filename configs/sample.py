"""Samples responses from any model.

  instructjax sample --config=sample:tiny --model=runs/ppo --workdir=runs/sample instructjax
  sample --config=sample:tiny --model=sft=runs/sft --model=ppo=runs/ppo
  --config.sampling.temperature=0.7,1 \
    --config.n=2 --config.k=4 --workdir=runs/round        # then: instructjax label --tasks=runs/round/samples.jsonl ...
  instructjax sample --config=sample:1.3b --model=PATH_OR_HUB_ID \
    --config.prompt="Explain the moon landing to a child."

Leaves samples.jsonl, and prints what one model says at one temperature.  The paper samples
InstructGPT at temperature 1 and GPT-3 at .7 (App. F), and has people rank 4 to 9 outputs of a
prompt (3.5).
"""

from ml_collections import ConfigDict


def get_config(arg: str = "tiny") -> ConfigDict:
  tiny = arg == "tiny"
  if arg not in ("tiny", "1.3b", "6b", "175b"):
    raise KeyError(arg)
  c = ConfigDict({"stage": "sample", "seed": 0})
  c.prompt = ""  # one prompt, instead of the file
  c.rewards = ""  # scores for samples.jsonl: runs/reward, python:my.py:polite ... (docs/rewards.md)
  c.model = {
    # A run directory, a model folder, a .gguf file, a hub id or file.py:function; several:
    # sft=runs/sft,...
    "source": "",
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
  c.prompts = 8  # the first ones of the file; 0 takes all
  c.n = 1  # responses of each model at each temperature
  # Different ones of all that are kept, 2 to 9 for people to rank; 0 keeps all, the repeated ones
  # too
  c.k = 0
  c.batch = 8  # prompts at a time
  c.sampling = {
    "response": 48 if tiny else 1024,
    "temperature": (1.0,),  # several by commas: 0.7,1
    "top_k": 0,  # the likeliest tokens that are kept; 0 keeps all, as in the paper
    "top_p": 1.0,  # the mass of likeliest tokens that is kept; 1 keeps all, as in the paper
    "whole": True,
  }
  c.mesh = {"data": 1, "fsdp": 1, "model": 1}
  return c
