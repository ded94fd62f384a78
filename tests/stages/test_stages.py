"""Every stage through the command line on tiny files, chained, and resumed bit for bit."""

import json
import os
import shutil
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stage_runs import TUNE, files, leaves, metrics, ppo, pretrain, run, stop_after

from instructjax.errors import UserError
from instructjax.plan import chips, meter, useful
from instructjax.runs import origin, writers
from instructjax.settings.subjects import LoadedModelSettings, MeshSettings
from instructjax.stages import ppo as ppo_stage
from instructjax.stages import reward as reward_stage
from instructjax.stages import running

PLAIN = LoadedModelSettings(dtype="float32", remat="none")
LETTERS = ["say good bad fine poor great 0 1 2 3 4 5 6 7 8 9"] * 20  # for a tokenizer


def test_pretrain_writes_a_run_directory(base):
  assert json.loads((base / "config.json").read_text())["data"]["length"] == 24
  manifest = json.loads((base / "manifest.json").read_text())
  assert manifest["seed"] == 0
  assert manifest["versions"]["jax"] == jax.__version__
  rows = metrics(base)
  assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
  assert rows[-1]["stage"] == "pretrain"
  assert 4 < rows[-1]["eval/nll"] < 6


def test_only_the_top_block_changes_under_top_1(base, init_run):
  before, after = (stages_model(folder) for folder in (base, init_run))
  w = lambda params, layer: params["blocks"]["up"]["w"][layer]
  np.testing.assert_array_equal(w(before, 0), w(after, 0))
  np.testing.assert_array_equal(before["embed"]["tokens"], after["embed"]["tokens"])
  assert (w(before, 1) != w(after, 1)).any()


def machine_rows(workdir):
  """The lines of steps in metrics.jsonl, with what the machine did."""
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [row for row in rows if "memory/peak" in row]


@pytest.mark.parametrize(
  "name", ["base", "sft_run", "init_run", "ranked_run", "ppo_run", "dpo_run"]
)
def test_every_stage_says_what_the_machine_did(name, request):
  """The last step and the first have no seconds: the one compiles, the other ends the run."""
  rows = machine_rows(request.getfixturevalue(name))
  timed = [row for row in rows if "time/seconds" in row]
  assert len(rows) > 2
  assert [row["step"] for row in timed] == [row["step"] for row in rows[1:-1]]
  for row in timed:
    tokens = row.get("tokens/real", row.get("tokens"))
    assert row["tokens/s"] == pytest.approx(tokens / row["time/seconds"])
    assert 0 < row["time/goodput"] <= 1
    assert "mfu" not in row  # nobody knows the peak of a CPU
    if row["stage"] == "ppo":
      parts = [row[f"time/{part}"] for part in ("rollout", "scoring", "update")]
      assert min(parts) > 0
      assert sum(parts) == pytest.approx(row["time/seconds"], rel=0.5)


def test_mfu_is_logged_where_the_peak_is_known(data, base, tmp_path, monkeypatch):
  """As on a chip of 1 GFLOP/s: what is padding is no work."""
  kind = jax.devices()[0].device_kind
  monkeypatch.setitem(meter.KINDS, kind, "v5e")
  monkeypatch.setitem(chips.CHIPS, "v5e", chips.CHIPS["v5e"]._replace(flops=1e9))
  assert pretrain(data, tmp_path / "run", "--config.steps=4") == 0
  for row in machine_rows(tmp_path / "run")[1:-1]:
    assert 0.001 < row["mfu"] < 1000
  # A parameter of a matrix product costs 6 FLOPs a token.
  lm = origin.open_model(str(base), PLAIN, 0).lm
  matrices = useful.model_of(lm)
  least = 3 * (matrices.layers + matrices.unembedding) * 4 * 24 / 1e9
  for row in machine_rows(tmp_path / "run")[1:-1]:
    assert least < row["mfu"] * row["time/seconds"] < 1.3 * least


def stages_model(workdir):
  """The parameters that a finished run leaves."""
  return origin.open_model(str(workdir), PLAIN, 0).params


def test_text_rows_are_a_share_of_the_batch(init_run):
  """A batch of 4 with 10 % text holds three demonstrations, so that 12 of them make 4 steps."""
  assert [row["step"] for row in metrics(init_run) if "loss" in row] == [1, 2, 3, 4]


def test_rl_init_has_the_loss_of_text_with_its_share(init_run):
  """A tenth of the loss is that of the text, in training and on held-out data (App. C.3)."""
  for row in metrics(init_run):
    if "loss" in row:
      mixed = 0.9 * row["loss/demonstrations"] + 0.1 * row["loss/text"]
      assert row["loss"] == pytest.approx(mixed, rel=1e-5)
  last = metrics(init_run)[-1]
  mixed = 0.9 * last["eval/nll"] + 0.1 * last["eval/nll_text"]
  assert last["eval/nll_mixed"] == pytest.approx(mixed)


