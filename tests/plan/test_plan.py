"""Plans: bytes and FLOPs equal hand counts, collectives are found, bad input names what works;
nothing is allocated.
"""

import contextlib
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from instructjax import models, settings, sharding
from instructjax.commands import cli
from instructjax.errors import UserError
from instructjax.plan import (
  aot,
  chips,
  collectives,
  counting,
  estimate,
  page,
  planning,
  programs,
  search,
)
from instructjax.plan.planning import Options
from instructjax.runs import origin

HLO = """HloModule jit_step, is_scheduled=true

%region_add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%async_collective_fusion.1 (param_0: bf16[1,16,64]) -> bf16[1,32,64] {
  %param_0 = bf16[1,16,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[1,32,64]{2,1,0:T(8,128)} all-gather(%param_0), channel_id=5, \
replica_groups=mesh['a'=2,'b'=2] {'a'}
}

%all-reduce-scatter.4 (input_0: f32[64,32]) -> f32[64,16] {
  %input_0 = f32[64,32]{0,1:T(8,128)S(1)} parameter(0)
  %all-reduce.9 = f32[64,32]{0,1:T(8,128)} all-reduce(%input_0), channel_id=1, \
replica_groups={{0,2},{1,3}}
  ROOT %slice.1 = f32[64,16]{0,1} slice(%all-reduce.9), slice={[0:64], [0:16]}
}

%body.1 (p: (s32[], f32[8,32])) -> (s32[], f32[8,32]) {
  %p = (s32[], f32[8,32]{1,0:T(8,128)}) parameter(0)
  %fusion.1 = bf16[1,32,64]{2,1,0} fusion(%p), kind=kOutput, calls=%async_collective_fusion.1
  %all-gather.3 = bf16[1,32,64]{2,1,0} all-gather(%x), channel_id=5, \
replica_groups=mesh['a'=2,'b'=2] {'a'}
  %all-reduce.2 = f32[8,32]{1,0:T(8,128)} all-reduce(%y), channel_id=7, \
replica_groups=[2,2]<=[4], to_apply=%region_add
  ROOT %tuple.1 = (s32[], f32[8,32]) tuple(%i, %all-reduce.2)
}

%condition.1 (q: (s32[], f32[8,32])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(24), metadata={op_name="while/cond/lt"}
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %constant.5), direction=LT
}

ENTRY %main.1 (arg: f32[8,32]) -> f32[8,32] {
  %while.1 = (s32[], f32[8,32]{1,0}) while(%t), condition=%condition.1, body=%body.1
  %fusion.9 = f32[64,16]{0,1} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.4
  ROOT %all-reduce.8 = f32[]{:T(128)} all-reduce(%z), channel_id=8, replica_groups={{0,1,2,3}}
}
"""


@contextlib.contextmanager
def mesh_of(**sizes):
  mesh = {"data": 1, "fsdp": 1, "model": 1} | sizes
  abstract = AbstractMesh(tuple(mesh.values()), sharding.AXES, axis_types=(AxisType.Explicit,) * 3)
  with jax.sharding.use_abstract_mesh(abstract):
    yield mesh


def built(name, shape="tiny", remat=""):
  """The programs of a preset on the mesh that is set."""
  return programs.build(settings.load(name), shape, shape, completions=4, remat=remat)


# --- memory ---


def test_parameter_and_optimizer_bytes_equal_a_sum_by_hand():
  with mesh_of(fsdp=4, model=2):
    (program,) = built("sft:tiny")
    shares = estimate.shares(program)
  c = origin.SHAPES["tiny"]
  D, F = c.width, 4 * c.width
  split = c.depth * (4 * D * D + 2 * D * F) // 8  # matrices of the blocks, over fsdp and model
  split += (
    257 * D + c.context * D
  ) // 4  # the vocabulary does not divide by model and is kept whole
  split += c.depth * (3 * D + F) // 2  # biases of heads and hidden units
  whole = c.depth * (2 * 2 * D + 2 * D) + 2 * D  # norms, and biases of the residual stream
  assert shares["params"] == 4 * (split + whole)
  assert (
    shares["optimizer"] == 2 * shares["params"] + 2 * 4
  )  # moments; counts of Adam and of the schedule


def test_ppo_holds_policy_value_average_and_frozen_models():
  few_slots = settings.override(settings.load("ppo:tiny"), [("sampling.slots", "8")])
  with mesh_of(fsdp=2):
    rollout, scoring, update = built("ppo:tiny")
    smaller, *_ = programs.build(few_slots, "tiny", "tiny", completions=4)
    shares = [estimate.shares(program) for program in (rollout, scoring, update)]
    body = sum(
      programs.local_bytes(x)
      for x in jax.tree.leaves(programs.parameters(models.build(origin.SHAPES["tiny"])))
    )
  head = 4 * (32 + 1)
  for share in shares:
    assert share["params"] == 2 * body + head
    assert share["ema"] == body
    assert share["frozen"] == 2 * body + head
  # Keys and values of 2 layers and 4 heads of 8; positions; the index. 128 + 24 columns fill 5
  # blocks of 32. The 32 rows have a slot each, 16 of them on a device.
  row = 5 * 32 * (2 * 2 * 4 * 8 * 4 + 4)
  assert rollout.cache_bytes == 16 * row + 4
  assert smaller.cache_bytes == 4 * row + 4


