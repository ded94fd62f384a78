"""Rebuild instructjax/data/public/tone_ratings.tsv.gz, the human ratings of the quickstart, from
their source.

  python scripts/build_tone_table.py [vaderSentiment-3.3.2.tar.gz]

The source is the sdist of vaderSentiment 3.3.2 (MIT), which holds the data of Hutto and Gilbert
(2014): sentences rated for tone, from -4 to 4, by 14 to 99 people each.  Without a path the
sdist is fetched with pip.  The result is a gzipped table with the columns domain, id, ratings
(one digit a rater: the rating + 4) and text; the 199 tweets whose mean rating differs between
the two files of the source are left out and HTML entities are written as their characters.  The
script checks the sha256 of the source and of the table and writes nothing when either is wrong.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import html
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SDIST = "vaderSentiment-3.3.2.tar.gz"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
TABLE_SHA256 = "dd32aedd1dd7e424025c12175f56bda47449955a4528e687908f00c1dcadd48d"
FILES = {
  "movies": "movieReviewSnippets",
  "tweets": "tweets",
  "amazon": "amazonReviewSnippets",
  "nyt": "nytEditorialSnippets",
}
TARGET = Path(__file__).parent.parent / "instructjax" / "data" / "public" / "tone_ratings.tsv.gz"


def fetch(folder: str) -> bytes:
  """The sdist, through pip."""
  command = [
    sys.executable,
    "-m",
    "pip",
    "download",
    "--no-deps",
    "--no-build-isolation",
    "--no-binary=:all:",
  ]
  subprocess.run([*command, "--dest", folder, "vaderSentiment==3.3.2"], check=True)
  return (Path(folder) / SDIST).read_bytes()


def rows(content: bytes) -> list[list[str]]:
  """The tab-separated lines of one source file."""
  return [line.split("\t") for line in content.decode("utf-8-sig").split("\r\n") if line]


def plain(text: str) -> str:
  """The text without HTML entities, of which some were escaped twice."""
  return html.unescape(html.unescape(text))


def table(sdist: bytes) -> bytes:
  """The whole table, uncompressed."""
  with tarfile.open(fileobj=io.BytesIO(sdist)) as outer:
    inner = outer.extractfile(INNER).read()
  lines = ["domain\tid\tratings\ttext"]
  with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
    for domain, name in FILES.items():
      texts = rows(archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt").read())
      ratings = {
        row[0]: row
        for row in rows(archive.extractfile(f"hutto_ICWSM_2014/{name}_anonDataRatings.txt").read())
      }
      for key, mean, text in texts:
        _, other, _, single = ratings[key]
        if abs(float(mean) - float(other)) < 1e-3:
          digits = "".join(str(rating + 4) for rating in ast.literal_eval(single))
          lines.append("\t".join([domain, key, digits, " ".join(plain(text).split())]))
  return ("\n".join(lines) + "\n").encode()


def build(sdist: bytes, target: Path) -> None:
  """Check the source, make the table, check it and write it."""
  found = hashlib.sha256(sdist).hexdigest()
  if found != SDIST_SHA256:
    raise SystemExit(
      f"the source has sha256 {found}, not {SDIST_SHA256}: give {SDIST} of vaderSentiment 3.3.2"
    )
  content = table(sdist)
  found = hashlib.sha256(content).hexdigest()
  if found != TABLE_SHA256:
    raise SystemExit(
      f"the table has sha256 {found}, not {TABLE_SHA256}: this script and its source disagree"
    )
  target.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))


if __name__ == "__main__":
  if len(sys.argv) > 1:
    build(Path(sys.argv[1]).read_bytes(), TARGET)
  else:
    with tempfile.TemporaryDirectory() as folder:
      build(fetch(folder), TARGET)
  print(f"{TARGET}: {TARGET.stat().st_size} bytes")
