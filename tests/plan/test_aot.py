"""The compiler's half of the plan: every stage and every kind of chip compiles ahead of time with
libtpu (`make test-plan`).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from instructjax import compiler, settings, sharding
from instructjax.models import blocks, gpt, llama
from instructjax.plan import aot, chips, collectives, cycles, planning, programs
from instructjax.plan.planning import Options
from instructjax.runs import origin
from instructjax.stages import wiring

pytestmark = pytest.mark.tpu


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """Reports are kept here, so that each test asks the compiler."""
  monkeypatch.setenv("INSTRUCTJAX_CACHE", str(tmp_path))


def compiled(preset: str, options: Options, say=lambda text: None) -> dict:
  found = planning.plan(settings.load(preset), options, say)
  assert found["compiled"], f"{found['why_not']}; make test-plan installs it"
  assert found["fits"]
  return found


@pytest.mark.parametrize("stage", ["sft", "rl_init", "reward", "ppo", "dpo", "grpo"])
def test_every_stage_compiles_for_a_tpu(stage):
  for row in compiled(f"{stage}:tiny", Options("v5e:2x2", "fsdp=2,model=2"))["programs"]:
    assert row["compiled"]["temp"] >= 0 and row["compiled"]["arguments"] > 0
    assert {c["kind"] for c in row["compiled"]["collectives"]} >= {"all-gather", "all-reduce"}


def test_reports_are_kept():
  options, said = Options("v5e:2x2", "fsdp=2,model=2"), []
  found = [compiled("pretrain:tiny", options, said.append) for _ in range(2)]
  assert said == ["compiling pretrain for v5e:2x2 ..."]
  assert found[0]["programs"] == found[1]["programs"]


@pytest.mark.parametrize(
  ("topology", "slices", "devices", "mesh"),
  [
    ("v4:2x2x1", 1, 4, "fsdp=4"),  # two cores a chip, taken as one device
    ("v6e:2x2", 1, 4, "fsdp=4"),
    ("tpu7x:2x2x1", 1, 8, "fsdp=4,model=2"),  # two devices a chip
    ("v5e:2x2", 2, 8, "data=2,fsdp=4"),
    ("v5e:2x2", 2, 8, "fsdp=4,model=2"),
  ],
)
def test_every_kind_of_chip_and_several_slices(topology, slices, devices, mesh):
  found = compiled("sft:tiny", Options(topology, mesh, slices))
  assert found["devices"] == devices
  (row,) = found["programs"]
  assert row["compiled"]["limit"] > row["compiled"]["peak"] > row["compiled"]["arguments"] * 0.9
  crossing = [c for c in row["compiled"]["collectives"] if "slices" in c["axes"]]
  assert bool(crossing) == (slices > 1)


def test_gradients_of_matrices_are_scattered_as_they_are_summed(monkeypatch):
  """What is summed over fsdp and kept whole on every device is less than one matrix of one layer:
  biases and the embedding.
  """
  wide = gpt.GPTConfig(vocab_size=257, context=256, width=1024, depth=1, heads=8)
  monkeypatch.setitem(origin.SHAPES, "wide", wide)
  (row,) = compiled("sft:tiny", Options("v5e:2x2", "fsdp=4", model="wide"))["programs"]
  moved = {c["kind"]: c["bytes"] for c in row["compiled"]["collectives"]}
  matrix = 4 * wide.width**2  # bytes; a layer has twelve such
  assert moved["all-reduce"] < matrix
  # Once, for all rows of a device are computed at once. What is joined is padded.
  assert 12 * matrix <= moved["reduce-scatter"] < 15 * matrix


WIDE = gpt.GPTConfig(vocab_size=257, context=256, width=1024, depth=2, heads=8)


def gathers_of(stage: str, monkeypatch) -> dict[str, tuple[float, float]]:
  """How many all-gathers each program of a stage has, and how many run beside computation."""
  monkeypatch.setitem(origin.SHAPES, "wide", WIDE)
  pod = chips.pod("v6e:2x4")
  mesh = chips.mesh("fsdp=8", pod)
  _, laid = chips.in_slices(pod, mesh)
  config = settings.override(settings.load(f"{stage}:tiny"), [("model.attention", "xla")])
  gathers = {}
  with aot.on(pod, mesh, True):
    for program in programs.build(config, "wide", "wide"):
      text = aot.trace(program).lower().compile().as_text()
      moved = collectives.read(text, laid, program.part.trips)
      of_weights = [c for c in moved if c.kind == "all-gather"]
      gathers[program.name] = (sum(c.count for c in of_weights), sum(c.beside for c in of_weights))
  return gathers


@pytest.mark.parametrize("stage", ["rl_init", "sft", "reward", "ppo", "dpo"])
def test_weights_are_gathered_beside_computation(stage, monkeypatch):
  """In every program of every stage but the rollout, which gathers all weights before it begins."""
  gathers = gathers_of(stage, monkeypatch)
  gathers.pop("rollout", None)
  assert gathers
  for name, (count, beside) in gathers.items():
    assert beside >= count / 4, (name, count, beside)


def test_without_our_options_a_step_waits_for_its_weights(monkeypatch):
  monkeypatch.setitem(compiler.OPTIONS, "tpu", {})
  ((count, beside),) = gathers_of("sft", monkeypatch).values()
  assert count > 10 and beside == 0


@pytest.mark.parametrize(
  ("topology", "slices", "mesh"),
  [
    ("v5e:4x8", 1, "fsdp=32"),
    ("v5e:4x4", 1, "fsdp=16"),
    ("v5e:4x4", 1, "fsdp=8,model=2"),
    ("v6e:8x8", 1, "fsdp=64"),
    ("v4:4x4x4", 1, "fsdp=64"),
    ("v5p:2x2x4", 1, "fsdp=16"),
    ("v5p:4x4x4", 1, "fsdp=64"),
    ("v5p:4x4x4", 1, "fsdp=16,model=4"),
    ("v5p:4x4x8", 1, "fsdp=128"),
  ],
)
def test_a_gradient_is_scattered_as_it_is_summed_on_every_topology(topology, slices, mesh):
  """One matrix, one product: gathered in bfloat16, its gradient summed in float32
  (`docs/scaling.md`).

  Where fsdp lies along all of a square or of three sides, this takes two axes of the mesh: along
  one, the compiler moves a whole all-reduce, which is twice as much.
  """
  pod = chips.pod(topology, slices)
  sizes = chips.mesh(mesh, pod)
  with aot.on(pod, sizes, True):
    w = wiring.shape_of((2048, 8192), jnp.float32, "embed", "mlp")
    x = wiring.rows_of((sizes["fsdp"], 128, 2048), jnp.float32)
    loss = lambda w, x: jnp.sin(blocks.product(w, x, "bfloat16")).mean()
    step = jax.jit(lambda w, x: w - jax.grad(loss)(w, x), donate_argnums=0)
    in_slice, laid = chips.in_slices(pod, sizes)
    moved = collectives.read(step.lower(w, x).compile().as_text(), laid)
  along_fsdp = [c for c in moved if "model" not in c.axes and c.kind != "collective-permute"]
  assert {c.kind for c in along_fsdp} == {"all-gather", "reduce-scatter"}
  ring = {
    kind: sum(
      chips.transfer(in_slice, laid, c.kind, c.axes, c.bytes) for c in along_fsdp if c.kind == kind
    )
    for kind in ("all-gather", "reduce-scatter")
  }
  part = 2048 * 8192 // sizes["model"]
  share = (sizes["fsdp"] - 1) / sizes["fsdp"]
  assert ring["all-gather"] == pytest.approx(2 * part * share / pod.chip.link)
  # The compiler fills up what it cuts in four.
  least = 4 * part * share / pod.chip.link
  assert least <= ring["reduce-scatter"] * 1.0001 < 1.13 * least


# Of each kind of chip a host or a part of one, a square or a cube, and a longer shape. The last of
# v5p has a factor of 3, and that of v4 a factor of 7.
SHAPES = {
  "v4": ("2x2x1", "2x2x4", "4x4x4", "4x4x28"),
  "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
  "v5p": ("2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x4x12", "8x8x16"),
  "v6e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
  "tpu7x": ("2x2x1", "2x2x2", "2x2x4", "4x4x4", "4x4x8"),
}


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("kind", SHAPES)
def test_every_mesh_of_a_search_can_be_made(kind, slices):
  """On libtpu's own devices, by the function that makes the mesh of a run."""
  for shape in SHAPES[kind]:
    pod = chips.pod(f"{kind}:{shape}", slices)
    devices = aot.devices(pod)
    for mesh in chips.meshes(pod):
      grid = sharding.make_mesh(**mesh, devices=devices).devices
      assert grid.size == math.prod(mesh.values()) and set(grid.flat) == set(devices)


