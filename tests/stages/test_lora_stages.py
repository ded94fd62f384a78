"""Adapters through the stages: what is trained, shared and left, one device against eight, and
going on after a stop.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from stage_runs import TUNE, files, leaves, metrics, ppo, run, stop_after

from instructjax import models, settings
from instructjax.errors import UserError
from instructjax.models import lora, peft
from instructjax.runs import origin
from instructjax.stages import ppo as ppo_stage
from instructjax.stages import running, trainable

LORA = ["--config.lora.rank=2", "--config.lora.alpha=4.0", "--config.trunk_dtype=float32"]
EIGHT = [f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "model")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A finished run with a whole model, some way from its initial values."""
  folder, config = tmp_path_factory.mktemp("base"), origin.SHAPES["tiny"]
  params = tiny.perturb(models.build(config).init(jax.random.key(0)), 0.05)
  origin.finish(folder, 1, params, origin.describe(config, "bytes"), "policy")
  return folder


def tune(stage, data, base, workdir, *options):
  names = {"rl_init": ("demonstrations", "text"), "reward": ("comparisons", "demonstrations")}[
    stage
  ]
  size = ["--config.steps=3", "--config.optimizer.lr=0.02"] + (
    ["--config.data.valid="] if stage == "reward" else []
  )
  assert run(
    stage, workdir, *files(data, *names), f"--model={base}", *TUNE, *size, *LORA, *options
  ) in (0, 130)
  return workdir


@pytest.fixture(scope="module")
def init_run(data, base, tmp_path_factory):
  return tune("rl_init", data, base, tmp_path_factory.mktemp("runs") / "rl_init")


@pytest.fixture(scope="module")
def reward_run(data, base, tmp_path_factory):
  return tune("reward", data, base, tmp_path_factory.mktemp("runs") / "reward")


