"""A plan as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from instructjax.plan import chips

Row = Mapping[str, Any]  # of one program, as `estimate.program_report` returns it
WIDTH = 132  # columns of the terminal
COLLECTIVES = 6  # the largest ones of a program that are printed


# Numbers as text


def gb(n: float | None) -> str:
  """Bytes in GB: two decimals from 5 MB on, two digits below, and "?" where they are unknown."""
  if n is None:
    return "?"
  if n >= 5e6:
    return f"{n / 1e9:,.2f}"
  return f"{n / 1e9:.2g}"


def time(seconds: float) -> str:
  """Seconds with their unit, in ms below a second."""
  if seconds < 1:
    return f"{1000 * seconds:.2f} ms"
  return f"{seconds:.2f} s"


def verdict(memory: Mapping[str, Any] | None) -> str:
  """The peak, its limit, and whether it fits."""
  if memory is None:
    return "-"
  if memory["peak"] is None:
    return "refused"
  fits = "fits" if memory["fits"] else "DOES NOT FIT"
  return f"{gb(memory['peak'])} of {gb(memory['limit'])} {fits}"


def _percent(share: float | None) -> str:
  """A share in percent with its sign."""
  if share is None:
    return "-"
  return f"{100 * share:+.0f} %"


# The plan of one mesh


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
  """Prints the whole plan."""
  console = console or Console(width=WIDTH, highlight=False)
  rows = result["programs"]
  console.print(_headline(result))
  console.print(_memory_table(rows, compiled=result["compiled"]))
  console.print(_time_table(rows))
  predictions = _prediction_table(rows)
  if predictions.row_count:
    console.print(predictions)
  collectives = _collectives_table(rows)
  if collectives.row_count:
    console.print(collectives)
  console.print(
    f"whole run: at least {result['hours']:.2f} hours, {result['chip_hours']:,.0f} chip-hours"
    + _expected(result)
  )
  if result["lengths"] != "full":
    console.print(_at_lengths(result))
  if result["fits"]:
    console.print("everything fits")


def _expected(result: Mapping[str, Any]) -> str:
  """The hours of the run as predicted, where there is a prediction."""
  hours = result["predicted_hours"]
  return f"; predicted {hours:.2f} hours" if hours else ""


def _at_lengths(result: Mapping[str, Any]) -> str:
  """What drawn lengths cost next to full ones: FLOP of a step of the run, and bytes of decoding."""
  rows = result["programs"]
  full = sum(row["flops"] for row in rows)
  flops = sum(row["at_lengths"]["flops"] for row in rows)
  line = (
    f"at {result['lengths']} lengths: {flops:.3g} FLOP an iteration, at full length "
    f"{full:.3g} ({full / flops:.1f}x)"
  )
  for row in rows:
    before, after = row["decode_step_bytes"], row["at_lengths"]["decode_step_bytes"]
    if before and after:
      line += (
        f"; {gb(after)} GB a decode step on a device, at full length {gb(before)} "
        f"({before / after:.1f}x)"
      )
  return line


def _headline(result: Mapping[str, Any]) -> str:
  """The first line: what is planned, where, and how."""
  method = f"by arithmetic ({result['why_not']})"
  if result["compiled"]:
    method = "compiled ahead of time, nothing was run"
  slices = f" x {result['slices']} slices" if result["slices"] > 1 else ""
  return (
    f"{result['stage']} {result['model']} on {result['topology']}{slices}: {result['devices']} "
    f"devices, mesh {chips.written(result['mesh'])}, {method}"
  )


def _memory_table(rows: Sequence[Row], compiled: bool) -> Table:
  """Memory of one device: a column a program."""
  table = _table_of_programs("GB on one device", rows)

  def add(label: str, cell: Callable[[Row], str]) -> None:
    table.add_row(label, *[cell(row) for row in rows])

  # What no program holds has no row.
  for kind in ("params", "optimizer", "ema", "frozen", "other", "kv_cache"):
    sizes = [row["memory"][kind] for row in rows]
    if any(sizes):
      table.add_row(kind.replace("_", " "), *[gb(size) for size in sizes])
  if compiled:
    add("temp, compiler", lambda row: gb(row["compiled"].get("temp")))
    add("peak, compiler", lambda row: verdict(row["compiled"]))
  add("temp, by arithmetic", lambda row: gb(row["arithmetic"]["temp"]))
  add("peak, by arithmetic", lambda row: verdict(row["arithmetic"]))
  if compiled:
    # How far arithmetic is from the compiler, which is right.
    add("arithmetic / compiler", lambda row: _percent(row["apart"]))
  return table


def _time_table(rows: Sequence[Row]) -> Table:
  """What one call costs at least: a column a program."""
  table = _table_of_programs("bounds of one call", rows)

  def add(label: str, cell: Callable[[Row], str]) -> None:
    table.add_row(label, *[cell(row) for row in rows])

  add("FLOP, all devices", lambda row: f"{row['flops']:.3g}")
  add("weights read, GB a device", lambda row: gb(row["weight_bytes"]))
  add("compute", lambda row: time(row["seconds"]["compute"]))
  add("memory", lambda row: time(row["seconds"]["memory"]))
  add("links", lambda row: time(row["seconds"]["links"]))
  # The largest of the three, and which of them it is.
  add("at least", lambda row: f"{time(row['seconds']['step'])} ({row['bound']})")
  add("MFU at most", lambda row: f"{100 * row['mfu']:.0f} %")
  add("tokens/s at most", lambda row: f"{row['tokens_per_s']:,.0f}")
  add("attention of it", lambda row: f"{row['attention_flops']:.3g}")
  add("calls in the run", lambda row: f"{row['calls']:,}")
  return table


# What a prediction follows from, by the name in a report.
BY = {
  "cycles": "predicted by the compiler's cycles",
  "shares": "predicted by shares of the peaks (docs/scaling.md)",
}


def _prediction_table(rows: Sequence[Row]) -> Table:
  """What one call is expected to take: a column a program, and no rows where nothing is known."""
  by = rows[0]["predicted"]["by"]
  table = _table_of_programs(BY.get(by, ""), rows)
  if not all(row["predicted"]["by"] for row in rows):
    return table

  def add(label: str, cell: Callable[[Row], str]) -> None:
    table.add_row(label, *[cell(row["predicted"]) for row in rows])

  add("compute", lambda predicted: time(predicted["compute"]))
  if by == "cycles":
    add("attention kernels", lambda predicted: time(predicted["kernels"]))
    add("waiting for links", lambda predicted: time(predicted["links"]))
    add("waiting for memory", lambda predicted: time(predicted["memory"]))
  else:
    add("memory", lambda predicted: time(predicted["memory"]))
    add("links", lambda predicted: time(predicted["links"]))
  add("a call", lambda predicted: time(predicted["step"]))
  add("MFU", lambda predicted: f"{100 * predicted['mfu']:.0f} %")
  return table


def _table_of_programs(title: str, rows: Sequence[Row]) -> Table:
  """An empty table with a column of labels and one for each program."""
  return Table(title, *[row["program"] for row in rows])


def _collectives_table(rows: Sequence[Row]) -> Table:
  """The largest collectives of each program, by the compiler where it compiled the program."""
  table = Table(
    "program",
    "collective",
    "axes",
    "times",
    "payload GB",
    "found by",
  )
  for row in rows:
    source = row["arithmetic"]
    source_name = "arithmetic"
    if row["compiled"] and not row["compiled"]["refused"]:
      source = row["compiled"]
      source_name = "compiler"
    for collective in source["collectives"][:COLLECTIVES]:
      table.add_row(
        row["program"],
        collective["kind"],
        ",".join(collective["axes"]),
        f"{collective['count']:,.0f}",
        gb(collective["bytes"]),
        source_name,
      )
  return table


# A search


def show_search(
  result: Mapping[str, Any],
  console: Console | None = None,
  count: int = 8,
) -> None:
  """Prints the best meshes with the flags to use."""
  console = console or Console(width=WIDTH, highlight=False)
  table = Table(
    "flags",
    "GB",
    "fits",
    "s at least",
    "compiler: GB",
    "s at least",
    title="by arithmetic, then the compiler",
  )
  # They come sorted: what fits first, then the fastest.
  meshes = result["meshes"]
  for candidate in meshes[:count]:
    seconds = candidate["seconds"]
    compiled_peak, compiled_seconds = _compiled_cells(candidate.get("plan"))
    table.add_row(
      f"--mesh={chips.written(candidate['mesh'])}\n  {candidate['flags']}",
      gb(candidate["peak"]),
      "yes" if candidate["fits"] else "no",
      "-" if seconds is None else f"{seconds:.3f}",
      compiled_peak,
      compiled_seconds,
    )
  console.print(table)
  hidden = len(meshes) - count
  more = f", {hidden} more not shown" if hidden > 0 else ""
  console.print(f"{len(meshes)} meshes tried{more}")


def _compiled_cells(plan: Mapping[str, Any] | None) -> tuple[str, str]:
  """Peak and seconds by the compiler, of a mesh that was among the best few."""
  rows = plan["programs"] if plan else []
  compiled = [row["compiled"] for row in rows if row["compiled"]]
  if plan is None or not compiled:
    return "-", "-"
  # A refused program may have no peak.
  peak = max(memory["peak"] or 0 for memory in compiled)
  fits = "fits" if plan["fits"] else "NO"
  seconds = sum(row["seconds"]["step"] for row in rows)
  return f"{gb(peak)} {fits}", f"{seconds:.3f}"
