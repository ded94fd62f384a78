"""Stages on mixtures, packed rows, text read lazily and prompts in buckets."""

import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from stage_runs import TUNE, leaves, metrics, ppo, pretrain, run, stop_after

from instructjax import settings, sharding
from instructjax.data.batches import corpora, pipeline
from instructjax.data.records.records import Demonstration, Prompt, Text
from instructjax.data.tokens import tokenizers
from instructjax.errors import UserError
from instructjax.plan import bench
from instructjax.stages import ppo as ppo_stage
from instructjax.stages import pretrain_sft


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("INSTRUCTJAX_CACHE", str(tmp_path / "cache"))


def test_text_that_is_read_lazily_changes_no_bit(data, tmp_path):
  assert pretrain(data, tmp_path / "memory", "--config.steps=3") == 0
  assert pretrain(data, tmp_path / "lazy", "--config.steps=3", "--config.data.lazy=true") == 0
  assert metrics(tmp_path / "lazy") == metrics(tmp_path / "memory")
  one, other = (leaves(tmp_path / name, "pretrain") for name in ("memory", "lazy"))
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_packed_mixture_goes_on_bit_for_bit(data, tmp_path, monkeypatch, capsys):
  """rl_init on two sources of demonstrations and two of text, all packed, stopped after its second
  step.
  """
  demos, text = data / "demonstrations.jsonl", data / "text.jsonl"
  (tmp_path / "more.jsonl").write_text(
    "".join(json.dumps({"prompt": f"do {i}", "completion": "ok"}) + "\n" for i in range(30))
  )
  (tmp_path / "text.jsonl").write_text('{"text": "a b c"}\n' * 9)
  options = [
    f"--config.data.demonstrations=3*{demos} + {tmp_path / 'more.jsonl'}",
    f"--config.data.text={text} + 0.5*{tmp_path / 'text.jsonl'}",
    *TUNE,
    "--config.data.pack_text=true",
    "--config.data.lazy=true",
    "--config.data.prompt=20",
    "--config.data.response=30",
    "--config.text_share=0.5",
    "--config.steps=4",
    "--config.model.dropout=0.1",
  ]
  assert run("rl_init", tmp_path / "whole", *options) == 0
  said = capsys.readouterr().err
  assert f"{text}: 32 pieces of text in " in said and "rows of 50 tokens" in said
  assert "4 rows a batch, 2 of them demonstrations, which are packed: " in said
  with monkeypatch.context() as patch:
    stop_after(patch, 2)
    assert run("rl_init", tmp_path / "parts", *options) == 130
  assert run("rl_init", tmp_path / "parts", *options) == 0
  assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
  one, other = (leaves(tmp_path / name, "rl_init") for name in ("whole", "parts"))
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)
  seconds = json.loads((tmp_path / "whole" / "manifest.json").read_text())["seconds"]["rl_init"]
  assert 0 <= seconds["data"] < seconds["training"]


def test_packing_changes_no_demonstration_of_a_batch_and_no_metric(data, tmp_path, capsys):
  """rl_init with text, packed as it is by default and not, measured on held-out data of both."""
  options = [
    *TUNE,
    f"--config.data.demonstrations={data / 'demonstrations.jsonl'}",
    f"--config.data.valid={data / 'demonstrations.jsonl'}",
    f"--config.data.text={data / 'text.jsonl'}",
    "--config.data.prompt=30",
    "--config.batch=8",
    "--config.text_rows=1",
    "--config.rows_at_once=1",
    "--config.model.dropout=0",
    "--config.evaluate_every=1",
  ]
  assert run("rl_init", tmp_path / "packed", *options) == 0
  said = capsys.readouterr().err
  assert "8 rows a batch, 7 of them demonstrations, which are packed: " in said
  assert "(without config.data.pack, 36 %)" in said
  assert run("rl_init", tmp_path / "apart", "--config.data.pack=false", *options) == 0
  packed, apart = metrics(tmp_path / "packed"), metrics(tmp_path / "apart")
  assert len(packed) == len(apart)
  for one, other in zip(packed, apart):
    assert list(one) == list(other)
    for name in set(one) - {"stage", "update/useful"}:
      assert one[name] == pytest.approx(other[name], rel=2e-5), name
    if "update/useful" in one:
      assert one["update/useful"] > 1.5 * other["update/useful"]