def test_reward_model_scores_demonstrations_0_on_average(data, reward_run):
  judge = origin.open_reward_model(str(reward_run), PLAIN)
  from instructjax.data.batches import pipeline
  from instructjax.data.records import records

  found = records.read(data / "demonstrations.jsonl", "demonstration")
  rows = pipeline.demonstrations(found, judge.tokenizer, prompt=12, response=12)
  params = {"lm": judge.params, "head": judge.head}
  assert abs(reward_stage.demonstration_scores(judge.lm, params, rows, 1).mean()) < 1e-5
  assert float(judge.head["b"]) != 0
  assert 0 <= metrics(reward_run)[-1]["eval/accuracy"] <= 1


@pytest.fixture(scope="module")
def ranked_run(data, tmp_path_factory, sft_run):
  """A reward model, over more steps than that of the other tests."""
  folder = tmp_path_factory.mktemp("runs") / "reward"
  options = [*files(data, "comparisons", "demonstrations"), f"--model={sft_run}", *TUNE]
  assert run("reward", folder, *options, "--config.data.valid=", "--config.epochs=2") == 0
  return folder


@pytest.fixture(scope="module")
def dpo_run(data, tmp_path_factory, sft_run):
  folder = tmp_path_factory.mktemp("runs") / "dpo"
  options = [*files(data, "comparisons"), f"--model={sft_run}", *TUNE, "--config.data.valid="]
  assert run("dpo", folder, *options, "--config.epochs=2") == 0
  return folder


@pytest.fixture(scope="module")
def ppo_run(data, tmp_path_factory, init_run, reward_run):
  folder = tmp_path_factory.mktemp("runs") / "ppo"
  assert ppo(data, folder, init_run, reward_run) == 0
  return folder


def test_every_stage_says_its_learning_rate(init_run, reward_run, ppo_run):
  for folder in (init_run, reward_run):
    rates = [row["lr"] for row in metrics(folder) if "loss" in row]
    # A cosine from the peak to a tenth of it (App. C).
    assert rates[-1] == pytest.approx(0.1 * rates[0], rel=1e-4)
    assert rates == sorted(rates, reverse=True)
  first = metrics(ppo_run)[0]
  # The policy warms up from a tenth of its peak, the value network begins at its own (App. C.4).
  assert first["lr"] == pytest.approx(0.1 * 3e-4)
  assert first["lr_value"] == pytest.approx(1e-3)


def test_ppo_runs_on_both_and_leaves_the_average(ppo_run):
  rows = metrics(ppo_run)
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert abs(rows[0]["objective/kl"]) < 1e-4
  assert rows[0]["policy/ratio_first"] == pytest.approx(1, abs=1e-4)
  assert rows[0]["objective/kl_coef"] == pytest.approx(0.02)
  stored = leaves(ppo_run, "ppo")
  final = stages_model(ppo_run)
  np.testing.assert_array_equal(final["blocks"]["up"]["w"], stored["ema/policy/blocks/up/w"])
  assert (final["blocks"]["up"]["w"] != stored["params/policy/blocks/up/w"]).any()


def test_bestofn_and_sample_read_finished_runs(data, sft_run, reward_run, tmp_path, capsys):
  small = [
    "--config.data.prompt=12",
    "--config.sampling.response=6",
    "--config.batch=2",
    "--config.prompts=3",
  ]
  options = [*files(data, "prompts"), f"--model={sft_run}", *small]
  judged = [f"--config.rewards={reward_run}", "--config.n=4"]
  assert run("bestofn", tmp_path / "bestofn", *options, *judged) == 0
  points = metrics(tmp_path / "bestofn")
  assert [row["step"] for row in points] == [1, 2, 4]
  assert points[0]["kl"] == 0
  assert points[0]["score"] <= points[1]["score"] <= points[2]["score"]
  samples = [
    json.loads(line) for line in (tmp_path / "bestofn" / "samples.jsonl").read_text().splitlines()
  ]
  assert [row["prompt"] for row in samples] == ["say 0", "say 1", "say 2"]
  assert all(row["scores"]["best"] >= row["scores"]["first"] for row in samples)
  assert run("sample", tmp_path / "sample", *options, "--config.n=2") == 0
  rows = [
    json.loads(line) for line in (tmp_path / "sample" / "samples.jsonl").read_text().splitlines()
  ]
  assert [len(row["responses"]) for row in rows] == [2, 2, 2]
  assert "> say 2" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["pretrain", "ppo"])