def test_sums_over_model_are_scattered_along_the_sequence_in_bfloat16():
  """Of the gradient of two layers; what is summed whole are the scales of norms."""
  moved = {}
  for sequence in (False, True):
    _, sums = gradient_of_hidden({"data": 1, "fsdp": 1, "model": 4}, sequence=sequence)
    moved[sequence] = {c.kind: c.bytes for c in sums if c.axes == ("model",)}
  rows = 4 * 256 * 512  # numbers of a residual stream
  assert set(moved[False]) == {"all-reduce"}
  # One of the embeddings and five of a layer: two forward, three backward. Two bytes a number.
  assert moved[False]["all-reduce"] == (1 + 2 * 5) * 2 * rows
  assert moved[True]["reduce-scatter"] >= 2 * rows
  assert moved[True].get("all-reduce", 0) < rows / 8


@pytest.mark.parametrize(("remat", "kernels"), [("blocks", 3), ("attention", 2)])
def test_what_heads_have_read_is_not_computed_again(remat, kernels):
  """The kernels of a layer: forward, the gradients, and forward again unless it is kept."""
  text, _ = gradient_of_hidden({"data": 4, "fsdp": 1, "model": 1}, remat=remat)
  assert text.count('custom_call_target="tpu_custom_call"') == kernels


