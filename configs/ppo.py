"""PPO with the pretraining mix, PPO-ptx (Ouyang et al. 2022, section 3.5, Eq. 2, and App. C.4).

  instructjax data tone --out=data instructjax ppo --config=ppo:tiny
  --config.rl_init=runs/rl_init --config.reward_model=runs/reward \
    --workdir=runs/ppo            a minute on two cores

  instructjax ppo --config=ppo:1.3b --config.rl_init=runs/rl_init-1.3b
  --config.reward_model=runs/reward-6b \
    --config.data.prompts=prompts.jsonl --config.data.text=text.jsonl --workdir=runs/ppo-1.3b

  instructjax ppo --config=ppo:tiny --config.rl_init=runs/rl_init
  --config.rewards=python:my.py:polite \
    --workdir=runs/ppo-polite     your own reward: docs/rewards.md

--config.ppo.ptx_coef=0 is plain PPO.  Printed: 256k episodes, 512 a batch, 64 a minibatch, 1
epoch, KL coefficient .02, clip .2, no discount, temperature 1, warmup over 10 iterations from a
tenth of the peak, value learning rates, EMA .992, 8 times as many pretraining examples as
episodes with coefficient 27.8.  Not printed, with our choice: the policy's peak (inside the
printed sweep), lambda .95 and the value loss (.1, clip .2) of Stiennon et al. 2020, Adam's
epsilon 1e-5, advantages whitened and rewards not, no dropout, EMA once a minibatch, losses as
token means, a response without an end scored as it is.
"""

from ml_collections import ConfigDict

SIZES = {
  "1.3b": (5e-6, 9e-6),
  "6b": (5e-6, 9e-6),
  "175b": (2.55e-6, 5e-6),
}  # learning rates of policy and value


def get_config(arg: str = "tiny") -> ConfigDict:
  tiny = arg == "tiny"
  policy_lr, value_lr = (3e-4, 1e-3) if tiny else SIZES[arg]
  c = ConfigDict({"stage": "ppo", "seed": 0})
  c.rl_init = ""  # the run that left the model to start from; --model is short for it
  # The run that left the reward model, as which the value network starts; "" starts it as rl_init
  c.reward_model = ""
  # What scores a response; "" is the reward model alone.  A sum with weights (docs/rewards.md), for
  # one
  c.rewards = ""
  # "python:my.py:polite + 0.5*http://localhost:8000/score + 2*runs/reward"
  c.model = {
    "shape": "",  # PPO needs a trained model
    "tokenizer": "",  # "" is the one of rl_init
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
    "prompts": "data/prompts.jsonl",
    "text": "data/text_train.jsonl",
    "spelling": "native",  # of the prompts: or preference, alpaca, messages, hh
    "fields": "",  # ours=theirs of another spelling: "prompt=question,completion=answers.text.0"
    # Chat template: "" is plain text, as in the paper; "chat" is the tokenizer's own; or a .jinja
    # file
    "template": "",
    "prompt": 128 if tiny else 1024,  # tokens; a longer prompt is an error
    # Lengths of prompts: with 4, those of a batch are padded to 1/8, 1/4, 1/2 or all of `prompt`
    "buckets": 1,
    "length": 64 if tiny else 2048,  # tokens of a row of pretraining text
    "pack": False,  # True puts several documents in a row, each by itself (docs/data.md)
    # True reads and tokenises text when it is drawn: a corpus that does not fit in memory
    "lazy": False,
  }
  c.sampling = {"response": 24 if tiny else 1024, "temperature": 1.0, "whole": True}
  # whole=False where the weights do not fit a device whole along fsdp: they are gathered a layer at
  # a time, in every step
  c.iterations = 10 if tiny else 500  # of `batch` episodes: 256,000
  c.batch = 32 if tiny else 512  # episodes
  c.ptx_ratio = 2 if tiny else 8  # pretraining rows an episode
  c.kl = {
    "coef": 0.02,
    # Or "adaptive", towards `target` nats over `horizon` episodes (Ziegler et al. 2019)
    "control": "fixed",
    "target": 6.0,
    "horizon": 10_000.0,
  }
  c.place = "at_last_token"  # where the score is paid; or "after_last_token"
  c.missing_eos = {
    "kind": "keep",
    "value": 1.0,
  }  # or "replace" the score by value, or "subtract" value from it
  c.ppo = {
    "epochs": 1,
    "minibatches": 4 if tiny else 8,
    "clip": 0.2,
    "value_clip": 0.2,
    "value_coef": 0.1,
    "discount": 1.0,
    "lam": 0.95,
    "whiten_advantage": True,  # per minibatch
    "whiten_reward": False,
    "ptx_coef": 27.8,  # relative to token means of both losses
    "ema_decay": 0.992,
    "ema_every": "minibatch",  # or "iteration"
    "micro": 1,  # micro-batches of the PPO loss in a minibatch
    "ptx_micro": 1,  # and of the pretraining loss
  }
  c.top = None  # train only this many blocks from the top; None trains everything
  c.trunk_dtype = "bfloat16"  # of the weights that are not trained, under `top` or LoRA
  c.lora = {
    "rank": 0,  # of an adapter that is trained in the place of the weights (LoRA); 0 is off
    "alpha": 16.0,  # the adapter counts alpha / rank
    "targets": "all",  # products that have one, such as "q,v"; all: q, k, v, o and those of the MLP
  }
  c.frozen_dtype = (
    "float32" if tiny else "bfloat16"
  )  # of the matrices of the reference and the reward model
  adam = {
    "b1": 0.9,
    "b2": 0.95,
    "eps": 1e-5,
    "eps_mode": "optax",
    "weight_decay": 0.0,
    "clip": 1.0 if tiny else None,
  }
  warm = {
    "schedule": "constant",
    "warmup": 2 if tiny else 10,
    "start": 0.1,
    "final": 1.0,
  }  # warmup in iterations
  c.policy_optimizer = {"lr": policy_lr, **warm, **adam}
  c.value_optimizer = {"lr": value_lr, **warm, "warmup": 0, **adam}
  c.mesh = {"data": 1, "fsdp": 1, "model": 1}
  # A metric, objective/scores for one: the checkpoint where it is highest is kept besides the last
  # `keep`
  c.best = ""
  c.checkpoint_every, c.keep, c.log_every, c.evaluate_every = (
    (0, 1, 1, 0) if tiny else (25, 2, 1, 0)
  )
  return c
