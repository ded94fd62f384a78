"""Seconds of one PPO iteration in TRL 1.12.0, at the shapes of `instructjax bench --stage=ppo`.

  make test-oracles                                            # brings torch, transformers, TRL
  .venv/bin/python experiments/trl/ppo_speed.py                # one JSON object
  .venv/bin/python experiments/trl/ppo_speed.py --lengths=paper
  .venv/bin/python experiments/trl/ppo_speed.py --dtype=bfloat16   # TRL's bf16=True, autocast

Weights are random and float32, and prompts and responses have the lengths that the benchmark
draws, in the same iterations (`instructjax.plan.lengths`).  At full length nothing ends a response.
Else row i samples the stop token at its scheduled length and not before, TRL cuts it there, and
generation stops as soon as the last row of a generated batch has ended; prompts are padded on the
left to the longest of their batch.  The first iteration is left out.  The README of this folder
holds the figures.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
import transformers as hf
from datasets import Dataset
from trl.experimental.ppo import PPOConfig, PPOTrainer

from instructjax.plan import lengths
from instructjax.plan.lengths import Lengths

PAD = 0
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


class Schedule(hf.LogitsProcessor):
  """Ends each row at its own length: there the stop token is certain, and before it impossible."""

  def __init__(self, ends: torch.Tensor, context: int, stop: int):
    self.ends = ends  # [B] tokens of each response
    self.context = context  # tokens of the padded prompts
    self.stop = stop

  def __call__(self, input_ids, scores):
    tokens = input_ids.shape[1] - self.context + 1  # with the one that is sampled now
    scores = scores.clone()
    # TRL takes the first padding token of a response for its end, wherever it comes from.
    scores[:, [PAD, self.stop]] = -torch.inf
    last = self.ends == tokens
    scores[last] = -torch.inf
    scores[last, self.stop] = 0.0
    return scores


def follow_schedules(policy, ends: Iterator[int], stop: int) -> None:
  """Lets `policy.generate` end each row by the next of the ends: TRL keeps the order of rows."""
  generate = policy.generate

  def generate_by_schedule(input_ids, **options):
    rows, context = input_ids.shape
    ends_of_rows = torch.tensor(list(itertools.islice(ends, rows)))
    schedule = Schedule(ends_of_rows, context, stop)
    output = generate(input_ids=input_ids, logits_processor=[schedule], **options)
    made = output.sequences.shape[1] - context
    assert made == ends_of_rows.max(), (
      f"{made} tokens, the longest response has {ends_of_rows.max()}"
    )
    first_stop = (output.sequences[:, context:] == stop).int().argmax(1) + 1
    assert torch.equal(first_stop, ends_of_rows)
    return output

  policy.generate = generate_by_schedule


def padded(rows: Lengths, vocab_size: int) -> torch.Tensor:
  """Random prompts [B, longest], padded on the left."""
  prompts = torch.randint(1, vocab_size, (len(rows.prompt), int(rows.prompt.max())))
  columns = torch.arange(prompts.shape[1])
  padding = columns < prompts.shape[1] - torch.tensor(rows.prompt)[:, None]
  return prompts.masked_fill(padding, PAD)


def seconds(
  shape: str,
  batch: int,
  prompt: int,
  response: int,
  epochs: int,
  minibatches: int,
  repeats: int,
  dtype: str,
  source: str,
) -> tuple[list[float], list[Lengths]]:
  """Returns (seconds, lengths of the rows) of each iteration after the first."""
  draw = lengths.draws(source, prompt, response)
  rows_of_iterations = [draw(number, batch) for number in range(repeats + 1)]
  config = SHAPES[shape]
  config.pad_token_id, config.eos_token_id, config.bos_token_id, config.num_labels = (
    PAD,
    None,
    None,
    1,
  )
  config.use_cache = True
  torch.manual_seed(0)
  policy, ref = (hf.AutoModelForCausalLM.from_config(config) for _ in range(2))
  judge, value = (hf.AutoModelForSequenceClassification.from_config(config) for _ in range(2))
  stop = None
  if source != "full":
    stop = config.vocab_size - 1
    ends = itertools.chain.from_iterable(rows.response.tolist() for rows in rows_of_iterations)
    follow_schedules(policy, ends, stop)
  prompts = [{"input_ids": padded(rows, config.vocab_size)} for rows in rows_of_iterations]
  placeholder = Dataset.from_dict({"input_ids": [[1]] * batch})
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
      stop_token_id=stop,
      kl_coef=0.02,
      bf16=dtype == "bfloat16",
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
      SimpleNamespace(pad_token_id=PAD, eos_token_id=config.vocab_size if stop is None else stop),
      policy,
      ref,
      judge,
      placeholder,
      value,
      data_collator=lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])},
      eval_dataset=placeholder,
    )
    # TRL would shuffle; here iteration i has the rows of draw i.
    trainer.dataloader = prompts
    logged = []
    trainer.log = lambda *args, **kwargs: logged.append(time.perf_counter())  # once an iteration
    trainer.train()
  return [b - a for a, b in itertools.pairwise(logged)], rows_of_iterations[1:]


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
  sources = "full, uniform, paper, or a file of JSON lines, as of `instructjax bench`"
  parser.add_argument("--lengths", default="full", metavar="SOURCE", help=sources)
  parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
  settings = vars(parser.parse_args())
  options = {name: value for name, value in settings.items() if name != "lengths"}
  taken, rows_of_iterations = seconds(**options, source=settings["lengths"])
  real = [int(rows.prompt.sum() + rows.response.sum()) for rows in rows_of_iterations]
  rates = [tokens / s for tokens, s in zip(real, taken, strict=True)]
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  report = {
    "seconds": taken,
    "median_s": statistics.median(taken),
    "tokens/s": statistics.median(rates),  # of prompts and responses, without padding
    "peak_rss_gb": peak,
  }
  print(json.dumps(settings | report))