def test_a_stopped_run_goes_on_bit_for_bit(
  stage, data, base, ppo_run, init_run, reward_run, tmp_path, monkeypatch, capsys
):
  finished, again = {
    "pretrain": (base, lambda folder: pretrain(data, folder)),
    "ppo": (ppo_run, lambda folder: ppo(data, folder, init_run, reward_run)),
  }[stage]
  with monkeypatch.context() as patch:
    stop_after(patch, 2)
    assert again(tmp_path / "parts") == 130
  assert "stopped at step 2 of" in capsys.readouterr().err
  assert not (tmp_path / "parts" / "checkpoints" / "final").exists()
  assert again(tmp_path / "parts") == 0
  assert metrics(tmp_path / "parts") == metrics(finished)
  whole, parts = leaves(finished, stage), leaves(tmp_path / "parts", stage)
  assert whole.keys() == parts.keys()
  for name in whole:
    np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 1)])
def test_several_processes_need_a_mesh_over_all_of_their_devices(monkeypatch, mesh):
  """Without one each would work for itself, and with a part of one a process without devices would
  be waited for.
  """
  monkeypatch.setattr(running.jax, "process_count", lambda: 2)
  settings = MeshSettings(*mesh)
  message = f"take {np.prod(mesh)} of the 8 devices of 2 processes: .* whose product is 8"
  with pytest.raises(UserError, match=message), running.devices(settings):
    pass


def test_a_finished_run_is_not_run_again(data, base):
  before = (base / "metrics.jsonl").read_text()
  assert pretrain(data, base) == 0
  assert (base / "metrics.jsonl").read_text() == before


@pytest.fixture
def opened(monkeypatch):
  """The sources of the models that stages open."""
  sources = []
  whole = origin.open_model

  def noting(source, settings, seed):
    sources.append(source)
    return whole(source, settings, seed)

  monkeypatch.setattr(origin, "open_model", noting)
  return sources


def test_a_finished_run_ends_at_once_where_it_is_asked_to(data, base, opened, tmp_path, capsys):
  again = partial(pretrain, data, tmp_path / "run", "--unless-finished")
  assert again() == 0
  finished = json.loads((tmp_path / "run" / "manifest.json").read_text())["finished"]
  assert (finished["stage"], finished["step"]) == ("pretrain", 6)
  opened.clear()
  capsys.readouterr()
  assert again() == 0
  assert capsys.readouterr().out == f"{tmp_path / 'run'}: is finished already, at step 6\n"
  assert not opened
  # With other settings it is another run.
  assert again("--config.optimizer.lr=1e-5") == 2
  assert "holds a run with config.optimizer.lr=" in capsys.readouterr().err


def test_a_folder_of_a_model_that_is_not_there_is_no_finished_run(data, opened, tmp_path, capsys):
  """The folder is made before the writing; and without its model a run is finished no more."""
  final = tmp_path / "run" / "checkpoints" / "final"
  final.mkdir(parents=True)
  again = partial(pretrain, data, tmp_path / "run", "--unless-finished")
  assert again() == 0
  shutil.rmtree(final / "6")
  opened.clear()
  assert again() == 0
  assert "is finished already" not in capsys.readouterr().out
  assert opened
  assert (final / "6").is_dir()


def test_a_run_whose_model_is_not_yet_said_to_be_there_is_not_finished(data, tmp_path, monkeypatch):
  """The manifest says it last: where it cannot be written, the stage is done again."""
  again = partial(pretrain, data, tmp_path / "run", "--unless-finished")

  def fail(workdir, stage, step):
    raise UserError("no room")

  with monkeypatch.context() as patch:
    patch.setattr(writers, "mark_finished", fail)
    assert again() == 2
  assert "finished" not in json.loads((tmp_path / "run" / "manifest.json").read_text())
  assert again() == 0
  assert "finished" in json.loads((tmp_path / "run" / "manifest.json").read_text())


@pytest.mark.parametrize("part", ["rollout", "scoring"])
def test_ppo_that_gets_sigterm_within_an_iteration_goes_on_bit_for_bit(
  data, init_run, reward_run, ppo_run, tmp_path, monkeypatch, capsys, part
):
  """In the third iteration, whose updates are not begun: the state of the second is saved."""
  compile_parts = ppo_stage.iteration_in_parts

  def iteration_in_parts(*args):
    iteration = compile_parts(*args)
    programs = iteration.programs

    def preempted(program):
      def run(state, frozen, values):
        if int(state.iteration) == 2:
          os.kill(os.getpid(), signal.SIGTERM)
        return program(state, frozen, values)

      return run

    number = ("rollout", "scoring").index(part)
    early = list(programs.early)
    early[number] = preempted(early[number])
    programs = programs._replace(early=tuple(early), last=checked(programs.last))
    return iteration._replace(programs=programs)

  def checked(last):
    def run(state, frozen, values):
      assert int(state.iteration) < 2
      return last(state, frozen, values)

    return run

  folder = tmp_path / "ppo"
  with monkeypatch.context() as patch:
    patch.setattr(ppo_stage, "iteration_in_parts", iteration_in_parts)
    assert ppo(data, folder, init_run, reward_run) == 128 + signal.SIGTERM
  assert "ppo: stopped at step 2 of 4" in capsys.readouterr().err
  assert [row["step"] for row in metrics(folder)] == [1, 2]
  assert ppo(data, folder, init_run, reward_run) == 0
  assert metrics(folder) == metrics(ppo_run)
  for kind in ("ppo", "final"):
    whole, parts = leaves(ppo_run, kind), leaves(folder, kind)
    assert whole.keys() == parts.keys()
    for name in whole:
      np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


