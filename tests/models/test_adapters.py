"""Flax models, written as a user would, in every stage: the NNX decoder of the documentation, which
has no cache, one that has its own, and a Linen decoder.
"""

import json
import re
import warnings
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn
from flax import nnx

from instructjax import optim, ppo, reward, rollout, sft, sharding, steps
from instructjax.commands import cli
from instructjax.errors import UserError
from instructjax.models import adapters, blocks, freeze
from instructjax.runs import origin
from instructjax.types import Frozen

DOC = (Path(__file__).parents[2] / "docs" / "bring_your_own.md").read_text()
CODE = re.search(r"```python\n(# decoder.py.*?)```", DOC, re.DOTALL)[1]
SIZES = {"vocab_size": 48, "context": 32, "width": 16}
HEADS, WIDTH = 2, 16

own = {"__name__": "decoder"}
exec(CODE, own)


def heads_init(*axes):
  return nnx.with_partitioning(nnx.initializers.lecun_normal(), axes)


class CachedBlock(nnx.Module):
  def __init__(self, *, rngs):
    self.norms = nnx.List([nnx.RMSNorm(WIDTH, rngs=rngs) for _ in range(2)])
    self.qkv = nnx.LinearGeneral(
      WIDTH, (3, HEADS, WIDTH // HEADS), kernel_init=heads_init("d", None, "h", None), rngs=rngs
    )
    self.out = nnx.LinearGeneral((HEADS, WIDTH // HEADS), WIDTH, axis=(-2, -1), rngs=rngs)
    self.up = nnx.Linear(WIDTH, 32, kernel_init=heads_init("d", "f"), rngs=rngs)
    self.down = nnx.Linear(32, WIDTH, rngs=rngs)

  def __call__(self, x, mask, past=None, index=0):
    q, k, v = jnp.moveaxis(self.qkv(self.norms[0](x)), 2, 0)
    if past is not None:
      k, v = (
        jax.lax.dynamic_update_slice(old, new, (0, index, 0, 0))
        for old, new in zip(past, (k, v), strict=True)
      )
    x = x + self.out(jax.nn.dot_product_attention(q, k, v, mask=mask[:, None]))
    return x + self.down(nnx.silu(self.up(self.norms[1](x)))), (k, v)


class CachedDecoder(nnx.Module):
  def __init__(self, *, rngs):
    self.embed = nnx.Embed(48, WIDTH, rngs=rngs)
    self.at = nnx.Embed(32, WIDTH, rngs=rngs)
    self.blocks = nnx.List([CachedBlock(rngs=rngs)])
    self.unembed = nnx.Linear(WIDTH, 48, use_bias=False, rngs=rngs)

  def hidden(self, tokens, positions, mask):
    return self.decode(tokens, positions, mask, [None], 0)[0]

  def decode(self, tokens, positions, mask, cache, index):
    x, new = self.embed(tokens) + self.at(positions), []
    for block, past in zip(self.blocks, cache, strict=True):
      x, entry = block(x, mask, past, index)
      new.append(entry)
    return x, new


def empty_cache(batch, length):
  part = lambda: jnp.zeros((batch, length, HEADS, WIDTH // HEADS))
  return [(part(), part())]


class LinenDecoder(nn.Module):
  def setup(self):
    kernel = nn.with_partitioning(nn.initializers.lecun_normal(), ("d", "f"))
    self.embed = nn.Embed(48, WIDTH)
    self.at = nn.Embed(32, WIDTH)
    self.attn = nn.MultiHeadDotProductAttention(HEADS)
    self.norms = [nn.LayerNorm(), nn.LayerNorm()]
    self.up, self.down = nn.Dense(32, kernel_init=kernel), nn.Dense(WIDTH)
    self.dropout = nn.Dropout(0.2)

  def __call__(self, tokens, positions, mask, train=False):
    x = self.embed(tokens) + self.at(positions)
    x = x + self.dropout(self.attn(self.norms[0](x), mask=mask[:, None]), deterministic=not train)
    return self.norms[1](x + self.down(nn.gelu(self.up(x))))

  def attend(self, hidden):
    return self.embed.attend(hidden)


AXES = {"d": "embed", "f": "mlp", "h": "heads"}


def make(name):
  """(lm, params, the module's own function of (tokens, positions, mask) to logits)."""
  if name == "linen":
    module, row = LinenDecoder(), jnp.zeros((1, 4), jnp.int32)
    variables = module.init(jax.random.key(0), row, row, jnp.ones((1, 4, 4), bool))
    hidden = lambda m, *args: m(*args, train=m.has_rng("dropout"))
    model = adapters.from_linen(
      module, variables, hidden=hidden, logits="attend", axes=AXES, **SIZES
    )
    whole = nn.meta.unbox(variables)
    return *model, lambda *args: module.apply(whole, module.apply(whole, *args), method="attend")
  if name == "cached":
    with nnx.use_eager_sharding(False):
      module = CachedDecoder(rngs=nnx.Rngs(1))
    logits = lambda m, hidden: m.unembed(hidden)
    model = adapters.from_nnx(
      module,
      hidden="hidden",
      logits=logits,
      decode="decode",
      init_cache=empty_cache,
      axes=AXES,
      **SIZES,
    )
    return *model, lambda *args: module.unembed(module.hidden(*args))
  module = own["Decoder"](**SIZES, depth=1, heads=HEADS, rngs=nnx.Rngs(2))
  model = adapters.from_nnx(module, hidden="hidden", logits="logits", **SIZES)
  module.eval()
  return *model, lambda *args: module.logits(module.hidden(*args))


cached_model = cache(make)


@pytest.fixture(params=["nnx", "cached", "linen"])
def name(request):
  return request.param


def sampled(name, params, prompts, response=6):
  lm = cached_model(name)[0]
  draw = tiny.jitted(rollout.sample, lm=lm, cfg=rollout.Sampling(response=response, temperature=0))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", adapters.FullForwards)
    return draw(params=params, prompts=prompts, key=jax.random.key(0))


def test_it_is_the_module_wherever_the_padding_stands(name):
  lm, params, logits = cached_model(name)
  tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 48)
  at = jnp.broadcast_to(jnp.arange(6), (2, 6))
  expected = jax.jit(logits)(tokens, at, jnp.broadcast_to(jnp.tri(6, dtype=bool), (2, 6, 6)))
  ours = jax.jit(lambda p, t, v: lm.logits(p, lm.hidden(p, t, v)))
  np.testing.assert_allclose(ours(params, tokens, jnp.ones((2, 6), bool)), expected, atol=1e-5)
  junk = jnp.full((2, 3), 7)
  left = jnp.concatenate([junk, tokens], axis=1), jnp.arange(9) >= 3
  right = jnp.concatenate([tokens, junk], axis=1), jnp.arange(9) < 6
  np.testing.assert_allclose(
    ours(params, left[0], jnp.tile(left[1], (2, 1)))[:, 3:], expected, atol=1e-5
  )
  np.testing.assert_allclose(
    ours(params, right[0], jnp.tile(right[1], (2, 1)))[:, :6], expected, atol=1e-5
  )
  packed = ours(
    params,
    jnp.concatenate([tokens, tokens], axis=1),
    jnp.tile(jnp.repeat(jnp.array([1, 2]), 6), (2, 1)),
  )
  np.testing.assert_allclose(packed[:, 6:], expected, atol=1e-5)


def test_greedy_samples_are_those_of_whole_forward_passes(name):
  """By the module itself, row by row without padding; with its cache and by the fallback."""
  _, params, logits = cached_model(name)
  prompts = tiny.prompts(cached_model(name)[0], 3)
  rows = sampled(name, params, prompts)
  whole = jax.jit(logits)
  for row in range(3):
    ids = [int(t) for t in prompts.tokens[row][prompts.valid[row]]]
    for _ in range(6):
      padded = jnp.array([ids + [0] * (11 - len(ids))])
      at = jnp.minimum(jnp.arange(11), 31)[None]
      ids.append(int(whole(padded, at, jnp.tri(11, dtype=bool)[None])[0, len(ids) - 1].argmax()))
    assert rows.tokens[row, 5:].tolist() == ids[-6:]


def counting(rows_first=True):
  """`CachedDecoder` whose cache also has an array of as many numbers as the test has rows, and
  which has none itself.
  """
  lm, params, _ = cached_model("cached")
  with nnx.use_eager_sharding(False):
    module = CachedDecoder(rngs=nnx.Rngs(1))

  def decode(m, tokens, positions, mask, cache, index):
    own, scales = cache
    x, own = m.decode(tokens, positions, mask, own, index)
    return x * scales[5].mean(), (own, scales)

  scales = lambda batch: (
    jnp.where(jnp.arange(8) == 5, 1.0, 7.0) if rows_first else jnp.ones((8, batch))
  )
  counting_lm, _ = adapters.from_nnx(
    module,
    hidden="hidden",
    logits=lambda m, hidden: m.unembed(hidden),
    decode=decode,
    axes=AXES,
    init_cache=lambda batch, length: (empty_cache(batch, length), scales(batch)),
    **SIZES,
  )
  return lm, counting_lm, params


def greedy_rows(lm, params, prompts):
  draw = jax.jit(partial(rollout.sample, lm, cfg=rollout.Sampling(response=6, n=3, temperature=0)))
  return draw(params, prompts, jax.random.key(0))


def test_a_part_of_a_cache_that_has_no_rows_is_not_repeated():
  """Eight rows and an array of eight: it stays as it is where a prompt is read once for several."""
  lm, counting_lm, params = counting()
  prompts = tiny.prompts(lm, 8)
  tiny.assert_trees_close(
    greedy_rows(counting_lm, params, prompts), greedy_rows(lm, params, prompts)
  )
  # The rows may be any axis, off a mesh.
  _, rows_second, _ = counting(rows_first=False)
  assert greedy_rows(rows_second, params, tiny.prompts(lm, 2)).mask.all()


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_a_cache_that_has_parts_without_rows_is_repeated_on_a_mesh(shape):
  _, counting_lm, params = counting()
  host, prompts = jax.tree.map(np.asarray, (params, tiny.prompts(counting_lm, 8)))
  expected = jax.tree.map(np.asarray, greedy_rows(counting_lm, host, prompts))
  with jax.set_mesh(sharding.make_mesh(*shape)):
    on_mesh = sharding.place(host, sharding.shardings(counting_lm.table))
    tiny.assert_trees_close(
      greedy_rows(counting_lm, on_mesh, sharding.place_batch(prompts)),
      expected,
      rtol=1e-5,
      atol=2e-5,
    )


def test_integers_are_for_our_own_families():
  lm, params = cached_model("cached")[:2]
  with pytest.raises(UserError, match="int8 is for the gpt and llama families"):
    lm.unstack(params, int8_weights=True)
  with pytest.raises(UserError, match="Decoder keeps a cache of its own"):
    lm.init_cache(2, 8, None, True)


def test_a_model_without_a_cache_says_so_once():
  adapters._warn_once.cache_clear()
  with pytest.warns(
    adapters.FullForwards, match="Decoder has no cache.*give decode and init_cache"
  ) as warned:
    cached_model("nnx")[0].init_cache(2, 8)
    cached_model("nnx")[0].init_cache(2, 8)
    cached_model("cached")[0].init_cache(2, 8)
  assert len(warned) == 1


def state_of(params, tx, **more):
  return steps.init_state(jax.random.key(0), jax.tree.map(jnp.copy, params), tx, **more)


SGD = optax.sgd(0.3)


def ppo_parts(name):
  lm, params, _ = cached_model(name)
  tx = optim.by_subtree(policy=optax.adam(1e-2), value=optax.adam(1e-2))
  sampling = rollout.Sampling(response=5, eos=(3,), banned=(0,))
  settings = ppo.PPO(
    lm=lm, tx=tx, sampling=sampling, cfg=ppo.PPOConfig(minibatches=1, ptx_coef=1.0)
  )
  judge = reward.init(jax.random.key(4), lm, params)
  state = state_of(ppo.init_params(params, judge), tx, ema={"policy": params}, kl_coef=0.02)
  return settings, state, Frozen({}, params, judge)


def three_stages(name):
  """The metrics of an SFT step, a reward-model step and a PPO iteration."""
  lm, params, _ = cached_model(name)
  put = lambda tree: sharding.place(tree, _specs(lm, tree))
  batch = sharding.place_batch(tiny.demonstrations(lm, 8))
  step = tiny.jitted(sft.sft_step, lm=lm, tx=SGD, cfg=sft.SFTConfig(dropout=False))
  state, first = step(state_of(put(params), SGD), {}, batch)
  _, second = step(state, {}, batch)
  judge = put(reward.init(jax.random.key(4), lm, params))
  rank = tiny.jitted(reward.reward_step, lm=lm, tx=SGD)
  compared = rank(
    state_of(judge, SGD), {}, sharding.place_batch(tiny.comparisons(lm, 8, 2, shards=8))
  )[1]
  settings, state, frozen = ppo_parts(name)
  state, frozen = state.replace(params=put(state.params), ema=put(state.ema)), put(frozen)
  state = state.replace(opt_state=settings.tx.init(state.params))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", adapters.FullForwards)
    prompts, text = (sharding.place_batch(x) for x in (tiny.prompts(lm, 8), tiny.text(lm, 8)))
    after, played = tiny.jitted(ppo.iteration, ppo=settings)(state, frozen, prompts, text)
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, state.params)
  return first, second, compared, played, moved


def _specs(lm, tree):
  """The partition of every model in a tree; all else is whole."""
  if isinstance(tree, Frozen):
    return tree.replace(ref=_specs(lm, tree.ref), reward=_specs(lm, tree.reward))
  if "model" in tree:
    return sharding.shardings(lm.table)
  whole = lambda part: jax.tree.map(lambda _: jax.P(), part)
  return {name: whole(part) if name == "head" else _specs(lm, part) for name, part in tree.items()}


ONE = {}


def alone(name):
  if name not in ONE:
    ONE[name] = three_stages(name)
  return ONE[name]


SLOW = [
  pytest.param("nnx", marks=pytest.mark.slow),
  pytest.param("cached", marks=pytest.mark.slow),
  "linen",
]  # compilations


@pytest.mark.parametrize("name", SLOW)
def test_every_stage_trains_it(name):
  first, second, compared, played, moved = alone(name)
  assert second["loss"] < first["loss"]
  assert compared["grad/norm"] > 0.01
  assert abs(played["objective/kl"]) < 1e-4 and played["rollout/logp_error"] < 1e-4
  for metrics in (first, compared, played):
    assert all(np.isfinite(value) for value in metrics.values())
  dead = {
    "unembed",
    "key/bias",
    "attn/key/bias",
  }  # no gradient: of a value network's head; softmax is blind to a key's bias
  flat = {
    jax.tree_util.keystr(path, simple=True, separator="/"): x
    for path, x in jax.tree.leaves_with_path(moved)
  }
  still = [key for key, x in flat.items() if x == 0]
  assert not [
    key for key in still if not key.startswith("value/") or not any(part in key for part in dead)
  ]


def sft_step(name):
  """Metrics and the parameters after one step."""
  lm, params, _ = cached_model(name)
  state = state_of(sharding.place(params, sharding.shardings(lm.table)), SGD)
  step = tiny.jitted(sft.sft_step, lm=lm, tx=SGD, cfg=sft.SFTConfig(dropout=False))
  state, metrics = step(state, {}, sharding.place_batch(tiny.demonstrations(lm, 8)))
  return state.params, metrics


@pytest.mark.parametrize(("name", "shape"), [("nnx", (8, 1, 1)), ("cached", (2, 2, 2))])
def test_an_sft_step_on_eight_devices(name, shape):
  expected, metrics = sft_step(name)
  with jax.set_mesh(sharding.make_mesh(*shape)):
    params, many = sft_step(name)
    if name == "cached":
      assert params["model"]["blocks"]["0"]["up"]["kernel"].sharding.spec == jax.P("fsdp", "model")
  np.testing.assert_allclose(many["loss"], metrics["loss"], rtol=1e-5)
  tiny.assert_trees_close(params, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "shape"),
  [("nnx", (2, 2, 2)), ("cached", (2, 2, 2)), ("linen", (2, 2, 2)), ("linen", (8, 1, 1))],
)
def test_eight_devices_give_the_same_numbers(name, shape):
  expected = alone(name)
  with jax.set_mesh(sharding.make_mesh(*shape)):
    on_mesh = three_stages(name)
  for alone_metrics, mesh_metrics in zip(expected[:4], on_mesh[:4], strict=True):
    for key in alone_metrics:
      np.testing.assert_allclose(
        mesh_metrics[key], alone_metrics[key], rtol=2e-3, atol=2e-5, err_msg=key
      )


def test_metadata_becomes_axes_of_the_mesh():
  table = cached_model("cached")[0].table["model"]["blocks"]["0"]
  assert table["up"]["kernel"].axes == ("embed", "mlp")
  assert table["qkv"]["kernel"].axes == ("embed", None, "heads", None)
  assert table["down"]["kernel"].axes == (None, None)
  assert cached_model("linen")[0].table["model"]["up"]["kernel"].axes == ("embed", "mlp")
  with nnx.use_eager_sharding(False):
    module = CachedDecoder(rngs=nnx.Rngs(1))
  fill = {"hidden": "hidden", "logits": "unembed", **SIZES}
  with pytest.raises(UserError, match=r"blocks/0/qkv/kernel has an axis named 'h'.*add it"):
    adapters.from_nnx(module, axes={"d": "embed", "f": None}, **fill)
  with pytest.raises(UserError, match=r"axes\['d'\] is 'width': known are batch, embed"):
    adapters.from_nnx(module, axes=AXES | {"d": "width"}, **fill)


@pytest.mark.parametrize("name", ["nnx", "linen"])
def test_dropout_is_the_modules_own(name):
  lm, params, _ = cached_model(name)
  tokens, valid = jnp.ones((2, 6), jnp.int32), jnp.ones((2, 6), bool)
  hidden = jax.jit(lm.hidden)
  a, b, again = (hidden(params, tokens, valid, key=jax.random.key(seed)) for seed in (1, 2, 1))
  np.testing.assert_array_equal(a, again)
  assert (a != b).any() and (a != hidden(params, tokens, valid)).any()


def test_the_users_module_is_left_as_it_is():
  module = own["Decoder"](**SIZES, depth=1, heads=2, rngs=nnx.Rngs(0))
  lm, params = adapters.from_nnx(module, hidden="hidden", logits="logits", **SIZES)
  lm.hidden(params, jnp.ones((1, 3), jnp.int32), jnp.ones((1, 3), bool))
  jax.tree.map(lambda x: x.delete(), params)
  assert module.blocks[0].dropout.deterministic is False
  assert jnp.isfinite(module.tokens.embedding[...]).all()


def test_what_is_not_possible_is_said():
  class Normed(nnx.Module):
    def __init__(self):
      self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

  fill = {"hidden": "hidden", "logits": "logits", **SIZES}
  with pytest.raises(UserError, match=r"Normed: holds batch statistics.*LayerNorm"):
    adapters.from_nnx(Normed(), **fill)
  with pytest.raises(UserError, match="holds batch statistics"):
    adapters.from_linen(
      LinenDecoder(), {"params": {}, "batch_stats": {"mean": jnp.ones(1)}}, **fill
    )
  with pytest.raises(UserError, match="decode and init_cache belong together"):
    adapters.from_nnx(CachedDecoder.__new__(CachedDecoder), decode="decode", **fill)
  lm, params, _ = cached_model("nnx")
  ids, valid = jnp.ones((1, 33), jnp.int32), jnp.ones((1, 33), bool)
  with pytest.raises(UserError, match="rows of 33 tokens do not fit the model's context of 32"):
    lm.hidden(params, ids, valid)
  with pytest.raises(UserError, match="positions do not fit the model's context of 32"):
    rollout.sample(lm, params, tiny.prompts(lm, 1), jax.random.key(0), rollout.Sampling(30))
  with pytest.raises(
    UserError, match=r"top 1 blocks: this model's parameters \(model\) hold no stacked"
  ):
    freeze.split(params, 1)
  wide, _ = adapters.from_nnx(
    own["Decoder"](**SIZES, depth=1, heads=2, rngs=nnx.Rngs(0)),
    hidden="hidden",
    logits="logits",
    **SIZES | {"width": 20},
  )
  with pytest.raises(
    UserError, match=r"Decoder: hidden returned shape \(1, 4, 16\), \(1, 4, 20\) is needed"
  ):
    jax.eval_shape(wide.hidden, params, ids[:, :4], valid[:, :4])


def test_the_mask_lets_a_padded_query_see_only_itself():
  mask = adapters._visible(jnp.array([[False, True, True]]))
  assert mask[0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]
  assert blocks.positions(jnp.array([[False, True, True]])).tolist() == [[0, 0, 1]]


# --- the command line ---

ROWS = {
  "demonstrations": [{"prompt": f"say {i}", "completion": "good"} for i in range(8)],
  "comparisons": [
    {"prompt": f"say {i}", "completions": ["good", "bad"], "ranks": [1, 2]} for i in range(8)
  ],
  "prompts": [{"prompt": f"say {i}"} for i in range(8)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The file of the documentation and some data."""
  place = tmp_path_factory.mktemp("flax")
  (place / "decoder.py").write_text(CODE)
  for name, rows in ROWS.items():
    (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return place


def run(stage, folder, *options):
  small = ["--config.data.prompt=8", *([] if stage == "sample" else ["--config.seed=1"])]
  return cli.main(
    [stage, f"--config={stage}:tiny", f"--workdir={folder / stage}", *small, *options]
  )


def files(folder, *names):
  return [f"--config.data.{name}={folder / name}.jsonl" for name in names]


TRAIN = ["--config.batch=4", "--config.data.response=6"]
quietly = pytest.mark.filterwarnings("ignore::instructjax.models.adapters.FullForwards")


@pytest.fixture(scope="module")
def tuned(folder):
  """An SFT run of the documented file."""
  options = [*TRAIN, *files(folder, "demonstrations"), "--config.epochs=3"]
  assert run("sft", folder, f"--model={folder / 'decoder.py'}:model", *options) == 0
  return folder / "sft"


def up(workdir):
  return origin.open_run(workdir, {}, "policy").params["model"]["blocks"]["0"]["up"]["kernel"]


@quietly
def test_the_documented_file_is_trained_and_sampled(folder, tuned, capsys):
  rows = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
  assert rows[-1]["loss"] < rows[0]["loss"]
  reopened = origin.open_run(tuned, {}, "policy")
  assert reopened.about["source"] == f"{folder / 'decoder.py'}:model"
  assert (
    up(tuned)
    != origin.open_python(reopened.about["source"], "").params["model"]["blocks"]["0"]["up"][
      "kernel"
    ]
  ).any()
  draw = [
    "--config.n=2",
    "--config.batch=1",
    "--config.prompt=say 1",
    "--config.sampling.response=4",
  ]
  assert run("sample", folder, f"--model={tuned}", *draw) == 0
  assert "> say 1" in capsys.readouterr().out


@quietly
@pytest.mark.release
def test_reward_model_and_ppo_go_on_from_it(folder, tuned):
  more = [
    *files(folder, "comparisons", "demonstrations"),
    "--config.data.valid=",
    "--config.steps=2",
  ]
  assert run("reward", folder, f"--model={tuned}", *TRAIN, *more) == 0
  sizes = [
    "--config.batch=8",
    "--config.iterations=1",
    "--config.ppo.minibatches=2",
    "--config.sampling.response=4",
  ]
  judge = [f"--config.reward_model={folder / 'reward'}", "--config.ppo.ptx_coef=0.0"]
  assert run("ppo", folder, f"--model={tuned}", *files(folder, "prompts"), *sizes, *judge) == 0
  assert (up(folder / "ppo") != up(tuned)).any()
  draw = ["--config.batch=1", "--config.prompt=say 1", "--config.sampling.response=4"]
  assert run("sample", folder, f"--model={folder / 'ppo'}", *draw) == 0


def test_sources_that_cannot_be_used_are_named(folder, capsys, monkeypatch):
  code = (
    "def number():\n  return 3\n\n"
    "def silent():\n  from decoder import model\n  return model()[:2]\n"
  )
  (folder / "other.py").write_text(code)
  monkeypatch.chdir(folder)
  for source, says in {
    "nowhere.py:model": "nowhere.py: no such file",
    "other.py:model": "other.py has no function 'model'",
    "other.py:number": "other.py:number: returned int; a model is",
    "no_such_package.part:model": "Python finds no module 'no_such_package'",
    "other:silent": "other:silent: names no tokenizer",
  }.items():
    with pytest.raises(UserError, match=re.escape(says)):
      origin.open_python(source, "")
  options = [
    "--config.batch=4",
    "--config.data.response=6",
    *files(folder, "demonstrations"),
    "--config.top=1",
  ]
  assert run("sft", folder / "frozen", "--model=decoder.py:model", *options) == 2
  assert "hold no stacked `blocks`" in capsys.readouterr().err