def test_what_each_device_does_by_itself_is_counted_with_its_own_shapes():
  """By hand: inside of `shard_map` a device has 2 of 8 rows, whose product is 2 x 4 x 16."""

  def product(x, w):
    x = sharding.reshard(x, "batch", None)
    return sharding.on_each_device(jnp.dot, sharding.spec("batch"), x, w)

  x = jax.ShapeDtypeStruct((8, 4), jnp.float32)
  w = jax.ShapeDtypeStruct((4, 16), jnp.float32)
  with mesh_of(fsdp=4):
    jaxpr = jax.make_jaxpr(product)(x, w)
  cost = counting.count(jaxpr, [], {})
  assert cost.device_flops == 2 * 2 * 4 * 16
  assert cost.product_bytes == 4 * (2 * 4 + 4 * 16 + 2 * 16)
  assert counting.peak(jaxpr) == 4 * 2 * 16  # the result


def test_live_bytes_of_known_programs():
  x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
  size = 4 * 256 * 256
  chain = jax.make_jaxpr(lambda x: (x @ x) @ x)(x)
  assert counting.peak(chain) == 2 * size
  loop = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, _: (c @ x, c), x, None, length=6))(x)
  assert 7 * size <= counting.peak(loop) <= 9 * size  # what is stacked, the carry and its successor
  assert counting.peak(jax.make_jaxpr(lambda x: jnp.exp(-x).sum())(x)) < size  # fused


# --- FLOPs ---


def test_a_scan_counts_as_often_as_it_runs():
  x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  body = lambda c, _: (c @ c, None)
  once = counting.count(jax.make_jaxpr(lambda x: x @ x)(x), [], {}).flops
  assert once == 2 * 8**3
  scanned = jax.make_jaxpr(lambda x: jax.lax.scan(body, x, None, length=7)[0])(x)
  assert counting.count(scanned, [], {}).flops == 7 * once


def square_until(x, n):
  """Squares a matrix until a sum is large: a loop without a name."""
  return jax.lax.while_loop(lambda c: c.sum() < n, lambda c: c @ c, x)


def test_a_named_loop_counts_its_own_trips_within_those_around_it():
  """By hand: 3 steps, each with one product, 5 blocks of a product and 2 scans of it, and both
  loops again in a scan of 2.
  """

  def step(c):
    c = c @ c
    with jax.named_scope("trips:outside"), jax.named_scope("trips:blocks"):
      c = square_until(c, 3.0)
    c, _ = jax.lax.scan(lambda c, _: (c @ c, None), c, None, length=2)
    return c

  def run(x):
    def twice(c, _):
      with jax.named_scope("trips:steps"):
        return jax.lax.while_loop(lambda c: c.sum() < 7, step, c), None

    return jax.lax.scan(twice, x, None, length=2)[0]

  x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  cost = counting.count(jax.make_jaxpr(jax.jit(run))(x), [], {"steps": 3, "blocks": 5.5})
  products = 2 * 3 * (5.5 + 2 + 1)
  assert cost.flops == products * 2 * 8**3
  size = 3 * 4 * 8 * 8  # two operands and the result
  assert cost.product_bytes == products * size
  assert cost.bytes_of_a_trip("blocks") == size
  assert cost.bytes_of_a_trip("steps") == (5.5 + 2 + 1) * size
  assert cost.bytes_of_a_trip("parts") is None
  mapped = jax.make_jaxpr(jax.vmap(run))(jax.ShapeDtypeStruct((4, 8, 8), jnp.float32))
  mapped_cost = counting.count(mapped, [], {"steps": 3, "blocks": 5.5})
  assert mapped_cost.flops == 4 * cost.flops


def test_a_loop_whose_trips_nobody_says_is_refused():
  x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  unnamed = jax.make_jaxpr(lambda x: square_until(x, 3.0))(x)
  with pytest.raises(
    ValueError, match=r"outside of any .* at test_plan\.py:\d+ .* known of: steps"
  ):
    counting.count(unnamed, [], {"steps": 3})

  def named(x):
    with jax.named_scope("trips:chunks"):
      return square_until(x, 3.0)

  with pytest.raises(ValueError, match=r"a while loop named 'chunks' at .* known of: none"):
    counting.count(jax.make_jaxpr(named)(x), [], {})
  assert counting.count(jax.make_jaxpr(named)(x), [], {"chunks": 0}).flops == 0

  # A name holds for its own loop, and not for one without a name inside of it.
  def nested(x):
    with jax.named_scope("trips:chunks"):
      return jax.lax.while_loop(lambda c: c.sum() < 3, lambda c: square_until(c, 3.0), x)

  with pytest.raises(ValueError, match=r"outside of any"):
    counting.count(jax.make_jaxpr(nested)(x), [], {"chunks": 1})


def block_weights(lm):
  """The weights of the products in all blocks of a GPT: 4 of attention and 8 of the MLP."""
  return 12 * lm.depth * lm.width**2


