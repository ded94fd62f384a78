"""TRL's trainers of GRPO and DPO with nothing but what their losses read, on tiny Llamas.

A trainer is made without its `__init__`, which would ask for a tokenizer and data. The settings
are TRL's own, with their defaults.
"""

import copy
from collections import defaultdict
from types import SimpleNamespace

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from trl_update import EOS, LLAMA, PAD

# One process: what is gathered or reduced is what was given.
ALONE = SimpleNamespace(
  device=torch.device("cpu"),
  num_processes=1,
  process_index=0,
  is_main_process=True,
  sync_gradients=True,
  gather=lambda x: x,
  gather_for_metrics=lambda x: x,
  reduce=lambda x, reduction: x,
)
OF_MACHINE = {"use_cpu": True, "bf16": False, "report_to": [], "gradient_checkpointing": False}


def without_init(trainer: type, fields: dict):
  """An object of a trainer that has these fields alone."""
  bare = trainer.__new__(trainer)
  vars(bare).update(fields)
  return bare


def policy_and_reference() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
  """A policy near its reference, as in the middle of a run."""
  torch.manual_seed(0)
  policy, reference = (LlamaForCausalLM(LlamaConfig(**LLAMA)) for _ in range(2))
  with torch.no_grad():
    for p, q in zip(policy.parameters(), reference.parameters()):
      p.copy_(q + 0.1 * (p - q))
  return policy, reference


def grpo(folder, *, model=None, reference=None, rows=12, group=4, response=7, **settings):
  """The trainer of GRPO on `rows` responses, with `group` of them a prompt.

  Two epochs make it hold the log-probabilities that the ratios begin at.
  """
  args = GRPOConfig(
    output_dir=str(folder),
    per_device_train_batch_size=rows,
    gradient_accumulation_steps=1,
    num_generations=group,
    num_iterations=2,
    max_completion_length=response,
    # TRL's default multiplies the KL by the ratio (DeepSeek-V3.2), which Shao et al. 2024 do not.
    use_bias_correction_kl=False,
    **OF_MACHINE,
    **settings,
  )
  return without_init(
    GRPOTrainer,
    {
      "args": args,
      "accelerator": ALONE,
      "model": model or SimpleNamespace(training=True, is_gradient_checkpointing=False),
      "ref_model": reference,
      "model_kwarg_keys": {"logits_to_keep"},
      "beta": args.beta,
      "temperature": args.temperature,
      "epsilon_low": args.epsilon,
      "epsilon_high": args.epsilon if args.epsilon_high is None else args.epsilon_high,
      "loss_type": args.loss_type,
      "importance_sampling_level": args.importance_sampling_level,
      "scale_rewards": args.scale_rewards,
      "multi_objective_aggregation": args.multi_objective_aggregation,
      "num_generations": args.num_generations,
      "num_iterations": args.num_iterations,
      "max_completion_length": args.max_completion_length,
      "mask_truncated_completions": args.mask_truncated_completions,
      "top_entropy_quantile": args.top_entropy_quantile,
      "off_policy_mask_threshold": args.off_policy_mask_threshold,
      "pad_to_multiple_of": args.pad_to_multiple_of,
      "use_vllm": args.use_vllm,
      "current_gradient_accumulation_steps": 1,
      "aux_loss_enabled": False,
      "_entropy_bonus_enabled": False,
      "environment_factories": None,
      "environments": None,
      "tools": [],
      "log_multimodal": False,
      "_tokenizer": SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS),
      "processing_class": SimpleNamespace(batch_decode=lambda ids, **options: [""] * len(ids)),
      "_pending_extra_logs": {},
      "_pending_metrics": {},
      "_metrics": {"train": defaultdict(list)},
      "_logs": defaultdict(list, {"rewards": defaultdict(list)}),
    },
  )


def grpo_inputs(trainer, prompts, responses, scores, weights):
  """What the trainer makes of prompts, responses and scores [rows, rewards]: its loss reads it."""
  rewards = torch.tensor(scores, dtype=torch.float32)
  names = [f"reward {number}" for number in range(len(weights))]
  generated = (prompts, responses, None, [""] * len(prompts), None, {}, None, None)
  vars(trainer).update(
    reward_funcs=names,
    reward_func_names=names,
    reward_weights=torch.tensor(weights, dtype=torch.float32),
    _generate=lambda texts: generated,
    _calculate_rewards=lambda *arguments: rewards,
  )
  return trainer._generate_and_score_completions([{"prompt": ""} for _ in prompts])


def grpo_loss(trainer, logp, batch):
  """The loss of the trainer where the log-probabilities of the tokens are these."""
  entropies = torch.zeros_like(logp)
  trainer._get_per_token_logps_and_entropies = lambda *a, **b: (logp, entropies, None)
  return trainer._compute_loss(None, batch)


def dpo(folder, model, reference, **settings):
  """The trainer of DPO."""
  args = DPOConfig(output_dir=str(folder), **OF_MACHINE, **settings)
  return without_init(
    DPOTrainer,
    {
      "args": args,
      "accelerator": ALONE,
      "model": model,
      "ref_model": reference,
      "beta": args.beta,
      "loss_types": args.loss_type,
      "loss_weights": [1.0] * len(args.loss_type),
      "label_smoothing": args.label_smoothing,
      "f_divergence_type": args.f_divergence_type,
      "ld_alpha": args.ld_alpha,
      "use_weighting": args.use_weighting,
      "precompute_ref_logps": args.precompute_ref_log_probs,
      "aux_loss_enabled": False,
      "_metrics": {"train": defaultdict(list)},
      "_total_train_tokens": 0,
    },
  )


def dpo_loss(trainer, logp, ref_logp):
  """The loss of the trainer where whole responses [2, B] have these log-probabilities.

  Each has one token of a vocabulary of two, and its logits are (log p, log (1 - p)).
  """
  both = lambda x: torch.cat([x[0], x[1]])

  def logits(x):
    p = both(x).double()
    of_token = torch.stack([p, torch.log1p(-torch.exp(p))], dim=-1).float()
    # The first position predicts the token, and the last one predicts nothing.
    return torch.stack([of_token, torch.zeros_like(of_token)], dim=1)

  rows = both(logp).shape[0]
  inputs = {
    "input_ids": torch.zeros(rows, 2, dtype=torch.long),
    "attention_mask": torch.ones(rows, 2, dtype=torch.long),
    "completion_mask": torch.tensor([[0, 1]] * rows),
  }

  def answer(x):
    model = torch.nn.Module()
    model.forward = lambda **batch: SimpleNamespace(logits=logits(x))
    return model

  trainer.model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
  trainer.ref_model = answer(ref_logp)
  return trainer._compute_loss(answer(logp), inputs, return_outputs=False)


def descend(model, losses, rate: float) -> tuple[list[float], LlamaForCausalLM]:
  """The losses and the model after a step of SGD on each of some functions () -> loss."""
  before = copy.deepcopy(model)
  optimizer = torch.optim.SGD(model.parameters(), lr=rate)
  values = []
  for loss_of in losses:
    optimizer.zero_grad()
    loss = loss_of()
    loss.backward()
    optimizer.step()
    values.append(loss.item())
  return values, before
