"""One PPO update by TRL's own trainer on tiny Llamas, with what it computed on the way.

The rollout is given and rows are never shuffled.  Prompts are padded on the left; one response
fills its row without an end of text, one fills it with one, the others end earlier.
"""

import copy
import os
from types import SimpleNamespace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import torch

from instructjax.models import hf, llama

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

PAD, EOS, VOCAB, B, P, R = 0, 1, 32, 8, 5, 7
TEMPERATURE, KL_COEF, PENALTY, VF_COEF = 0.7, 0.05, 1.0, 0.1
LENGTHS = np.array([7, 1, 3, 5, 7, 2, 4, 6])
ENDED = LENGTHS < 8
ENDED[0] = False
LLAMA = {
  "vocab_size": VOCAB,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "pad_token_id": PAD,
  "bos_token_id": None,
  "eos_token_id": EOS,
  "tie_word_embeddings": False,
  "initializer_range": 0.3,
  "attn_implementation": "eager",
}


class Models(NamedTuple):
  policy: LlamaForCausalLM
  ref: LlamaForCausalLM
  reward: LlamaForSequenceClassification
  value: LlamaForSequenceClassification


class Update(NamedTuple):
  """The models `before` and `after` the update; `seen` holds arrays in the order they were
  computed.
  """

  before: Models
  after: Models
  seen: dict[str, list[tuple[np.ndarray, ...]]]
  metrics: dict[str, float]


def models() -> Models:
  torch.manual_seed(0)
  policy, ref = (LlamaForCausalLM(LlamaConfig(**LLAMA)) for _ in range(2))
  reward, value = (
    LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=1)) for _ in range(2)
  )
  with (
    torch.no_grad()
  ):  # a policy near its reference and values near the scores, as in the middle of a run
    for near, far in ((policy, ref), (value, reward)):
      for p, q in zip(near.parameters(), far.parameters()):
        p.copy_(q + 0.1 * (p - q))
  return Models(policy, ref, reward, value)


def params_of(net, folder):
  """(LM, parameters) of a transformers model, by way of a folder; a scalar head stands beside its
  trunk.
  """
  whole = LlamaForCausalLM(net.config)
  whole.model.load_state_dict(net.model.state_dict())
  scalar = hasattr(net, "score")
  if not scalar:
    whole.lm_head.load_state_dict(net.lm_head.state_dict())
  whole.save_pretrained(folder)
  config, params = hf.load(folder)
  if not scalar:
    return llama.llama(config), params
  trunk = {name: leaf for name, leaf in params.items() if name != "head"}
  return llama.llama(config), {
    "lm": trunk,
    "head": {"w": jnp.asarray(net.score.weight[0].detach().numpy()), "b": jnp.float32(0)},
  }


def rollout() -> tuple[np.ndarray, np.ndarray]:
  """(prompts [B, P], responses [B, R]); PAD stands before a prompt and after a response, and
  nowhere else.
  """
  rng = np.random.default_rng(0)
  prompts, responses = rng.integers(2, VOCAB, (B, P)), rng.integers(2, VOCAB, (B, R))
  for b in range(B):
    prompts[b, : rng.integers(0, 3)] = PAD
    responses[b, LENGTHS[b] :] = PAD
    if ENDED[b]:
      responses[b, LENGTHS[b] - 1] = EOS
  return prompts, responses


def watch(monkeypatch, name: str, seen: dict, pick):
  """Records what passes through a function of TRL's module."""
  function = getattr(ppo_trainer, name)

  def recorded(*args, **kwargs):
    out = function(*args, **kwargs)
    seen.setdefault(name, []).append(tuple(x.detach().numpy().copy() for x in pick(args, out)))
    return out

  monkeypatch.setattr(ppo_trainer, name, recorded)


def run(monkeypatch, folder: str, optimizer, epochs: int, whiten_rewards: bool) -> Update:
  """`optimizer` makes a torch optimizer from a list of parameters."""
  prompts, responses = rollout()
  nets = models()
  before = copy.deepcopy(nets)
  rows = torch.tensor(np.concatenate([prompts, responses], axis=1))

  def given(model, queries, size, pad, config):
    at = [int(np.flatnonzero((prompts == q.numpy()).all(1))[0]) for q in queries]
    assert at == list(range(B))
    return rows, ppo_trainer.forward(model, rows, pad).logits[:, P - 1 : -1] / (TEMPERATURE + 1e-7)

  seen = {}
  monkeypatch.setattr(ppo_trainer, "batch_generation", given)
  monkeypatch.setattr(
    torch.utils.data.RandomSampler, "__iter__", lambda self: iter(range(len(self.data_source)))
  )
  monkeypatch.setattr(np.random, "permutation", np.arange)
  watch(monkeypatch, "selective_log_softmax", seen, lambda args, out: (out,))
  watch(monkeypatch, "get_reward", seen, lambda args, out: out[:2])
  watch(monkeypatch, "masked_whiten", seen, lambda args, out: (args[0], out))
  watch(monkeypatch, "masked_mean", seen, lambda args, out: (out,))
  args = PPOConfig(
    output_dir=folder,
    per_device_train_batch_size=B,
    gradient_accumulation_steps=1,
    num_mini_batches=1,
    num_ppo_epochs=epochs,
    total_episodes=B,
    response_length=R,
    stop_token_id=EOS,
    temperature=TEMPERATURE,
    missing_eos_penalty=PENALTY,
    kl_coef=KL_COEF,
    vf_coef=VF_COEF,
    whiten_rewards=whiten_rewards,
    bf16=False,
    gradient_checkpointing=False,
    report_to=[],
    use_cpu=True,
    save_strategy="no",
    num_sample_generations=0,
    disable_tqdm=True,
  )
  parameters = [*nets.policy.parameters(), *nets.value.parameters()]
  adam = optimizer(parameters)
  constant = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1.0)
  data = Dataset.from_dict({"input_ids": prompts.tolist()})
  tokenizer = SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS)
  trainer = PPOTrainer(
    args,
    tokenizer,
    nets.policy,
    nets.ref,
    nets.reward,
    data,
    nets.value,
    data_collator=lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])},
    eval_dataset=data,
    optimizers=(adam, constant),
  )
  logged = {}
  monkeypatch.setattr(trainer, "log", logged.update)
  trainer.train()
  return Update(before, nets, seen, logged)