def test_a_training_step_is_three_forward_passes():
  c = settings.load("sft:tiny")
  lm = models.build(origin.SHAPES["tiny"])
  with mesh_of():
    (program,) = built("sft:tiny")
    cost = counting.count(aot.trace(program).jaxpr, [], program.part.trips)
    (remat,) = built("sft:tiny", remat="blocks")
    more = counting.count(aot.trace(remat).jaxpr, [], remat.part.trips)
  length = c.data.prompt + c.data.response
  tokens = c.batch * length
  # Scores and mix: of four blocks of queries, each with the keys up to its last one.
  keys = length * (1 + 2 + 3 + 4) / 4 / 4
  attention = tokens * 2 * 2 * lm.depth * lm.width * keys
  unembedding = c.batch * c.data.response * 2 * lm.vocab_size * lm.width
  forward = tokens * 2 * block_weights(lm) + attention + unembedding
  assert cost.flops == pytest.approx(3 * forward, rel=0.03)
  again = (
    c.batch * length * 2 * lm.depth * 4 * lm.width**2
  )  # the last product of a block is not needed again
  blocks = forward - unembedding - again
  assert more.flops == pytest.approx(3 * forward + blocks, rel=0.03)


def test_a_device_does_its_share_and_what_is_not_split():
  with mesh_of(fsdp=2, model=2):
    (program,) = built("sft:tiny")
    cost = counting.count(aot.trace(program).jaxpr, [], program.part.trips)
  vocabulary = 3 * 16 * 96 * 2 * 257 * 32  # 257 ids do not divide by model
  assert cost.device_flops == pytest.approx(
    (cost.flops - vocabulary) / 4 + vocabulary / 2, rel=1e-3
  )


def test_weights_read_by_a_rollout():
  """By hand: a device has 16 rows and as many slots, which 4 groups of 4 prompts fill.

  A group is read in 16 parts of 8 columns, and its first tokens are sampled; 23 steps follow.
  """
  with mesh_of(fsdp=2):
    rollout, *_ = built("ppo:tiny")
    kinds = [kind in ("params", "frozen") for kind in jax.tree.leaves(rollout.kinds)]
    cost = counting.count(aot.trace(rollout).jaxpr, kinds, rollout.part.trips)
  lm = models.build(origin.SHAPES["tiny"])
  blocks, vocabulary = block_weights(lm), lm.vocab_size * lm.width
  assert cost.weight_bytes == 4 * ((4 * 16 + 23) * blocks + (4 + 23) * vocabulary)


def test_integers_are_read_a_byte_each():
  """By hand: x of 4 x 8 and the result of 4 x 16 are float32, the matrix of 8 x 16 is not."""
  x, q = jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((8, 16), jnp.int8)
  jaxpr = jax.make_jaxpr(lambda x, q: x @ q.astype(jnp.float32))(x, q)
  cost = counting.count(jaxpr, [False, True], {})
  assert cost.product_bytes == 4 * 4 * 8 + 8 * 16 + 4 * 4 * 16
  assert cost.weight_bytes == 8 * 16


def test_a_decode_step_reads_less_in_integers():
  """Of the cache, the 4 bytes of each of 8 features become 1, with a scale of 4 bytes for all."""
  tiny_ppo = settings.load("ppo:tiny")
  in_integers = [("sampling.weights", "int8"), ("sampling.cache", "int8")]
  costs = []
  with mesh_of(fsdp=2):
    for changes in ([], in_integers):
      config = settings.override(tiny_ppo, changes)
      rollout, *_ = programs.build(config, "tiny", "tiny", completions=4)
      traced = aot.trace(rollout)
      costs.append((rollout.cache_bytes, estimate.cost_of(rollout, traced, rollout.part.trips)))
  (of_float, float_cost), (of_integers, integer_cost) = costs
  assert of_float == 16 * 5 * 32 * (2 * 2 * 4 * 8 * 4 + 4) + 4
  assert of_integers == 16 * 5 * 32 * (2 * 2 * 4 * (8 + 4) + 4) + 4
  assert integer_cost.weight_bytes == float_cost.weight_bytes / 4
  assert integer_cost.flops == float_cost.flops
  fewer = float_cost.bytes_of_a_trip("steps") - integer_cost.bytes_of_a_trip("steps")
  matrices = integer_cost.bytes_of_a_trip("steps") - float_cost.bytes_of_a_trip("steps") / 4
  assert fewer > 0
  assert matrices > 0  # activations and scores are not rounded


# --- collectives ---


def test_weights_are_gathered_once_a_rollout_and_not_in_its_loops():
  """Of bytes that the loops gather there are few; with whole=False each step gathers all again."""

  def gathers(whole, times):
    config = settings.override(settings.load("ppo:tiny"), [("sampling.whole", whole)])
    rollout, *_ = programs.build(config, "tiny", "tiny", completions=4)
    trips = {name: times * count for name, count in rollout.part.trips.items()}
    cost = estimate.cost_of(rollout, aot.trace(rollout), trips)
    _, size = cost.collectives["all-gather", ("fsdp",)]
    return size

  lm = models.build(origin.SHAPES["tiny"])
  # The tokens are gathered to be read and to be said.
  words = 2 * lm.vocab_size * lm.width + lm.context * lm.width
  weights = 4 * (block_weights(lm) + words)
  with mesh_of(fsdp=2):
    once, thrice = gathers("true", 1), gathers("true", 3)
    # In all of their trips, some ninety, the loops gather less than the weights are: activations.
    assert once >= weights
    assert (thrice - once) / 2 < weights
    assert gathers("false", 1) > 50 * weights


