"""The whole method on real input: SmolLM2-135M, sentences rated by people, SFT, reward model, PPO
and PPO-ptx.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

from instructjax.data.batches import pipeline
from instructjax.data.records.records import fingerprint
from instructjax.quickstart import evaluation
from instructjax.quickstart.training import improve, rank, tune, widen
from instructjax.quickstart.world import (
  Quickstart,
  leave,
  one_line,
  open_world,
  parts,
  stage,
  with_stem,
)
from instructjax.rollout import Sampling
from instructjax.runs import report, writers
from instructjax.settings.quickstart import FAST
from instructjax.system import memory

__all__ = ["FAST", "Quickstart", "main", "one_line"]


def main(config: Quickstart, workdir: str | Path, sinks: tuple[str, ...] = ()) -> Path:
  """Runs everything, prints the table, and writes results.json, samples.jsonl and report.html;
  returns the report.

  Run again with the same directory and settings, it goes on where it stopped.  Raises UserError
  where the model cannot be fetched or the directory holds a run with other settings.
  """
  workdir = Path(workdir)
  with writers.open_run(
    workdir, dataclasses.asdict(config), seed=config.seed, sinks=sinks
  ) as writer:
    start = time.perf_counter()
    world = open_world(config, workdir, writer)
    c, length = config, config.prompt + config.response
    writers.note(workdir, fingerprints={"demonstrations": fingerprint(world.tasks.demonstrations)})
    with stage(world, "set-up"):
      rows = pipeline.demonstrations(
        world.tasks.demonstrations, world.tokenizer, prompt=c.prompt, response=c.response
      )
      demos = with_stem(world, pipeline.pad_demonstrations(rows, length=length))
      windows = pipeline.text(world.tasks.text_train, world.tokenizer, length=c.text)[: c.text_rows]
      text = with_stem(world, pipeline.pad_demonstrations(windows, length=c.text))
      nll = evaluation.text_nll(world, c.text_valid)
    with stage(world, "sft"):
      sft_params = tune(world, "sft", demos)
    with stage(world, "rl_init"):
      init = tune(world, "rl_init", demos, widen(text, length))
    with stage(world, "reward"):
      judge = rank(world, "reward", sft_params, world.tasks.comparisons, demos, c.seed)
    with stage(world, "gold"):
      gold = rank(world, "gold", sft_params, world.tasks.gold, demos, c.seed + 1)
    judges = {"reward": judge, "gold": gold}
    sampling = Sampling(
      response=c.response,
      temperature=c.temperature,
      eos=world.tokenizer.eos,
      banned=world.tokenizer.banned,
    )
    policy = parts(world, sampling)
    trained = {"base": world.base, "sft": sft_params}
    for name, mix in (("ppo", None), ("ptx", text)):
      with stage(world, name):
        watch = lambda params: {"eval/pretrain_nll": nll(params)[0]}
        trained[name] = improve(world, name, policy, judges, init, mix, watch, sampling)
    with stage(world, "models"):
      leave(world, {name: trained[name] for name in ("sft", "ppo", "ptx")}, {"reward": judge})
    with stage(world, "evaluation"):
      results = evaluation.evaluate(world, policy, judges, trained, init, nll)
    seconds = json.loads((workdir / "seconds.json").read_text())
    results |= {
      "seconds": seconds | {"total": round(sum(seconds.values()), 1)},
      "wall_s": round(time.perf_counter() - start, 1),
      "peak_rss_gb": round(memory.peak_gb(), 2),
      "seed": c.seed,
    }
    (workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
  page = report.write(workdir)
  evaluation.show(results, page)
  return page
