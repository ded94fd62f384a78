"""Seconds of one PPO iteration in TRL 1.12.0, at the shapes of `instructjax bench --stage=ppo`.

  make test-oracles                                       # brings torch, transformers and TRL
  .venv/bin/python experiments/trl/ppo_speed.py           # one JSON object

Random weights, float32, every response at its full length (no end of text), as in the benchmark.
The first iteration is left out.  The README of this folder holds the figures.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import tempfile
import time
from types import SimpleNamespace

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
import transformers as hf
from datasets import Dataset
from trl.experimental.ppo import PPOConfig, PPOTrainer

SHAPES = {
  "gpt-5m": hf.GPT2Config(vocab_size=8192, n_positions=512, n_embd=256, n_layer=4, n_head=4),
  "smollm2-135m": hf.LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
  ),
}


def seconds(
  shape: str, batch: int, prompt: int, response: int, epochs: int, minibatches: int, repeats: int
):
  """Seconds of each iteration after the first."""
  config = SHAPES[shape]
  config.pad_token_id, config.eos_token_id, config.bos_token_id, config.num_labels = (
    0,
    None,
    None,
    1,
  )
  config.use_cache = True
  torch.manual_seed(0)
  policy, ref = (hf.AutoModelForCausalLM.from_config(config) for _ in range(2))
  judge, value = (hf.AutoModelForSequenceClassification.from_config(config) for _ in range(2))
  rows = torch.randint(1, config.vocab_size, (batch, prompt)).tolist()
  with tempfile.TemporaryDirectory() as folder:
    args = PPOConfig(
      output_dir=folder,
      per_device_train_batch_size=batch,
      gradient_accumulation_steps=1,
      num_mini_batches=minibatches,
      num_ppo_epochs=epochs,
      total_episodes=batch * (repeats + 1),
      response_length=response,
      temperature=1.0,
      stop_token_id=None,
      kl_coef=0.02,
      bf16=False,
      gradient_checkpointing=False,
      report_to=[],
      use_cpu=True,
      save_strategy="no",
      num_sample_generations=0,
      disable_tqdm=True,
      learning_rate=1e-6,
    )
    trainer = PPOTrainer(
      args,
      SimpleNamespace(pad_token_id=0, eos_token_id=config.vocab_size),
      policy,
      ref,
      judge,
      Dataset.from_dict({"input_ids": rows}),
      value,
      data_collator=lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])},
      eval_dataset=Dataset.from_dict({"input_ids": rows}),
    )
    ends = []
    trainer.log = lambda *args, **kwargs: ends.append(time.perf_counter())  # once an iteration
    trainer.train()
  return [b - a for a, b in itertools.pairwise(ends)]


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--shape", default="gpt-5m", choices=list(SHAPES))
  for name, default in {
    "batch": 64,
    "prompt": 32,
    "response": 64,
    "epochs": 1,
    "minibatches": 8,
    "repeats": 5,
  }.items():
    parser.add_argument(f"--{name}", type=int, default=default)
  settings = vars(parser.parse_args())
  found = seconds(**settings)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  print(
    json.dumps(
      settings | {"seconds": found, "median_s": statistics.median(found), "peak_rss_gb": peak}
    )
  )