def test_collectives_in_a_recorded_program():
  by_kind = {(c.kind, c.axes): c for c in collectives.read(HLO, {"data": 1, "fsdp": 2, "model": 2})}
  assert set(by_kind) == {
    ("all-gather", ("fsdp",)),
    ("all-reduce", ("model",)),
    ("reduce-scatter", ("fsdp",)),
    ("all-reduce", ("fsdp", "model")),
  }
  gathered = by_kind["all-gather", ("fsdp",)]
  assert (gathered.count, gathered.bytes) == (
    24,
    24 * 2 * 32 * 64,
  )  # one channel in two fusions is one collective
  assert by_kind["all-reduce", ("model",)][2:] == (24, 24 * 4 * 8 * 32, 0)
  assert by_kind["reduce-scatter", ("fsdp",)][2:] == (1, 4 * 64 * 32, 0)


def test_a_collective_that_is_only_started_runs_beside_computation():
  """In a fusion of the TPU compiler, which has a name for that, or by its own pair of lines."""
  groups = "replica_groups={{0,2},{1,3}}"
  text = f"""
%fused_computation.1 (p: bf16[4]) -> bf16[8] {{
  %a.1 = bf16[8]{{0}} all-gather(%p), channel_id=3, {groups}
}}
%async_collective_fusion.2 (p: bf16[4]) -> bf16[8] {{
  %a.2 = bf16[8]{{0}} all-gather(%p), channel_id=3, {groups}
}}
%fused_computation.3 (p: bf16[4]) -> bf16[8] {{
  %a.3 = bf16[8]{{0}} all-gather(%p), channel_id=4, {groups}
}}
ENTRY %main.1 (a: bf16[4]) -> bf16[8] {{
  %async-collective-start.7 = (bf16[4]{{0}}, bf16[8]{{0}}) fusion(%a), calls=%fused_computation.1
  %step = bf16[8]{{0}} fusion(%a), kind=kCustom, calls=%async_collective_fusion.2
  %waits = bf16[8]{{0}} fusion(%a), kind=kCustom, calls=%fused_computation.3
  %begun = (bf16[4]{{0}}, bf16[8]{{0}}) all-gather-start(%a), channel_id=5, {groups}
}}
"""
  (gathers,) = collectives.read(text, {"data": 1, "fsdp": 2, "model": 2})
  assert gathers == ("all-gather", ("fsdp",), 3, 3 * 8 * 2, 2)


def test_a_loop_of_a_compiled_program_runs_as_often_as_its_name_says():
  """The constant in the condition is another: a bound, say. A loop inside has its own."""
  named = HLO.replace(
    "body=%body.1\n", 'body=%body.1, metadata={op_name="jit(f)/trips:steps/while" id=1}\n'
  )
  inside = HLO.replace(
    "body=%body.1\n", 'body=%body.1, metadata={op_name="jit(f)/trips:steps/while/body/while"}\n'
  )
  assert named != HLO != inside
  mesh = {"data": 1, "fsdp": 2, "model": 2}

  def count(text, **trips):
    by_kind = {(c.kind, c.axes): c for c in collectives.read(text, mesh, trips)}
    return by_kind["all-gather", ("fsdp",)].count

  assert count(named, steps=5.5) == 5.5
  assert count(named, parts=5.5) == count(inside, steps=5.5) == 24


def test_an_operation_under_way_moves_its_last_array():
  begun = "(f32[2,8]{1,0:T(8,128)}, bf16[4,8]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)})"
  assert collectives.size(begun, last=True) == 2 * 4 * 8
  assert collectives.size("(f32[], f32[])", last=True) == 4
  assert collectives.size(begun) == 4 * 16 + 2 * 32 + 8


def test_what_goes_between_slices_is_a_receive_through_the_host():
  """As libtpu writes it for two slices; the pair of send and receive is one collective."""
  line = (
    "  %{0}.3 = (f32[16,8]{{1,0:T(8,128)}}, u32[], token[]) {0}(%after-all.3), channel_id={1}, "
    "is_host_transfer=true, "
    'frontend_attributes={{_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="{2}"}}\n'
  )
  for transfer, kind, factor in [
    ("ALL_REDUCE", "all-reduce", 1),
    ("REDUCE_SCATTER", "reduce-scatter", 2),
  ]:
    text = "ENTRY %main.1 (a: f32[]) -> f32[] {\n" + "".join(
      line.format(what, i, transfer) for i, what in enumerate(("send", "recv"))
    )
    transfers = collectives.read(text, {"slices": 2, "data": 2, "fsdp": 4, "model": 1})
    assert transfers == [(kind, ("slices",), 1, factor * 4 * 16 * 8, 0)]