@pytest.fixture(scope="module")
def ppo_run(data, init_run, reward_run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "ppo"
  assert ppo(data, folder, init_run, reward_run, *LORA, "--config.iterations=2") == 0
  return folder


def config(**fields):
  """The settings of PPO; `lora__rank` is config.lora.rank."""
  changes = {name.replace("__", "."): value for name, value in fields.items()}
  return settings.replaced(settings.load("ppo:tiny"), changes)


def model(folder):
  return origin.open_model(str(folder), config().model, 0)


def judge(folder, beside=None):
  return origin.open_reward_model(str(folder), config().model, beside)


def test_a_run_leaves_the_adapter_and_the_name_of_its_base(base, init_run):
  stored = leaves(init_run, "final")
  assert {name.split("/")[1] for name in stored} == {"adapter"}
  found, whole = model(init_run), model(base)
  tiny.assert_trees_equal(lora.without(found.params), whole.params)
  assert np.abs(stored["params/adapter/q/b"]).max() > 0.01
  assert found.about["base"] == {
    "source": str(base),
    "fingerprint": origin.fingerprint(whole.params),
  }
  assert found.about["adapter"]["up"] == {"rank": 2, "scale": 2.0}
  again = model(init_run / "adapter")  # as PEFT has it
  tiny.assert_trees_equal(again.params, found.params)
  assert again.about | {"template": None} == found.about  # PEFT has no words for a chat template
  assert peft.base(init_run / "adapter") == str(base)


def test_nothing_but_the_adapter_is_in_the_state(init_run):
  """Two moments for each number of the adapter, and nothing for the base."""
  stored = leaves(init_run, "rl_init")
  size = lambda part: sum(x.size for name, x in stored.items() if name.startswith(part) and x.ndim)
  assert size("opt_state") == 2 * size("params") == 2 * size("params/adapter") > 0


@pytest.mark.parametrize("stage", [pytest.param("rl_init", marks=pytest.mark.slow), "reward"])
def test_eight_devices_train_the_same_adapter(stage, data, base, init_run, reward_run, tmp_path):
  many = tune(stage, data, base, tmp_path / "many", *EIGHT)
  for one, other in zip(
    metrics({"rl_init": init_run, "reward": reward_run}[stage]), metrics(many), strict=True
  ):
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
  if stage == "rl_init":
    for one, other in zip(
      *(jax.tree.leaves(model(folder).params["adapter"]) for folder in (init_run, many))
    ):
      assert (
        np.abs(np.asarray(one) - np.asarray(other)).mean() < 1e-4
      )  # Adam makes much of a gradient of 0 and its rounding


@pytest.mark.slow
def test_ppo_on_eight_devices_and_on_one(data, init_run, reward_run, ppo_run, tmp_path):
  assert (
    ppo(data, tmp_path / "many", init_run, reward_run, *LORA, "--config.iterations=1", *EIGHT) == 0
  )
  one, many = metrics(ppo_run)[0], metrics(tmp_path / "many")[0]
  for name in (
    "objective/scores",
    "loss/total",
    "loss/ptx",
    "response/len_mean",
    "grad/norm_ppo",
    "grad/norm_value",
  ):
    assert many[name] == pytest.approx(one[name], rel=2e-3, abs=1e-4), name


def test_ppo_starts_from_the_adapter_of_rl_init_and_samples_what_it_scores(init_run, ppo_run):
  rows = metrics(ppo_run)
  assert abs(rows[0]["objective/kl"]) < 1e-6
  assert all(row["rollout/logp_error"] < 1e-4 for row in rows)
  found = model(ppo_run)
  assert found.about["base"] == model(init_run).about["base"]
  assert {name.split("/")[1] for name in leaves(ppo_run, "final")} == {"adapter"}
  assert (found.params["adapter"]["q"].b != model(init_run).params["adapter"]["q"].b).any()


@pytest.mark.slow
def test_ppo_goes_on_bit_for_bit(data, init_run, reward_run, ppo_run, tmp_path, monkeypatch):
  again = lambda: ppo(
    data, tmp_path / "parts", init_run, reward_run, *LORA, "--config.iterations=2"
  )
  with monkeypatch.context() as patch:
    stop_after(patch, 1)
    assert again() == 130
  assert again() == 0
  assert metrics(tmp_path / "parts") == metrics(ppo_run)
  whole, parts = leaves(ppo_run, "ppo"), leaves(tmp_path / "parts", "ppo")
  assert whole.keys() == parts.keys()
  for name in whole:
    np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


def ppo_start(policy, scorer, **fields):
  """(state, frozen, about) of a run of PPO on two models, before its first step."""
  changed = config(trunk_dtype="float32", lora__alpha=4.0, **fields)
  sampling = ppo_stage.sampling_of(changed, policy.tokenizer)
  experiment = ppo_stage.experiment_of(changed, policy.lm, scorer.lm, sampling)
  stage = ppo_stage.wire(
    changed,
    experiment,
    shares_trunk=trainable.shares_trunk(policy, scorer, changed),
    adapters_go_on=(trainable.goes_on(policy, changed), trainable.goes_on(scorer, changed)),
  )
  about = trainable.about_trained(policy, changed.rl_init, changed)
  state, frozen = running.start(stage, 0, policy.params, scorer.params, scorer.head)
  return state, frozen, about


def test_ppo_holds_one_trunk_for_four_models(init_run, reward_run):
  """Policy, reference, reward and value are adapters over the very arrays of one base, which is
  read once.
  """
  policy = model(init_run)
  scorer = judge(reward_run, policy)
  state, frozen, about = ppo_start(policy, scorer, rl_init=str(init_run), lora__rank=2)
  assert frozen.reward_trunk is None
  assert all(
    a is b
    for a, b in zip(jax.tree.leaves(lora.without(scorer.params)), jax.tree.leaves(frozen.trunk))
  )
  assert set(frozen.ref) == set(frozen.reward["lm"]) == set(state.params["policy"]) == {"adapter"}
  tiny.assert_trees_equal(state.params["policy"], frozen.ref)
  tiny.assert_trees_equal(state.params["value"], frozen.reward)
  bytes_of = lambda tree: sum(4 * x.size for x in jax.tree.leaves(tree))
  whole = bytes_of(lora.without(policy.params))
  assert bytes_of((frozen, state)) - whole < 10 * bytes_of(
    policy.params["adapter"]
  )  # 2 frozen, 2 + 1 trained, 4 moments
  assert about["base"] == policy.about["base"]


def test_the_reference_is_the_base_with_the_adapter_off(base, reward_run):
  """From a whole model, PPO starts a new adapter; an adapter of other sizes is merged below it."""
  policy, scorer = model(base), judge(reward_run)
  adapter = {"lora__rank": 3, "lora__targets": "q,v"}
  state, frozen, about = ppo_start(policy, scorer, rl_init=str(base), **adapter)
  assert frozen.ref == {}
  tokens = jnp.arange(8)[None]
  run = lambda params: policy.lm.hidden(params, tokens, jnp.ones_like(tokens, bool))
  np.testing.assert_array_equal(run(frozen.trunk | frozen.ref), run(policy.params))
  np.testing.assert_array_equal(run(frozen.trunk | state.params["policy"]), run(policy.params))
  assert set(state.params["policy"]["adapter"]) == {"q", "v"}
  assert about["base"] == {"source": str(base), "fingerprint": origin.fingerprint(policy.params)}
  merged = lora.merge(scorer.params)
  tiny.assert_trees_equal(frozen.reward_trunk, merged)
  assert set(frozen.reward["lm"]) == set()


def test_without_lora_the_merged_model_is_trained(init_run):
  adapted = model(init_run)
  key = jax.random.key(0)
  parts = trainable.split(adapted.lm, adapted.params, key, config())
  assert parts.trunk == {}
  assert parts.start is parts.trained
  tiny.assert_trees_equal(parts.trained, lora.merge(adapted.params))
  about = trainable.about_trained(adapted, str(init_run), config())
  assert "adapter" not in about
  assert "base" not in about
  top = trainable.split(adapted.lm, adapted.params, key, config(top=1))
  assert set(top.trunk) == {"embed", "lower"}


def test_impossible_settings_say_what_is_possible(data, base, tmp_path, capsys):
  def refused(*options):
    names = files(data, "demonstrations", "text")
    assert run("rl_init", tmp_path / "run", *names, *TUNE, *LORA, *options) == 2
    return capsys.readouterr().err

  assert "config.top=1: config.lora.rank=2 trains an adapter; choose one" in refused(
    f"--model={base}", "--config.top=1"
  )
  assert "names gate: this model has q, k, v, o, up, down" in refused(
    f"--model={base}", "--config.lora.targets=q,gate"
  )
  assert "the weights are random; give a model to adapt" in refused()
  assert not (tmp_path / "run").exists()


def test_another_base_is_told_apart(base, init_run, tmp_path):
  import shutil

  shutil.copytree(init_run, tmp_path / "run")
  found = model(init_run)
  about = found.about | {"base": found.about["base"] | {"fingerprint": "0" * 64}}
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "final")
  origin.finish(tmp_path / "run", 3, {"adapter": found.params["adapter"]}, about, "policy")
  with pytest.raises(
    UserError, match=r"holds an adapter of .*, which has other weights now \(.{8}, then 00000000\)"
  ):
    model(tmp_path / "run")
  about = found.about | {"base": found.about["base"] | {"source": str(tmp_path / "gone")}}
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "final")
  origin.finish(tmp_path / "run", 3, {"adapter": found.params["adapter"]}, about, "policy")
  with pytest.raises(UserError, match="its base cannot be opened"):
    model(tmp_path / "run")


def test_samples_are_drawn_from_a_run_with_an_adapter(data, init_run, tmp_path):
  small = [
    "--config.data.prompt=12",
    "--config.sampling.response=4",
    "--config.batch=2",
    "--config.prompts=2",
  ]
  assert (
    run("sample", tmp_path / "sample", *files(data, "prompts"), f"--model={init_run}", *small) == 0
  )
  assert (
    len(
      [
        json.loads(line)
        for line in (tmp_path / "sample" / "samples.jsonl").read_text().splitlines()
      ]
    )
    == 2
  )