@pytest.mark.parametrize(
  ("shape", "changes", "expected"),
  [
    ((1, 1, 1), {}, (4, 6)),  # four rows of 50 hold some 200 tokens, and divide 24
    ((1, 1, 1), {"micro": 6}, (4, 6)),
    ((2, 2, 2), {"micro": 2}, (12, 2)),
    ((2, 2, 2), {"rows_at_once": 2}, (8, 3)),
  ],
)
def test_a_planned_batch_has_the_shapes_of_a_packed_one(shape, changes, expected):
  """A row for each of its demonstrations, in parts of no more rows than config.micro allows."""
  lengths = {"batch": 24, "data.prompt": 20, "data.response": 30}
  config = settings.replaced(settings.load("rl_init:tiny"), lengths | changes)
  row = pipeline.Row(np.arange(9, dtype=np.int32), 4)
  prepared = pretrain_sft.Prepared([row] * 50, [row] * 9, [], [], 40, {}, {})
  with jax.set_mesh(sharding.make_mesh(*shape)):
    planned = pretrain_sft.wire(config, tiny.lm("gpt"), 1).batch["rows"]
    packed = pretrain_sft.packed_rows(config)
    batch = pretrain_sft.batches_of(config, prepared, tiny.lm("gpt"), {})(0)["rows"]
  assert packed == expected
  assert jax.tree.map(jnp.shape, batch) == jax.tree.map(jnp.shape, planned)
  assert jax.tree.map(lambda x: x.dtype, batch) == jax.tree.map(lambda x: x.dtype, planned)
  assert (batch.valid > 0).sum() == 24 * 9