def test_a_program_for_slices_has_the_groups_of_one():
  """Two slices of 6 along fsdp; the first slice has positions 0 to 5, of which 0 and 1 are fsdp."""
  text = (
    "ENTRY %main.1 (a: f32[]) -> f32[] {\n"
    "  %g = f32[8]{0} all-gather(%a), channel_id=1, replica_groups={{0,1},{2,3},{4,5}}\n"
  )
  pod = chips.Pod("v5e", (2, 3), 2)
  slice_of_pod, mesh = chips.in_slices(pod, {"data": 3, "fsdp": 4, "model": 1})
  assert (slice_of_pod.slices, mesh) == (1, {"slices": 2, "data": 3, "fsdp": 2, "model": 1})
  assert collectives.read(text, mesh) == [("all-gather", ("fsdp",), 1, 4 * 8, 0)]
  # What goes between them is a device's own, whatever the other axes are.
  assert chips.split(slice_of_pod, mesh, ("slices",)) == (1, 2)
  assert chips.split(slice_of_pod, mesh, ("fsdp",)) == (2, 1)


@pytest.mark.parametrize(
  ("text", "ids"),
  [
    ("replica_groups=[4,2]<=[8]", [0, 1]),
    ("replica_groups=[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6]),
    ("replica_groups={{0,3},{1,2}}", [0, 3]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]),
    ("source_target_pairs={{0,2},{2,0}}", [0, 2]),
  ],
)
def test_groups_of_devices(text, ids):
  assert collectives.group(text) == ids


def test_collectives_of_a_real_compilation():
  mesh = sharding.make_mesh(data=1, fsdp=4, model=2)
  with jax.set_mesh(mesh):
    x = jax.ShapeDtypeStruct(
      (8, 16), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P("fsdp", "model"))
    )
    w = jax.ShapeDtypeStruct(
      (5, 16, 16), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(None, "model", None))
    )

    def run(x, w):
      def body(x, w):
        y = jnp.dot(x, w, out_sharding=jax.P("fsdp", None))
        return jax.sharding.reshard(jnp.tanh(y), jax.P("fsdp", "model")), None

      return jax.lax.scan(body, x, w)[0]

    text = jax.jit(run).lower(x, w).compile().as_text()
  by_kind = {(c.kind, c.axes): c for c in collectives.read(text, dict(mesh.shape))}
  reduced = by_kind["all-reduce", ("model",)]
  assert (reduced.count, reduced.bytes) == (5, 5 * 4 * 2 * 16)


def test_collectives_by_arithmetic():
  with mesh_of(fsdp=2, model=2):
    (program,) = built("sft:tiny")
    cost = counting.count(aot.trace(program).jaxpr, [True] * 500, program.part.trips)
  lm = models.build(origin.SHAPES["tiny"])
  rows = 8 * 224 * 32 * 4  # activations of the 8 rows of a device
  # A layer: o, down; backward up, q, k, v.
  assert cost.collectives["all-reduce", ("model",)] == (12, 12 * rows)
  # Every matrix, the embeddings, and the embedding as unembedding.
  forward = lm.depth * 6 + 3
  assert cost.collectives["all-gather", ("fsdp",)][0] >= forward


# --- input ---


def test_the_topologies_of_the_tables_are_there():
  flat = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16 4x2"
  solid = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 12x12x24"
  for kind, shapes in {
    "v5e": flat,
    "v6e": flat,
    "v4": solid,
    "v5p": f"{solid} 16x16x16 16x16x24",
    "tpu7x": solid,
  }.items():
    assert all(chips.pod(f"{kind}:{shape}").name == f"{kind}:{shape}" for shape in shapes.split())


