"""A plan as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from instructjax.plan import chips


def gb(n: float | None) -> str:
  return "?" if n is None else f"{n / 1e9:,.2f}" if n >= 5e6 else f"{n / 1e9:.2g}"


def time(seconds: float) -> str:
  return f"{1000 * seconds:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def verdict(found: Mapping[str, Any] | None) -> str:
  """Peak of limit and whether it fits."""
  if found is None:
    return "-"
  if found["peak"] is None:
    return "refused"
  return (
    f"{gb(found['peak'])} of {gb(found['limit'])} {'fits' if found['fits'] else 'DOES NOT FIT'}"
  )


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
  """The whole plan."""
  console = console or Console(width=132, highlight=False)
  by = (
    "compiled ahead of time, nothing was run"
    if result["compiled"]
    else f"by arithmetic ({result['why_not']})"
  )
  slices = f" x {result['slices']} slices" if result["slices"] > 1 else ""
  console.print(
    f"{result['stage']} {result['model']} on {result['topology']}{slices}: {result['devices']} "
    "devices, "
    f"mesh {chips.written(result['mesh'])}, {by}"
  )
  rows = result["programs"]
  table = Table("GB on one device", *[row["program"] for row in rows])
  for name in ("params", "optimizer", "ema", "frozen", "other", "kv_cache"):
    if any(row["memory"][name] for row in rows):
      table.add_row(name.replace("_", " "), *[gb(row["memory"][name]) for row in rows])
  if result["compiled"]:
    table.add_row("temp, compiler", *[gb(row["compiled"].get("temp")) for row in rows])
    table.add_row("peak, compiler", *[verdict(row["compiled"]) for row in rows])
  table.add_row("temp, by arithmetic", *[gb(row["arithmetic"]["temp"]) for row in rows])
  table.add_row("peak, by arithmetic", *[verdict(row["arithmetic"]) for row in rows])
  if result["compiled"]:
    table.add_row("arithmetic / compiler", *[_apart(row["apart"]) for row in rows])
  console.print(table)
  table = Table("bounds of one call", *[row["program"] for row in rows])
  table.add_row("FLOP, all devices", *[f"{row['flops']:.3g}" for row in rows])
  table.add_row("weights read, GB a device", *[gb(row["weight_bytes"]) for row in rows])
  for name in ("compute", "memory", "links"):
    table.add_row(f"{name}", *[time(row["seconds"][name]) for row in rows])
  table.add_row("at least", *[f"{time(row['seconds']['step'])} ({row['bound']})" for row in rows])
  table.add_row("MFU at most", *[f"{100 * row['mfu']:.0f} %" for row in rows])
  table.add_row("tokens/s at most", *[f"{row['tokens_per_s']:,.0f}" for row in rows])
  table.add_row("calls in the run", *[f"{row['calls']:,}" for row in rows])
  console.print(table)
  _collectives(console, rows)
  console.print(
    f"whole run: at least {result['hours']:.2f} hours, {result['chip_hours']:,.0f} chip-hours"
  )
  if result["fits"]:
    console.print("everything fits")


def _apart(value: float | None) -> str:
  return "-" if value is None else f"{100 * value:+.0f} %"


def _collectives(console: Console, rows: list[Mapping[str, Any]]) -> None:
  table = Table("program", "collective", "axes", "times", "payload GB", "found by")
  for row in rows:
    compiled = row["compiled"] and not row["compiled"]["refused"]
    for c in (row["compiled"] if compiled else row["arithmetic"])["collectives"][:6]:
      by = "compiler" if compiled else "arithmetic"
      table.add_row(
        row["program"], c["kind"], ",".join(c["axes"]), f"{c['count']:,.0f}", gb(c["bytes"]), by
      )
  if table.row_count:
    console.print(table)


def show_search(result: Mapping[str, Any], console: Console | None = None, count: int = 8) -> None:
  """The best meshes with the flags to use."""
  console = console or Console(width=132, highlight=False)
  table = Table(
    "flags",
    "GB",
    "fits",
    "s at least",
    "compiler: GB",
    "s at least",
    title="by arithmetic, then the compiler",
  )
  for one in result["meshes"][:count]:
    flags = f"--mesh={chips.written(one['mesh'])}\n  {one['flags']}"
    plan = one.get("plan")
    peaks = [row["compiled"]["peak"] for row in plan["programs"] if row["compiled"]] if plan else []
    peak = (
      f"{gb(max(p or 0 for p in peaks))} {'fits' if plan['fits'] else 'NO'}"
      if plan and peaks
      else "-"
    )
    again = (
      f"{sum(row['seconds']['step'] for row in plan['programs']):.3f}" if plan and peaks else "-"
    )
    least = "-" if one["seconds"] is None else f"{one['seconds']:.3f}"
    table.add_row(flags, gb(one["peak"]), "yes" if one["fits"] else "no", least, peak, again)
  console.print(table)
  rest = len(result["meshes"]) - count
  console.print(
    f"{len(result['meshes'])} meshes tried{f', {rest} more not shown' if rest > 0 else ''}"
  )
