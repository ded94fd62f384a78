"""The values that the paper prints, preset by preset, and what all configurations share."""

from pathlib import Path

import pytest

from instructjax import settings
from instructjax.errors import UserError
from instructjax.models import gpt
from instructjax.settings import reading
from instructjax.stages import wiring

ROOT = Path(__file__).resolve().parent.parent.parent
STAGES = ("pretrain", "sft", "rl_init", "reward", "ppo", "grpo", "dpo", "bestofn", "sample")
SIZES = ("1.3b", "6b", "175b")


load = settings.load


def assert_falls_to_a_tenth(optimizer):
  """The learning rate falls from its peak to a tenth of it, by a cosine (App. C.1 to C.3)."""
  rate = wiring.learning_rate(optimizer, 100)
  assert optimizer.schedule == "cosine"
  assert [float(rate(update)) for update in (0, 99)] == pytest.approx(
    [optimizer.lr, 0.1 * optimizer.lr]
  )


@pytest.mark.parametrize(
  ("size", "shape", "lr", "batch", "micro_steps"),
  [
    ("1.3b", "1.3B", 9.65e-6, 32, 6362),
    ("6b", "6B", 9.65e-6, 32, 6362),
    ("175b", "175B", 5.03e-6, 8, 25_450),
  ],
)
def test_sft(size, shape, lr, batch, micro_steps):
  c = load(f"sft:{size}")
  assert (c.model.shape, c.optimizer.lr, c.batch, c.epochs) == (shape, lr, batch, 16)
  assert c.epochs * 12_725 // c.batch == micro_steps
  assert_falls_to_a_tenth(c.optimizer)
  assert (c.optimizer.b1, c.optimizer.b2) == (0.9, 0.95)
  assert c.model.dropout == 0.2
  assert not c.loss_on_prompt
  assert (c.optimizer.eps, c.optimizer.weight_decay, c.optimizer.clip) == (1e-8, 0.0, None)
  assert c.data.prompt + c.data.response == 2048


@pytest.mark.parametrize(("preset", "batch", "steps"), [("flan", 64, 14_000), ("t0", 128, 7_000)])
def test_public_tasks(preset, batch, steps):
  c = load(f"sft:{preset}")
  assert (c.model.shape, c.optimizer.lr, c.batch, c.epochs) == ("175B", 4e-6, batch, 1)
  assert c.epochs * 896_000 // c.batch == steps
  assert_falls_to_a_tenth(c.optimizer)


@pytest.mark.parametrize(
  ("size", "lr", "batch"), [("1.3b", 5e-6, 32), ("6b", 1.04e-5, 32), ("175b", 2.45e-6, 8)]
)
def test_rl_init(size, lr, batch):
  c = load(f"rl_init:{size}")
  assert (c.optimizer.lr, c.batch, c.epochs, c.text_share) == (lr, batch, 2, 0.1)
  assert_falls_to_a_tenth(c.optimizer)


@pytest.mark.parametrize("size", SIZES)
def test_reward(size):
  c = load(f"reward:{size}")
  assert (c.model.shape, c.optimizer.lr, c.batch, c.epochs) == ("6B", 9e-6, 64, 1)
  assert_falls_to_a_tenth(c.optimizer)
  assert c.pairs == "remaining"
  assert c.epochs * 33_207 // c.batch == 518