@pytest.mark.parametrize(
  ("topology", "mesh", "words"),
  [
    ("v5q:4x4", "", ["unknown chip 'v5q'", "did you mean v5", "tpu7x"]),
    ("v5e:4", "", ["2 dimensions", "v5e:4x4"]),
    ("v5p:4x4", "", ["3 dimensions", "v5p:4x4x8"]),
    ("h100:2x4", "", ["1 dimension", "h100:8"]),
    (
      "v5p:3x5x7",
      "",
      ["v5p has no slice of 105 chips in this shape; the nearest: v5p:4x4x8 or v5p:4x8x8"],
    ),
    ("v4:8x10x8", "", ["the nearest: v4:8x8x12 or v4:8x8x8"]),
    ("tpu7x:8x2x2", "", ["the nearest: tpu7x:2x2x4 or tpu7x:1x2x4"]),
    ("v5e:3x4", "", ["the nearest: v5e:4x4 or v5e:2x4"]),
    ("v6e:1x8", "", ["the nearest: v6e:2x4"]),
    (
      "v5p:16x16x48",
      "",
      ["12288 chips, the largest slice of v5p has 6144; take several, --slices=N"],
    ),
    (
      "v5e:2x2",
      "fsdp=8",
      ["8 devices", "v5e:2x2 has 4", "too small", "--mesh=data=1,fsdp=4,model=1"],
    ),
    ("v5e:2x2", "fsdp=3", ["3 devices", "--mesh=data=1,fsdp=4,model=1"]),
    ("v5e:2x2", "rows=4", ["'rows=4' is none of data=N"]),
    (
      "v5e:4x4",
      "model=16",
      ["axis 'heads' of length 4", "a mesh that works: --mesh=data=1,fsdp=4,model=4"],
    ),
    (
      "v5e:8x8",
      "fsdp=64",
      [
        "config.batch=16 does not divide by config.micro x devices=64",
        "a mesh that works: --mesh=data=1,fsdp=16,model=4",
      ],
    ),
  ],
)
def test_bad_input_names_what_works(topology, mesh, words):
  with pytest.raises(UserError) as error:
    planning.plan(settings.load("sft:tiny"), Options(topology, mesh, arithmetic=True))
  for word in words:
    assert word in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("config", "options", "words"),
  [
    ("ppo:1.3b", Options("h100:8", model="1.4b"), ["--model=1.4b: no such", "1.3B"]),
    ("ppo:1.3b", Options("h100:8", reward="7b"), ["--reward=7b", "6.7B"]),
    ("sample:tiny", Options("h100:8"), ["stage 'sample' has no plan"]),
    (
      "sft:tiny",
      Options("v5e:2x2", slices=2, mesh="model=8"),
      [
        "--mesh=model=8: --slices=2 lie along data or fsdp, and divide neither data=1 nor fsdp=1 "
        "(nearest that works: --mesh=data=1,fsdp=2,model=4)"
      ],
    ),
  ],
)
def test_bad_shapes_and_stages(config, options, words):
  with pytest.raises(UserError) as error:
    planning.plan(settings.load(config), options)
  for word in words:
    assert word in str(error.value)


def test_the_command_says_one_line(capsys):
  assert cli.main(["plan", "--config=sft:tiny", "--topology=v9:2x2"]) == 2
  assert capsys.readouterr().err.count("\n") == 1


# --- reports ---


def test_a_report_is_one_json_object(capsys):
  arguments = ["plan", "--config=ppo:tiny", "--topology=h100:8", "--mesh=fsdp=4,model=2", "--json"]
  assert cli.main(arguments) == 0
  report = json.loads(capsys.readouterr().out)
  assert set(report) == {
    "stage",
    "model",
    "topology",
    "slices",
    "devices",
    "mesh",
    "lengths",
    "compiled",
    "why_not",
    "programs",
    "fits",
    "hours",
    "predicted_hours",
    "chip_hours",
    "advice",
  }
  assert [row["program"] for row in report["programs"]] == ["rollout", "scoring", "update"]
  assert report["fits"] and not report["compiled"] and report["advice"] == []
  for row in report["programs"]:
    assert set(row) == {
      "program",
      "calls",
      "memory",
      "arithmetic",
      "compiled",
      "apart",
      "fits",
      "flops",
      "model_flops",
      "device_flops",
      "weight_bytes",
      "decode_step_bytes",
      "seconds",
      "bound",
      "mfu",
      "predicted",
      "attention_flops",
      "tokens_per_s",
      "at_lengths",
    }
    assert set(row["memory"]) == {"params", "optimizer", "ema", "frozen", "other", "kv_cache"}
    assert 0 < row["mfu"] < 1 and row["seconds"]["step"] == max(row["seconds"].values())


def test_a_plan_at_drawn_lengths(capsys, tmp_path):
  """By hand: each of 4 shards has 8 episodes and as many slots, which 2 groups of 4 prompts fill.

  After one step only a response of 9 tokens goes on, in half as many slots: it takes 7 steps more,
  and sampled its first token when its prompt was read. Its prompt and response lie in a block of
  the cache each. The 8 episodes of a shard fit in one packed row.
  """
  path = tmp_path / "lengths.jsonl"
  path.write_text('{"prompt": 3, "response": 2}\n' * 15 + '{"prompt": 5, "response": 9}\n')
  arguments = ["plan", "--config=ppo:tiny", "--topology=h100:8", "--mesh=fsdp=4,model=2"]
  arguments.append(f"--lengths={path}")
  assert cli.main([*arguments, "--json"]) == 0
  report = json.loads(capsys.readouterr().out)
  rollout, scoring, update = report["programs"]
  by_hand = {"refills": 2, "chunks": 1, "steps": 0.5, "tail": 7, "blocks": 2}
  assert rollout["at_lengths"]["trips"] == by_hand
  with mesh_of(fsdp=4, model=2):
    jaxpr = aot.trace(built("ppo:tiny")[0]).jaxpr

  def flops(**trips):
    return counting.count(jaxpr, [], dict.fromkeys(by_hand, 0) | trips).flops

  a_step = flops(refills=1, steps=1) - flops(refills=1)
  assert flops(tail=1) == a_step / 2 > 0
  assert rollout["at_lengths"]["flops"] == flops(**by_hand) < rollout["flops"]
  assert rollout["at_lengths"]["seconds"]["step"] < rollout["seconds"]["step"]
  # A step reads 2 blocks of the cache in the place of 5.
  assert rollout["decode_step_bytes"] > rollout["at_lengths"]["decode_step_bytes"] > 0
  assert scoring["decode_step_bytes"] is None
  # At full length 8 episodes fill 8 rows, of which 2 are computed at once.
  assert scoring["at_lengths"]["trips"] == {"parts": 1}
  assert scoring["at_lengths"]["flops"] == scoring["flops"] / 4
  # A minibatch has 2 episodes a shard, whose full length is one such part too.
  assert update["at_lengths"]["trips"] == {"parts": 1}
  assert update["at_lengths"]["flops"] == update["flops"]
  page.show(report)
  line = " ".join(capsys.readouterr().out.split())
  assert "lengths.jsonl lengths:" in line and "GB a decode step on a device, at full length" in line