def sixteen(tmp_path, *names, lengths=2):
  """The prompts of PPO from files of eight short and eight long ones, in batches of 8."""
  rows = [{"prompt": "a" * (4 + 8 * (i % 2)) + str(i // 2)} for i in range(16)]
  for name in names:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  prompts = " + ".join(str(tmp_path / name) for name in names)
  changes = {"batch": 8, "data.prompt": 16, "data.buckets": lengths, "data.prompts": prompts}
  config = settings.replaced(settings.load("ppo:tiny"), changes)
  sources = corpora.read(config.data, "prompts", "prompt")
  texts, batches = ppo_stage.draw_prompts(config, sources, tokenizers.of_bytes(), None, {})
  return rows, texts, [batches(i) for i in range(4)]


def test_prompts_of_ppo_come_in_lengths(tmp_path):
  rows, found, batches = sixteen(tmp_path, "a.jsonl")
  assert sorted(batch.tokens.shape for batch in batches) == [(8, 8), (8, 8), (8, 16), (8, 16)]
  texts = [
    found[ids[valid].tobytes()].prompt
    for batch in batches
    for ids, valid in zip(batch.tokens, batch.valid)
  ]
  assert sorted(texts) == sorted(2 * [row["prompt"] for row in rows])
  _, _, batches = sixteen(tmp_path, "a.jsonl", lengths=1)
  assert {batch.tokens.shape for batch in batches} == {(8, 16)}


def test_long_prompts_of_ppo_are_left_out_with_their_records_if_the_settings_say_so(
  tmp_path, capsys
):
  path = tmp_path / "p.jsonl"
  path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("abcdef", "ab", "c")))
  changes = {"batch": 4, "data.prompt": 4, "data.prompts": str(path)}
  config = settings.replaced(settings.load("ppo:tiny"), changes)
  sources = corpora.read(config.data, "prompts", "prompt")
  with pytest.raises(UserError, match=r"p.jsonl:1: prompt: 6 tokens, the limit is 4"):
    ppo_stage.draw_prompts(config, sources, tokenizers.of_bytes(), None, {})
  config = settings.replaced(config, {"data.long": "drop"})
  counts = {}
  texts, batches = ppo_stage.draw_prompts(config, sources, tokenizers.of_bytes(), None, counts)
  assert texts == {ids([97, 98]): Prompt("ab"), ids([99]): Prompt("c")}
  assert batches(0).tokens.shape == (4, 4)
  assert corpora.facts(counts)[str(path)]["left_out"] == 1
  assert f"{path}: 3 prompts, 1 too long and left out\n" in capsys.readouterr().err
  with pytest.raises(UserError, match=r"all 3 prompts are longer than config\.data\.prompt"):
    config = settings.replaced(config, {"data.prompt": 1})
    path.write_text(3 * '{"prompt": "abc"}\n')
    sources = corpora.read(config.data, "prompts", "prompt")
    ppo_stage.draw_prompts(config, sources, tokenizers.of_bytes(), None, {})


def ids(numbers):
  return np.asarray(numbers, np.int32).tobytes()


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_stages_count_and_say_what_they_cut(kind, capsys):
  """SFT leaves a cut completion without an end, and a reward model reads its score at one."""
  data = settings.replaced(
    settings.load(f"{kind}:tiny"), {"data.prompt": 4, "data.response": 4, "data.separator": ""}
  ).data
  records = [Demonstration("a", "bcde"), Demonstration("a", "b")]
  counts = {}
  rows = corpora.demonstrations(
    data, records, tokenizers.of_bytes(), None, "d.jsonl", counts, end_cut=kind == "reward"
  )
  assert (rows[0].ids[-1] == 256) == (kind == "reward")
  line = "d.jsonl: 2 completions, 1 cut" + (" (no end of text)" if kind == "sft" else "")
  assert capsys.readouterr().err.startswith(f"{line}; 0 pairs equal, 0 empty; 2 prompts, 0 too")
  assert counts["d.jsonl"].cut == 1
  assert corpora.demonstrations(data, [], tokenizers.of_bytes(), None, "", counts) == []


@pytest.mark.parametrize(("epochs", "rows", "size"), [(1, 10, 4), (3, 7, 5), (2, 8, 4), (1, 3, 8)])
def test_an_epoch_holds_every_row_and_the_last_batch_goes_on_in_the_next(
  epochs, rows, size, capsys
):
  batches = corpora.batches_in(epochs, rows, size, "config.epochs")
  assert (batches - 1) * size < epochs * rows <= batches * size
  stream = pipeline.stream(list(range(rows)), np.asarray, size=size, seed=1)
  order = np.concatenate([stream(number) for number in range(batches)])
  assert np.bincount(order, minlength=rows).min() >= epochs
  again = batches * size - epochs * rows
  said = capsys.readouterr().err
  assert (f"the last one takes {again} of the next pass" in said) == (again > 0)


def test_no_rows_make_no_epoch():
  with pytest.raises(UserError, match=r"config\.epochs=2: there are no rows"):
    corpora.batches_in(2, 0, 4, "config.epochs")


@pytest.mark.parametrize(("rows", "steps"), [(5, 3), (6, 3), (7, 4)])
def test_steps_are_counted_so_that_every_row_is_used(rows, steps):
  config = settings.replaced(
    settings.load("sft:tiny"), {"batch": 4, "epochs": 2, "data.demonstrations": "x"}
  )
  prepared = pretrain_sft.Prepared(list(range(rows)), [], [], [], None, {}, {})
  assert pretrain_sft.count_steps(config, prepared) == steps


def test_which_token_ends_a_document_is_said(capsys):
  config = settings.load("pretrain:tiny")
  chatty = tokenizers.of_bytes()._replace(
    eos=(1,), specials={"<|im_end|>": 1, "<|endoftext|>": 256}
  )
  parts = [corpora.Part(1.0, "t.jsonl", [Text("a" * 200)])]
  corpora.texts(config.data, parts, chatty, 64)
  assert "documents of text end with 256 '<|endoftext|>', responses with 1 '<|im_end|>'" in (
    capsys.readouterr().err
  )
  corpora.texts(config.data, parts, tokenizers.of_bytes(), 64)
  assert not capsys.readouterr().err


def test_a_mixture_of_prompts_has_no_lengths(tmp_path):
  _, found, batches = sixteen(tmp_path, "a.jsonl", "b.jsonl", lengths=1)
  assert len(found) == 16 and {batch.tokens.shape for batch in batches} == {(8, 16)}
  with pytest.raises(
    UserError,
    match=r"config\.data\.buckets=2: the batches of a mixture hold prompts of all lengths",
  ):
    sixteen(tmp_path, "a.jsonl", "b.jsonl")


@pytest.mark.release  # needs all the stages before it
def test_ppo_runs_on_prompts_of_two_lengths(data, init_run, reward_run, tmp_path):
  sixteen(tmp_path, "prompts.jsonl")
  prompts = [
    f"--config.data.prompts={tmp_path / 'prompts.jsonl'}",
    "--config.data.prompt=16",
    "--config.data.buckets=2",
  ]
  assert ppo(data, tmp_path / "ppo", init_run, reward_run, *prompts, "--config.iterations=2") == 0
  assert [row["step"] for row in metrics(tmp_path / "ppo")] == [1, 2]


def test_weights_say_nothing_where_every_record_is_used(data, tmp_path, capsys):
  mixed = f"--config.data.prompts={data / 'prompts.jsonl'} + 0.5*{data / 'prompts.jsonl'}"
  assert run("sample", tmp_path / "sample", "--model=none", mixed) == 2
  assert "every record is used here, so weights say nothing" in capsys.readouterr().err


def test_bench_draws_new_batches_of_text(data):
  options = bench.Bench("sft", batch=4, length=32, repeats=3, text=str(data / "text.jsonl"))
  work = bench.start_sft(options, tiny.lm(vocab_size=300))
  first, second = work.batches(0)["rows"], work.batches(1)["rows"]
  assert first.tokens.shape == second.tokens.shape == (4, 32)
  assert (first.tokens != second.tokens).any()
  with pytest.raises(UserError, match=r"--text=a\.jsonl feeds sft only, not ppo"):
    bench.measure(bench.Bench("ppo", text="a.jsonl"))


TOGETHER = """
import sys, hashlib, numpy as np, jax
place, index = sys.argv[1:]
if place:
  jax.distributed.initialize(place, 2, int(index))
from functools import partial
from jax.experimental import multihost_utils
from instructjax.data.batches import corpora; from instructjax import sharding
from instructjax.data.batches import packing; from instructjax.data.batches import pipeline
rng = np.random.default_rng(0)
rows = [pipeline.Row(rng.integers(1, 99, n).astype(np.int32), 1) for n in rng.integers(2, 20, 99)]
made = []
class Seen:
  def __len__(self): return len(rows)
  def __getitem__(self, i):
    made.append(i)
    return rows[i]
shapes = [(8, 1, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8), (1, 4, 2)]
orders = [range(8)] * 4 + [(0, 1, 2, 4, 3, 5, 6, 7)]  # pairs, of which two have a device of each
for shape, order in zip(shapes, orders):
  devices = [jax.devices()[i] for i in order]
  with jax.set_mesh(sharding.make_mesh(*shape, devices=devices)):
    made.clear()
    mine = sharding.local_rows(16)
    pad = partial(pipeline.pad_demonstrations, length=24)
    batches = pipeline.stream(Seen(), pad, size=16, seed=1, mine=mine)
    found = corpora.place_batches(batches)(3)
    count = len(made)
    whole = sharding.fetch(found)
    content = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(whole))
    digest = hashlib.sha256(content).hexdigest()
    print(shape, count, found.tokens.shape, digest[:16])
"""


@pytest.mark.slow
def test_two_processes_make_half_of_the_rows_each_and_one_batch():
  """On every mesh the global batch is that of one process; where the rows lie on one process, it
  alone makes them. The last mesh has two rows of devices that the processes share.
  """

  def start(place, index, devices):
    env = os.environ | {
      "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-c", TOGETHER, place, str(index)]
    return subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )

  with socket.socket() as found:
    found.bind(("localhost", 0))
    place = f"localhost:{found.getsockname()[1]}"
  running = [start(place, 0, 4), start(place, 1, 4), start("", 0, 8)]
  ends = [process.communicate(timeout=300) for process in running]
  assert [process.returncode for process in running] == [0, 0, 0], ends
  lines = [
    [line.rsplit(" (16, 24) ") for line in out.splitlines() if "(16, 24)" in line]
    for out, _ in ends
  ]
  assert len(lines[2]) == 5
  assert (
    [line[1] for line in lines[0]]
    == [line[1] for line in lines[1]]
    == [line[1] for line in lines[2]]
  )
  counts = [[int(line[0].rsplit(" ", 1)[1]) for line in each] for each in lines]
  assert counts == [[8, 8, 8, 16, 12], [8, 8, 8, 16, 12], [16] * 5]