@pytest.mark.parametrize(
  ("size", "sweep", "value_lr"),
  [
    ("1.3b", (2.55e-6, 2.55e-5), 9e-6),
    ("6b", (2.55e-6, 2.55e-5), 9e-6),
    ("175b", (2.55e-6, 3.74e-6), 5e-6),
  ],
)
def test_ppo(size, sweep, value_lr):
  c = load(f"ppo:{size}")
  assert c.iterations * c.batch == 256_000
  assert (c.batch, c.batch // c.ppo.minibatches, c.ppo.epochs) == (512, 64, 1)
  assert (c.kl.coef, c.kl.control) == (0.02, "fixed")
  assert (c.ppo.clip, c.ppo.discount, c.ppo.lam) == (0.2, 1.0, 0.95)
  assert (c.ppo.ptx_coef, c.ptx_ratio, c.ppo.ema_decay) == (27.8, 8, 0.992)
  assert sweep[0] <= c.policy_optimizer.lr <= sweep[1]
  assert (c.policy_optimizer.warmup, c.policy_optimizer.start) == (10, 0.1)
  assert (c.value_optimizer.lr, c.value_optimizer.warmup) == (value_lr, 0)
  assert (c.sampling.temperature, c.data.prompt, c.sampling.response) == (1.0, 1024, 1024)
  assert c.policy_optimizer.eps == 1e-5
  assert c.model.dropout == 0.0
  assert c.frozen_dtype == c.model.dtype == "bfloat16"


@pytest.mark.parametrize("size", SIZES)
def test_dpo(size):
  """Rafailov et al. 2023, App. B, in the sizes of the paper."""
  c = load(f"dpo:{size}")
  assert (c.beta, c.batch, c.optimizer.lr, c.optimizer.schedule) == (0.1, 64, 1e-6, "constant")
  rate = wiring.learning_rate(c.optimizer, 1000)
  assert [float(rate(update)) for update in (0, 150, 999)] == pytest.approx([0, 1e-6, 1e-6])
  assert c.model.shape.lower() == size


# --- what InstructGPT grew out of ---


def test_ziegler():
  """The style tasks of openai/lm-human-preferences: launch.py and the defaults of both trainers."""
  c = load("ppo:ziegler")
  assert c.model.shape == "gpt2-124M"
  assert 1_000_000 <= c.iterations * c.batch < 1_000_000 + c.batch
  assert (c.batch, c.ppo.minibatches, c.ppo.epochs) == (512, 1, 4)
  assert (c.kl.coef, c.kl.control, c.kl.target, c.kl.horizon) == (0.15, "adaptive", 6, 10_000)
  assert (c.ppo.clip, c.ppo.value_clip, c.ppo.value_coef) == (0.2, 0.2, 0.1)
  assert (c.ppo.discount, c.ppo.lam) == (1.0, 0.95)
  assert (c.ppo.whiten_reward, c.ppo.whiten_advantage) == (True, True)
  assert (c.data.prompt, c.sampling.response, c.sampling.temperature) == (64, 24, 0.7)
  assert (c.ppo.ptx_coef, c.ppo.ema_decay) == (0, None)
  for optimizer in (c.policy_optimizer, c.value_optimizer):
    assert (optimizer.lr, optimizer.schedule) == (1e-5, "linear")
    assert (optimizer.eps, optimizer.eps_mode, optimizer.b2) == (1e-5, "tf", 0.999)
    assert float(wiring.learning_rate(optimizer, 100)(99)) < 2e-7
  r = load("reward:ziegler")
  assert (r.model.shape, r.batch, r.optimizer.lr) == ("gpt2-124M", 32, 5e-5)
  assert (r.loss, r.normalise, r.epochs) == ("best_of_k", "mean_and_std", 1)
  assert 4_992 % r.batch == 0
  assert (r.optimizer.schedule, r.optimizer.eps, r.optimizer.eps_mode) == ("linear", 1e-5, "tf")


@pytest.mark.parametrize(
  ("preset", "shape", "sft", "reward", "ppo", "batch"),
  [
    ("stiennon", "1.3B", 6.35e-5, 1.5e-5, 1.5e-5, 512),
    ("stiennon-6.7b", "6.7B", 2.83e-5, 5e-6, 7e-6, 256),
  ],
)
def test_stiennon(preset, shape, sft, reward, ppo, batch):
  s, r, c = (load(f"{stage}:{preset}") for stage in ("sft", "reward", "ppo"))
  assert {s.model.shape, r.model.shape, c.model.shape} == {shape}
  assert (s.optimizer.lr, s.batch, s.epochs) == (sft, 128, 1)
  assert (r.optimizer.lr, r.batch, r.epochs, r.normalise) == (reward, 64, 1, "mean")
  assert (c.policy_optimizer.lr, c.policy_optimizer.schedule, c.batch) == (ppo, "linear", batch)
  assert 1_000_000 <= c.iterations * batch < 1_000_000 + batch
  assert (c.kl.coef, c.kl.control, c.ppo.epochs) == (0.05, "fixed", 4)
  assert (c.ppo.discount, c.ppo.lam, c.ppo.ptx_coef, c.ppo.ema_decay) == (1.0, 0.95, 0, None)
  assert (c.data.prompt, c.sampling.response) == (512, 48)


@pytest.mark.parametrize(
  ("size", "lr", "tokens"), [("1.3b", 2.0e-4, 1e6), ("6b", 1.2e-4, 2e6), ("175b", 0.6e-4, 3.2e6)]
)
def test_pretrain(size, lr, tokens):
  c = load(f"pretrain:{size}")
  assert c.optimizer.lr == lr
  assert c.batch * c.data.length == pytest.approx(tokens, rel=0.05)
  assert c.steps * c.batch * c.data.length == pytest.approx(300e9, rel=1e-3)
  assert c.optimizer.warmup * c.batch * c.data.length == pytest.approx(375e6, rel=1e-2)
  assert c.optimizer.decay * c.batch * c.data.length == pytest.approx(260e9, rel=1e-3)
  assert (c.optimizer.weight_decay, c.optimizer.clip, c.optimizer.schedule) == (
    0.1,
    1.0,
    "cosine",
  )


@pytest.mark.parametrize("stage", STAGES)
def test_every_preset_loads_and_says_its_command(stage):
  for preset in (*SIZES, "tiny"):
    config = load(f"{stage}:{preset}")
    assert config.stage == stage
    if preset != "tiny" and stage not in ("ppo", "sample", "bestofn"):
      assert config.model.shape in gpt.GPT3
  text = (ROOT / "configs" / f"{stage}.py").read_text()
  assert f"instructjax {stage} --config={stage}:tiny" in text
  assert load(stage) == load(f"{stage}:tiny")


@pytest.mark.parametrize("stage", ["sample", "bestofn", "eval"])
def test_what_only_training_reads_is_no_field_where_nothing_is_trained(stage):
  """No backward pass computes anything again, and nothing drops out."""
  config = settings.load(stage)
  assert (config.model.remat, config.model.dropout) == ("none", 0.0)
  assert not {"remat", "dropout"} & set(settings.to_dict(config)["model"])
  for name, value in (("remat", "blocks"), ("dropout", "0.1")):
    with pytest.raises(UserError, match=f"config.model.{name}"):
      reading.override(config, [(f"model.{name}", value)])
