"""Writes the files of the world.

python experiments/paper/write_world.py --shared --out=data/world  # the corpus, random models
python experiments/paper/write_world.py --seed=10 --out=data/world10
"""

from __future__ import annotations

import argparse
from pathlib import Path

from english import files


def main(words: list[str] | None = None) -> None:
  """Writes what the arguments ask for."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=Path, required=True, help="the folder")
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--seed", type=int, help="the seed of everything but the corpus")
  what.add_argument("--shared", action="store_true", help="the corpus and the models of all seeds")
  args = parser.parse_args(words)
  if args.shared:
    files.write_corpus(args.out)
  else:
    files.write(args.out, args.seed)


if __name__ == "__main__":
  main()