def test_a_rollout_without_decode_steps_has_no_bytes_of_one(capsys, tmp_path):
  """Every response ends with its first token, which is sampled where its prompt is read."""
  path = tmp_path / "lengths.jsonl"
  path.write_text('{"prompt": 3, "response": 1}\n')
  options = Options("h100:8", "fsdp=4,model=2", lengths=str(path))
  report = planning.plan(settings.load("ppo:tiny"), options)
  rollout = report["programs"][0]
  assert rollout["at_lengths"]["trips"] == {
    "refills": 2,
    "chunks": 1,
    "steps": 0,
    "tail": 0,
    "blocks": 0,
  }
  assert rollout["at_lengths"]["decode_step_bytes"] is None
  assert rollout["at_lengths"]["flops"] > 0
  page.show(report)
  assert "a decode step" not in capsys.readouterr().out


def test_a_plan_refuses_lengths_that_cannot_be(tmp_path):
  path = tmp_path / "lengths.jsonl"
  path.write_text('{"prompt": 3, "response": 2000}\n')
  with pytest.raises(
    UserError, match=r"lengths\.jsonl:1: response: 2000 tokens, where 1 to 24 fit"
  ):
    planning.plan(settings.load("ppo:tiny"), Options("h100:8", lengths=str(path)))
  with pytest.raises(UserError, match=r"--lengths=paper: pretraining has documents"):
    planning.plan(settings.load("pretrain:tiny"), Options("h100:8", lengths="paper"))


def test_tables_are_printed(capsys):
  assert cli.main(["plan", "--config=sft:tiny", "--topology=h200:8", "--mesh=fsdp=8"]) == 0
  out = capsys.readouterr().out
  assert (
    "by arithmetic (no GPU compiler is asked)" in out
    and "chip-hours" in out
    and "everything fits" in out
  )


def test_what_does_not_fit_says_what_to_change():
  # Text is not packed into parts: its rows are computed together unless micro-batches cut them.
  config = settings.override(settings.load("pretrain:1.3b"), [("batch", "64")])
  found = planning.plan(config, Options("v5e:2x2", "fsdp=4", arithmetic=True))
  assert not found["fits"]
  assert "more micro-batches (config.micro)" in found["advice"][0]
  found = planning.plan(settings.load("sft:6b"), Options("v5e:2x2", "fsdp=4", arithmetic=True))
  assert "state alone is" in found["advice"][0] and "fsdp" in found["advice"][0]
  assert (
    "--topology=v5e:2x4" in found["advice"][0]
  )  # 80 GB over eight, where 10.2 of 14.6 may be state


@pytest.mark.parametrize(
  ("mesh", "says"), [("--mesh=fsdp=4", "sft needs"), ("--search", "none of 6 meshes fits")]
)
def test_a_topology_too_small_is_an_error_after_the_table(mesh, says, capsys):
  assert cli.main(["plan", "--config=sft:6b", "--topology=v5e:2x2", mesh, "--arithmetic"]) == 2
  out, err = capsys.readouterr()
  assert "GB" in out and "everything fits" not in out
  assert err.splitlines()[-1].startswith(
    f"error: {says}" if "mesh" in mesh else f"error: --topology=v5e:2x2: {says}"
  )
  assert "--topology=v5e:" in err.splitlines()[-1]


def test_a_larger_topology():
  assert [chips.larger(chips.pod("v5e:2x2"), n) for n in (4, 5, 17, 205)] == [
    "v5e:2x2",
    "v5e:2x4",
    "v5e:4x8",
    "v5e:16x16",
  ]
  assert chips.larger(chips.pod("v5p:4x4x4"), 100) == "v5p:4x4x8"
  assert chips.larger(chips.pod("tpu7x:2x2x1"), 9) == "tpu7x:2x2x2"  # two devices a chip
  assert chips.larger(chips.pod("v5e:4x4", 2), 33) == "v5e:4x8"
  # a slice of v5e or v6e has at most 256 chips
  assert [
    chips.larger(chips.pod(at), n)
    for at, n in (("v5e:16x16", 257), ("v6e:4x4", 1000), ("v5p:16x16x16", 5000))
  ] == ["v5e:16x16 --slices=2", "v6e:16x16 --slices=4", "v5p:16x16x16 --slices=2"]
  assert chips.larger(chips.pod("h100:256"), 257) == "h100:512"


def builder(shape):
  return partial(programs.build, shape=shape, reward_shape=shape, completions=4)


