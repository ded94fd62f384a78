"""`instructjax export`: a trained model as a folder that transformers and vLLM open."""

from __future__ import annotations

import argparse

from instructjax.commands.options import Fields, add_push, check_push, prepare_jax, push


def arguments(command: argparse.ArgumentParser) -> None:
  """The options of `instructjax export`."""
  source = "the directory of a run, a .gguf file or a model folder"
  command.add_argument("--model", required=True, help=source)
  command.add_argument("--out", required=True, metavar="FOLDER")
  weights = "of PPO; default the average where there is one"
  command.add_argument("--weights", default="", choices=["ema", "raw"], help=weights)
  command.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
  command.add_argument("--tokenizer", default="", help="another than the model's own")
  add_push(command)


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Writes the folder, prints its path, and uploads it where that is asked for."""
  check_push(args)
  prepare_jax()
  from instructjax.stages.export import export

  folder = export(
    args.model, args.out, weights=args.weights, dtype=args.dtype, tokenizer=args.tokenizer
  )
  print(folder)
  push(args, folder)
