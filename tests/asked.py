"""Samples and evaluates the models in RUNS: `python tests/asked.py DATA RUNS OUT SERVER`.

With `--distributed=...` after it, this is one of several processes. There is a judge of each kind:
a sum of a reward run of ours, a function and a server; a language model of ours that compares; and
a function that compares.
"""

import sys
from pathlib import Path

MESH = [f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "model")]
TEMPLATE = "{prompt} A {a} B {b} Better:"
JUDGE = """
def shorter(prompts, a, b):
  return [float(len(x) < len(y)) + .5 * (len(x) == len(y)) for x, y in zip(a, b, strict=True)]

def share(prompts, responses):
  return [min(len(text) / 100, 1.0) for text in responses]
"""


def commands(data: Path, runs: Path, out: Path, server: str) -> list[list[str]]:
  """Returns three commands.

  They are a round of samples for labelers, scored as it is sampled, an evaluation of the same two
  models, and one of a model more.
  """
  judge = out.parent / "judge.py"
  models = [f"--model=before={runs / 'pretrain'}", f"--model={runs / 'sft'}"]
  rewards = f"{runs / 'reward'} + 0.5*python:{judge}:share + 0.1*{server}"
  draw = [
    "--config.sampling.response=4",
    "--config.sampling.temperature=0.7,1",
    "--config.n=2",
    "--config.k=3",
  ]
  sizes = ["--config.data.prompt=12", "--config.batch=4", "--config.prompts=3"]
  sample = [
    "sample",
    "--config=sample:tiny",
    f"--config.data.prompts={data / 'prompts.jsonl'}",
    f"--workdir={out / 'round'}",
  ]
  language_model = f"lm:{runs / 'sft'}#template={out.parent / 'ask.txt'}"
  judges = f"sum={rewards}; lm={language_model}; pair=python:{judge}:shorter"
  fields = {
    "limit": 3,
    "tokens": 512,
    "model.dtype": "float32",
    "template": "",
    "preference.prompts": data / "prompts.jsonl",
    "preference.judges": judges,
    "preference.response": 6,
    "toxicity.prompts": out.parent / "toxicity.jsonl",
    "toxicity.scorer": f"python:{judge}:share",
    "toxicity.forms": "basic",
    "hallucination.tokens": 6,
    "hallucination.judge": f"python:{judge}:share",
  }
  evaluate = [
    "eval",
    f"--workdir={out / 'eval'}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]
  first = ["--suite=preference,toxicity", f"--models=base={runs / 'pretrain'},sft={runs / 'sft'}"]
  second = [
    "--suite=preference,hallucination",
    f"--models=ppo={runs / 'sft'}#prefix={out.parent / 'ask.txt'}",
  ]
  return [
    [*sample, *models, *draw, *sizes, f"--config.rewards={rewards}"],
    [*evaluate, *first],
    [*evaluate, *second],
  ]


def main(data: str, runs: str, out: str, server: str, *more: str) -> int:
  from instructjax.commands import cli

  for command in commands(Path(data), Path(runs), Path(out), server):
    code = cli.main([*command, *MESH, *more])
    if code:
      return code
  return 0


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