def test_a_mesh_gives_the_same_numbers(data, base, tmp_path):
  assert pretrain(data, tmp_path / "mesh", "--config.mesh.data=2", "--config.mesh.fsdp=2") == 0
  for one, many in zip(metrics(base), metrics(tmp_path / "mesh"), strict=True):
    name = "loss" if "loss" in one else "eval/nll"
    assert many[name] == pytest.approx(one[name], rel=1e-4)


def test_a_run_goes_on_on_another_mesh(data, base, tmp_path, monkeypatch, capsys):
  with monkeypatch.context() as patch:
    stop_after(patch, 3)
    assert pretrain(data, tmp_path / "run", "--config.mesh.data=2", "--config.mesh.model=4") == 130
  assert pretrain(data, tmp_path / "run", "--config.keep=2") == 0
  for one, many in zip(metrics(base), metrics(tmp_path / "run"), strict=True):
    name = "loss" if "loss" in one else "eval/nll"
    assert many[name] == pytest.approx(one[name], rel=1e-4)


def test_a_model_folder_is_a_source_too(data, base, tmp_path):
  """Weights saved for other programs come back as the model of a stage."""
  from instructjax import models
  from instructjax.data.tokens import sentencepieces

  sentencepieces.train(LETTERS, tmp_path / "t.model", sentencepieces.Training(vocab_size=300))
  config = origin.SHAPES["tiny"]
  from dataclasses import replace

  lm = models.build(replace(config, vocab_size=304))
  models.save(tmp_path / "folder", replace(config, vocab_size=304), lm.init(jax.random.key(0)))
  options = [
    *files(data, "demonstrations"),
    f"--model={tmp_path / 'folder'}",
    *TUNE,
    "--config.steps=1",
  ]
  assert (
    run("sft", tmp_path / "sft", *options, f"--config.model.tokenizer={tmp_path / 't.model'}") == 0
  )
  found = origin.open_run(tmp_path / "sft", {}, "policy")
  assert found.lm.vocab_size == 304
  assert found.tokenizer.banned[-4:] == tuple(range(300, 304))
  assert jnp.isfinite(found.params["embed"]["tokens"]).all()


def test_a_classifier_folder_is_a_reward_model_too(tmp_path):
  from dataclasses import replace

  from instructjax import models
  from instructjax.data.tokens import sentencepieces

  config = replace(origin.SHAPES["tiny"], vocab_size=304)
  lm, folder = models.build(config), tmp_path / "folder"
  head = {"w": jnp.arange(32.0), "b": jnp.float32(0)}
  params = lm.init(jax.random.key(0))
  models.save_reward(folder, config, params, head, pad_token_id=0)
  sentencepieces.train(LETTERS, folder / "tokenizer.model", sentencepieces.Training(vocab_size=300))
  settings = LoadedModelSettings(dtype="bfloat16", remat="blocks", unroll=2, attention="xla")
  found = origin.open_reward_model(str(folder), settings)
  np.testing.assert_array_equal(found.head["w"], head["w"])
  np.testing.assert_array_equal(found.params["blocks"]["q"]["w"], params["blocks"]["q"]["w"])
  assert found.about["config"]["dtype"] == "bfloat16"


def test_a_held_out_loss_over_no_tokens_is_unknown():
  """It was 0, the best loss there is, which would choose that checkpoint."""
  import optax
  import tiny

  from instructjax import steps
  from instructjax.data.batches import pipeline
  from instructjax.stages import pretrain_sft

  lm = tiny.lm("gpt")
  row = pipeline.Row(np.arange(1, 6, dtype=np.int32), 5)  # a prompt alone: nothing is marked
  evaluate = pretrain_sft.held_out_nll(lm, {}, [row], 8, 1)
  state = steps.init_state(jax.random.key(1), lm.init(jax.random.key(0)), optax.sgd(1.0))
  assert evaluate(state) == {"eval/nll": None}
  both = lambda state: {"eval/nll": None, "eval/nll_text": 2.0}
  assert pretrain_sft.with_mixed_nll(both, 0.1)(state)["eval/nll_mixed"] is None