def test_a_search_gives_meshes_of_the_topology():
  config, where = settings.load("sft:tiny"), chips.pod("v5e:2x2")
  meshes = list(search.possible(config, where, "tiny", "tiny"))
  found = search.search(config, where, meshes, builder("tiny"))
  assert {tuple(one["mesh"].values()) for one in found} == {
    (1, 1, 4),
    (1, 2, 2),
    (2, 1, 2),
    (1, 4, 1),
    (2, 2, 1),
    (4, 1, 1),
  }
  assert all(math.prod(one["mesh"].values()) == 4 for one in found)
  assert [one["seconds"] for one in found] == sorted(one["seconds"] for one in found)
  wider = list(search.possible(config, chips.pod("v5e:4x2"), "tiny", "tiny"))
  assert wider and all(mesh["model"] <= 4 for mesh in wider)  # four heads
  assert not list(search.possible(config, chips.Pod("v5p", (5, 7, 3)), "tiny", "tiny"))


def test_a_search_adds_micro_batches_until_it_fits():
  config = settings.override(settings.load("pretrain:1.3b"), [("batch", "64")])
  found = search.try_mesh(
    config, chips.pod("v5e:2x4"), {"data": 1, "fsdp": 8, "model": 1}, builder("1.3B")
  )
  assert (
    found["fits"] and found["micro"] > 1 and found["flags"] == f"--config.micro={found['micro']}"
  )


def test_a_search_chooses_what_the_backward_pass_keeps(monkeypatch):
  """By numbers of our own: of the two best meshes the second gains by keeping products."""
  seconds = {"blocks": (4.0, 5.0, 6.0), "dots": (4.5, 3.0, 1.0), "none": (1.0, 1.0, 1.0)}
  asked = []

  def try_mesh(config, topology, mesh, build, remat=""):
    chosen = remat or config.model.remat
    asked.append((mesh["model"], chosen))
    fits = chosen != "none"  # keeping all would be the fastest
    needed = seconds.get(chosen, (9.0, 9.0, 9.0))[mesh["model"]]
    return {"mesh": mesh, "fits": fits, "seconds": needed, "peak": 1.0, "remat": chosen}

  monkeypatch.setattr(search, "try_mesh", try_mesh)
  monkeypatch.setattr(search, "REMAT_MESHES", 2)
  meshes = [{"data": 1, "fsdp": 1, "model": i} for i in range(3)]
  config = settings.load("sft:6b")
  plans = search.search(config, chips.pod("v5e:2x2"), meshes, builder("6B"))
  assert [(plan["mesh"]["model"], plan["remat"]) for plan in plans] == [
    (1, "dots"),
    (0, "blocks"),
    (2, "blocks"),
  ]
  assert (2, "dots") not in asked
  assert search.with_micro(config, 2, meshes[0], "dots") == (
    settings.override(config, [("micro", "2"), ("model.remat", "dots")]),
    "--config.micro=2 --config.model.remat=dots",
  )
  assert search.with_micro(config, 2, meshes[0], "blocks")[1] == "--config.micro=2"


def test_the_pretraining_mix_is_cut_further_than_the_episodes():
  config = settings.load("ppo:tiny")  # minibatches of 8 episodes and 16 rows of text
  changed, flags = search.with_micro(config, 4, {"data": 1, "fsdp": 4, "model": 1})
  assert (changed.ppo.micro, changed.ppo.ptx_micro, config.ppo.micro) == (2, 4, 1)
  assert flags == "--config.ppo.micro=2 --config.ppo.ptx_micro=4"


def test_the_slow_network_carries_what_leaves_the_node():
  chip = chips.CHIPS["h100"]
  mesh = {"data": 2, "fsdp": 4, "model": 4}
  node = chips.pod("h100:32")
  assert chips.split(node, mesh, ("model",)) == (4, 1)
  assert chips.split(node, mesh, ("fsdp",)) == (2, 2)
  assert chips.split(node, mesh, ("data",)) == (1, 2)
  assert chips.transfer(node, mesh, "all-gather", ("model",), 8.0) == 8 * 3 / 4 / chip.link
  assert chips.transfer(node, mesh, "all-reduce", ("fsdp",), 8.0) == 2 * (
    4 / chip.link + 2 / chip.far
  )
  slices = chips.pod("v5e:4x4", 2)
  assert chips.split(slices, mesh, ("data", "fsdp")) == (4, 2)
  assert chips.split(slices, mesh, ("fsdp",)) == (4, 1)
  along_fsdp = {"data": 1, "fsdp": 16, "model": 2}
  assert chips.split(slices, along_fsdp, ("fsdp",)) == (8, 2)
  assert chips.split(slices, along_fsdp, ("model",)) == (2, 1)


def test_slices_lie_along_data_or_else_fsdp():
  found = [tuple(mesh.values()) for mesh in chips.meshes(chips.pod("v5e:2x2", 2))]
  assert (1, 8, 1) in found and (2, 1, 4) in found
  assert (1, 1, 8) not in found
  assert chips.mesh("", chips.pod("v5e:2x2", 2)) == {"data": 2, "fsdp": 4, "model": 1}