def gradient_of_hidden(mesh: dict[str, int], **changes) -> tuple[str, list]:
  """The program of a gradient for four chips, and its collectives."""
  settings_of_run = {"dtype": "bfloat16", "stream": "bfloat16", "remat": "blocks"} | changes
  config = llama.LlamaConfig(256, 256, width=512, depth=2, heads=4, kv_heads=4, mlp=1024)
  with aot.on(chips.pod("v5e:2x2"), mesh, True):
    lm = llama.llama(dataclasses.replace(config, **settings_of_run))
    tokens = wiring.rows_of((4, 256), jnp.int32)
    valid = wiring.rows_of((4, 256), jnp.bool_)
    loss = lambda params, tokens, valid: lm.hidden(params, tokens, valid).sum()
    lowered = jax.jit(jax.grad(loss)).lower(programs.parameters(lm), tokens, valid)
    text = lowered.compile().as_text()
  return text, collectives.read(text, mesh)


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_a_large_product_is_predicted_near_the_peak(topology):
  """The clock that follows from the peak is the one that the compiler's cycles are of.

  8192 x 8192 x 8192 on one device takes from 1 to 1.5 times its seconds at the peak.
  """
  pod = chips.pod(topology)
  mesh = chips.mesh("", pod)
  with aot.on(pod, mesh, True):
    whole = jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.P())
    x = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=whole)
    text = jax.jit(jnp.dot).lower(x, x).compile().as_text()
    machine = cycles.machine(pod, aot.places(pod, mesh))
  seconds = cycles.predict(text, mesh, {}, machine).total
  assert 1 < seconds / (2 * 8192**3 / pod.chip.flops) < 1.5


def test_a_compiled_stage_has_a_prediction():
  """It takes longer than its products at the peak, and waits for links."""
  (row,) = compiled("sft:tiny", Options("v5e:2x2", "fsdp=4"))["programs"]
  predicted = row["predicted"]
  assert predicted["by"] == "cycles"
  assert predicted["step"] > row["seconds"]["compute"]
  assert predicted["links"] > 0 and predicted["unknown"] == 0
