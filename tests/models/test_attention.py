"""Who computes attention: the kernels against the reference, the choice, and what is compiled for a
TPU.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding

from instructjax import optim, sft, sharding
from instructjax.errors import UserError
from instructjax.models import attention, blocks, gpt, llama
from instructjax.plan import aot, chips
from instructjax.types import Demonstrations, TrainState

B, T, C = 8, 128, 64
AT = np.arange(T)


def padding():
  """Rows padded on the left, on the right and on both sides, a whole one, an empty one; packed
  segments.
  """
  bools = np.stack(
    [AT >= 40, AT < 90, (AT >= 5) & (AT < 100), AT >= 0, AT < 0, AT >= 127, AT < 1, AT % 3 > 0]
  )
  packed = np.stack([1 + AT // 50, (AT < 120) * (1 + AT // 30), (AT >= 9) * (2 + AT // 64)])
  return {
    "bool": bools,
    "packed": np.concatenate([packed, packed[:, ::-1], packed[:2] * 7]).astype(np.int32),
  }


def draw(heads, kv_heads):
  rng = np.random.default_rng(0)
  shapes = (B, T, heads, C), (B, kv_heads, T, C), (B, kv_heads, T, C)
  return tuple(jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes)


def with_gradients(mix, q, k, v, valid):
  """The output where tokens are real, and the gradients of a loss that reads only those."""

  def loss(q, k, v):
    out = jnp.where((valid > 0)[:, :, None, None], mix(q, k, v, valid), 0)
    return jnp.sin(out).sum(), out

  grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
  return out, *grads


def reference(q, k, v, valid, window_index=0, *, dtype="float32", rule=attention.PLAIN):
  """All scores at once, behind one mask."""
  windows = jnp.asarray([window or T for window in rule.windows])
  mask = blocks.causal_mask(valid, windows[window_index])
  return blocks.attention(q, k, v, mask, dtype, scale=rule.scale, softcap=rule.softcap)


SPLASH = partial(attention.splash, dtype="float32", interpret=True)
IN_BLOCKS = partial(attention.in_blocks, dtype="float32")


@pytest.mark.parametrize("windows", [(0,), (40,), (100, 40)], ids=str)
@pytest.mark.parametrize("kind", ["bool", "packed"])
def test_blocks_of_queries_equal_the_reference(kind, windows, monkeypatch):
  """Three blocks, of which the last is shorter; a window of 40 leaves keys of the second out."""
  monkeypatch.setattr(attention, "QUERIES", 50)
  arrays, valid = draw(4, 2), jnp.asarray(padding()[kind])
  options = {"rule": attention.Rule(softcap=2.0, windows=windows)}
  index = jnp.int32(len(windows) - 1)
  mix = lambda f: lambda q, k, v, valid: f(q, k, v, valid, index, **options)
  got = with_gradients(mix(IN_BLOCKS), *arrays, valid)
  expected = with_gradients(mix(reference), *arrays, valid)
  tiny.assert_trees_close(got, expected, rtol=1e-4, atol=2e-5)
  assert np.isfinite(IN_BLOCKS(*arrays, valid, **options)).all()  # padding and the empty row too


@pytest.mark.parametrize(
  "window, scores", [(0, 43 * (43 + 86 + 128)), (40, 43 * (43 + 82 + 82) - 43)]
)
def test_scores_that_nobody_needs_are_not_computed(window, scores, monkeypatch):
  """Of 128 queries in blocks of 43, 43 and 42, those with the keys up to the last query."""
  monkeypatch.setattr(attention, "QUERIES", 50)
  arrays = draw(2, 2)
  mix = partial(IN_BLOCKS, rule=attention.Rule(windows=(window,)))
  jaxpr = jax.make_jaxpr(mix)(*arrays, jnp.ones((B, T), bool)).jaxpr
  exps = [e.outvars[0].aval.size for e in tiny.equations(jaxpr) if e.primitive.name == "exp"]
  assert sum(exps) == pytest.approx(B * 2 * scores, rel=0.02)


@pytest.mark.parametrize(
  "heads, kv_heads", [(2, 2), (4, 2), (2, 1)], ids=["whole", "grouped", "one key head"]
)
@pytest.mark.parametrize("kind", ["bool", "packed"])
def test_splash_equals_the_reference(kind, heads, kv_heads):
  arrays, valid = draw(heads, kv_heads), jnp.asarray(padding()[kind])
  got = with_gradients(SPLASH, *arrays, valid)
  tiny.assert_trees_close(got, with_gradients(reference, *arrays, valid), rtol=1e-4, atol=2e-5)
  assert np.isfinite(SPLASH(*arrays, valid)).all()  # padding and the empty row too


@pytest.mark.parametrize("window_index", [0, 1])
def test_splash_with_windows_and_a_soft_cap_equals_the_reference(window_index):
  """A traced number chooses one of two windows; the cap is so low that it bends most scores."""
  rule = attention.Rule(scale=0.3, softcap=2.0, windows=(40, 0))
  arrays, valid = draw(2, 1), jnp.asarray(padding()["packed"])
  mix = lambda f: lambda q, k, v, valid: f(q, k, v, valid, jnp.int32(window_index), rule=rule)
  got = with_gradients(mix(SPLASH), *arrays, valid)
  tiny.assert_trees_close(got, with_gradients(mix(reference), *arrays, valid), rtol=1e-4, atol=2e-5)
  alone = with_gradients(
    partial(reference, rule=rule._replace(windows=rule.windows[window_index : window_index + 1])),
    *arrays,
    valid,
  )
  tiny.assert_trees_close(got, alone, rtol=1e-4, atol=2e-5)


def test_the_tiles_of_splash_by_length_and_width():
  def of(length, width):
    sizes = attention.tiles(length, width)
    return sizes.block_q, sizes.block_kv_compute, sizes.use_fused_bwd_kernel

  assert of(128, 64) == (128, 128, True)
  assert of(2304, 128) == (256, 256, False)  # nine tiles
  assert of(8192, 128) == (1024, 512, True)
  assert of(131_072, 128) == (1024, 512, False)
  assert of(4096, 256) == (512, 512, True)


def test_two_kernels_give_the_gradients_of_one(monkeypatch):
  arrays, valid = draw(2, 1), jnp.asarray(padding()["packed"])
  assert attention.tiles(T, arrays[0].shape[-1]).use_fused_bwd_kernel
  fused = with_gradients(SPLASH, *arrays, valid)
  monkeypatch.setattr(attention, "FUSED_TILES", 0)
  tiny.assert_trees_close(with_gradients(SPLASH, *arrays, valid), fused, rtol=1e-4, atol=2e-5)


def test_windows_that_hold_the_whole_row_are_none(monkeypatch):
  choices = []
  take = lambda rule: lambda *arrays: choices.append((rule.windows, int(arrays[-1]))) or arrays[0]
  monkeypatch.setattr(attention, "chosen", lambda *args: take(args[-1]))
  q, k, v = draw(2, 2)
  for windows, window_index in [((T, 0, T - 1), 2), ((T, 0), 1), ((3,), 0)]:
    rule = attention.Rule(windows=windows)
    attention.causal(
      q, k, v, jnp.ones((B, T), bool), window_index, dtype="float32", kind="auto", rule=rule
    )
  assert choices == [((0, 0, T - 1), 2), ((0,), 0), ((3,), 0)]


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 2, 4)], indirect=True, ids=str)
def test_splash_on_a_mesh_equals_the_reference(mesh):
  """Two key heads for four queries: they are split over two devices, and repeated for four."""
  arrays, valid = draw(4, 2), padding()["bool"]
  expected = tiny.unsharded(
    lambda: jax.tree.map(np.asarray, with_gradients(reference, *arrays, jnp.asarray(valid)))
  )
  axes = (
    ("batch", None, "heads", None),
    ("batch", "kv_heads", None, None),
    ("batch", "kv_heads", None, None),
  )
  q, k, v = (sharding.place(x, sharding.fit(x.shape, a)) for x, a in zip(arrays, axes))
  got = with_gradients(SPLASH, q, k, v, sharding.place_batch(valid))
  tiny.assert_trees_close(got, expected, rtol=1e-4, atol=2e-5)
  jax.tree.map(
    lambda g, x: np.testing.assert_equal(jax.typeof(g).sharding, jax.typeof(x).sharding),
    got,
    (q, q, k, v),
  )


def names(kind, length=256, width=64, dtype="bfloat16"):
  """The functions among which the platform chooses, by its name."""
  kernels = {}
  original = attention.by_platform
  try:
    attention.by_platform = lambda default, **others: (
      kernels.update(others, default=default) or default
    )
    default = attention.chosen(kind, length, width, dtype)
  finally:
    attention.by_platform = original
  name = lambda f: getattr(f, "func", f).__name__
  return {platform: name(f) for platform, f in (kernels or {"default": default}).items()}


def test_the_choice(monkeypatch):
  assert names("xla") == {"default": "in_blocks"}
  assert names("auto") == {"tpu": "splash", "default": "in_blocks"}
  assert names("splash") == {"cpu": "splash", "default": "splash"}
  assert names("cudnn") == {"default": "cudnn"}
  for shape in [{"length": 200}, {"width": 80}]:
    assert names("auto", **shape) == {"default": "in_blocks"}
  monkeypatch.setattr(attention, "has_cudnn", lambda: True)
  assert names("auto") == {"tpu": "splash", "cuda": "cudnn", "default": "in_blocks"}
  assert names("auto", length=200, width=80) == {"cuda": "cudnn", "default": "in_blocks"}
  assert names("auto", dtype="float32") == {"tpu": "splash", "default": "in_blocks"}
  assert names("auto", length=201, width=256) == {"default": "in_blocks"}


@pytest.mark.parametrize(
  "kind, shape, message",
  [
    (
      "splash",
      {"length": 200},
      "'splash' needs rows of a multiple of 128 tokens, got 200: pad them; or choose 'auto'",
    ),
    ("splash", {"width": 80}, "'splash' needs heads of a multiple of 64, got 80"),
    ("cudnn", {"dtype": "float32"}, "'cudnn' needs dtype 'bfloat16', got 'float32'"),
    ("cudnn", {"length": 201}, "'cudnn' needs rows of an even number of tokens, got 201"),
    ("cudnn", {"width": 256}, "'cudnn' needs heads of a multiple of 8 up to 128, got 256"),
  ],
)
def test_a_kernel_that_cannot_take_the_shapes_says_so(kind, shape, message):
  with pytest.raises(UserError, match=message):
    names(kind, **shape)


def test_cudnn_has_no_soft_cap(monkeypatch):
  rule = attention.Rule(softcap=50.0)
  with pytest.raises(UserError, match="'cudnn' has no soft cap on its scores"):
    attention.chosen("cudnn", 256, 64, "bfloat16", rule)
  monkeypatch.setattr(attention, "has_cudnn", lambda: True)
  kernels = {}
  monkeypatch.setattr(
    attention, "by_platform", lambda default, **others: kernels.update(others) or default
  )
  attention.chosen("auto", 256, 64, "bfloat16", rule)
  assert set(kernels) == {"tpu"}


def test_an_unknown_name_is_refused():
  with pytest.raises(
    UserError, match="attention is 'flash': choose one of auto, xla, splash, cudnn"
  ):
    gpt.gpt(dataclasses.replace(gpt.GPT_5M, attention="flash"))


def test_a_model_with_splash_equals_one_with_xla():
  """A whole model on a CPU, where `splash` is interpreted and `auto` is XLA."""
  config = llama.LlamaConfig(tiny.VOCAB, T, width=128, depth=1, heads=2, kv_heads=1, mlp=64)
  params = llama.llama(config).init(jax.random.key(0))
  valid = jnp.asarray(padding()["bool"])
  tokens = tiny.tokens_like(valid, tiny.VOCAB, 1)
  run = lambda kind: jax.jit(llama.llama(dataclasses.replace(config, attention=kind)).hidden)(
    params, tokens, valid
  )
  xla, splash = run("xla"), run("splash")
  np.testing.assert_array_equal(run("auto"), xla)
  np.testing.assert_allclose(splash * valid[..., None], xla * valid[..., None], atol=1e-4)


@pytest.mark.tpu
@pytest.mark.parametrize(
  "parts, kernels, change",
  [
    ((1, 4, 1), "auto", {}),
    ((1, 2, 2), "auto", {}),
    ((1, 4, 1), "xla", {}),
    ((1, 2, 2), "auto", {"pattern": "LG", "window": 130, "softcap": 50.0, "local_rope_base": 1e4}),
  ],
)
def test_the_sft_step_for_a_tpu_pod_holds_the_kernel(parts, kernels, change):
  """Compiled for four chips that are not there, from shapes alone."""
  with aot.on(chips.pod("v5e:2x2"), dict(zip(sharding.AXES, parts)), True):
    mesh = jax.sharding.get_mesh()
    lm = llama.llama(
      dataclasses.replace(
        llama.SMOLLM2_135M,
        vocab_size=257,
        depth=2,
        heads=8,
        kv_heads=2,
        width=512,
        dtype="bfloat16",
        remat="blocks",
        attention=kernels,
        **change,
      )
    )
    abstract = lambda shape, dtype, spec: jax.ShapeDtypeStruct(
      shape, dtype, sharding=NamedSharding(mesh, spec)
    )
    specs = sharding.shardings(lm.table)
    params = jax.tree.map(
      lambda leaf, spec: abstract(leaf.shape, jnp.float32, spec),
      lm.table,
      specs,
      is_leaf=lambda x: hasattr(x, "axes"),
    )
    tx = optim.adamw(1e-4)
    scalar = abstract((), jnp.int32, jax.P())
    key = jax.eval_shape(jax.random.key, 0)
    state = TrainState(
      scalar, scalar, abstract((), key.dtype, jax.P()), params, jax.eval_shape(tx.init, params)
    )
    row = lambda dtype: abstract((8, 256), dtype, sharding.spec("batch", None))
    batch = Demonstrations(row(jnp.int32), row(jnp.bool_), row(jnp.bool_))
    text = (
      jax.jit(partial(sft.sft_step, lm=lm, tx=tx), donate_argnums=0)
      .lower(state, {}, batch)
      .compile()
      .as_text()
    )
  assert ('custom_call_target="tpu_custom_call"' in text) == (kernels == "auto")


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("valid", padding().values(), ids=padding())
def test_cudnn_is_lowered_for_a_gpu(monkeypatch, valid, kv_heads):
  """Not run: JAX is told that cuDNN is there, and lowers forward and backward to its calls."""
  monkeypatch.setattr(
    "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000
  )
  monkeypatch.setattr(attention, "has_cudnn", lambda: True)
  rule = attention.Rule(scale=0.2, windows=(0, 32))
  mix = attention.chosen("auto", T, C, "bfloat16", rule)
  loss = lambda q, k, v: mix(q, k, v, jnp.asarray(valid), jnp.int32(1)).sum()
  arrays = draw(4, kv_heads)
  traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmhaScaleBiasSoftmax" in text and "__cudnn$fmhaScaleBiasSoftmaxBackward" in text
  assert "cudnn" not in traced.lower(lowering_platforms=("cpu",)).as_text()
