"""The style of the page."""

# Blue, vermilion and green after Okabe and Ito, for colour-blind readers. The shapes of the
# marks differ as well.
STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c1f23; --soft: #5b626b; --line: #d9dde2;
  --grid: #eceff2; --panel: #f6f7f9; --base: #6b6b6b; --sft: #0072b2; --ppo: #c65200;
  --ptx: #00795a; --rm: #94447a; --gold: #946300; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --text: #e4e7ea; --soft: #9aa3ad;
  --line: #3a4148; --grid: #252a2f; --panel: #1c2024; --base: #a9a9a9; --sft: #56b4e9;
  --ppo: #ff8f4a; --ptx: #3cc9a3; --rm: #e09cc4; --gold: #e8b33c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word; -webkit-text-size-adjust: 100%; }
main { max-width: 1152px; margin: 0 auto; padding: 24px 16px 64px; }
header p, section > p, .caveats { max-width: 46rem; }
.run { margin: 0; color: var(--soft); font-size: 14px; }
h1 { margin: 4px 0 12px; max-width: 46rem; font-size: clamp(22px, 4.5vw, 30px); line-height: 1.25;
  font-weight: 650; text-wrap: balance; }
h2 { margin: 48px 0 4px; font-size: 20px; line-height: 1.3; }
h3 { margin: 20px 0 4px; font-size: 16px; }
p { margin: 6px 0; }
nav { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 16px; font-size: 14px; }
a { color: var(--sft); text-underline-offset: 2px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr));
  margin: 20px 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.facts div { padding: 12px 16px; box-shadow: 0 0 0 1px var(--line); }
.facts dt { color: var(--soft); font-size: 13px; }
.facts dd { margin: 0; font-size: 24px; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts small { display: block; color: var(--soft); font-size: 13px; font-weight: 400;
  line-height: 1.4; }
.caveats { margin: 16px 0; padding: 10px 16px; background: var(--panel);
  border-left: 3px solid var(--soft); font-size: 14px; }
.caveats ul { margin: 4px 0; padding-left: 18px; }
.box { overflow-x: auto; margin: 12px 0; border: 1px solid var(--line); border-radius: 8px; }
table { width: 100%; border-collapse: collapse; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--grid); }
tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-size: 13px; font-weight: 500; line-height: 1.35;
  vertical-align: bottom; }
tr > :first-child { position: sticky; left: 0; text-align: left; background: var(--page);
  font-weight: 600; }
td small { display: block; color: var(--soft); font-size: 12px; }
.plain td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.plain tr > :first-child { position: static; width: 1%; font-weight: 500; white-space: nowrap; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr));
  gap: 24px 32px; margin-top: 16px; align-items: start; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 14px; font-weight: 600; }
figure > svg { display: block; width: 100%; max-width: 440px; height: auto; }
.note, .legend { margin: 2px 0; color: var(--soft); font-size: 13px; }
.advice { margin: 4px 0; padding: 6px 10px; border-left: 3px solid var(--ppo);
  background: var(--panel); font-size: 13px; }
.legend { display: flex; flex-wrap: wrap; gap: 0 14px; }
.key { width: 22px; height: 10px; margin-right: 5px; }
svg { overflow: visible; }
svg text { fill: var(--text); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .tick, svg .label { fill: var(--soft); }
svg .row { font-size: 11.5px; }
.gridline { stroke: var(--grid); }
.axis { stroke: var(--line); }
.thread { stroke: var(--line); stroke-dasharray: 1 3; }
.reference { stroke: var(--soft); stroke-dasharray: 4 3; }
.curve { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
.curve.faint { stroke-width: 1; opacity: .35; }
.curve.dashed { stroke-width: 1.3; stroke-dasharray: 4 3; opacity: .7; }
.bar { stroke: var(--c); stroke-width: 1.8; }
.mark { fill: var(--c); }
.mark.hollow, .mark.dashed { fill: var(--page); stroke: var(--c); stroke-width: 1.2; }
.dashed { --c: var(--soft); }
.fill { fill: var(--sft); opacity: .75; }
.base { --c: var(--base); } .sft { --c: var(--sft); } .ppo { --c: var(--ppo);
  } .ptx { --c: var(--ptx); }
.rm { --c: var(--rm); } .gold { --c: var(--gold); }
.sample { margin: 12px 0; padding: 12px 16px; border: 1px solid var(--line); border-radius: 8px; }
.sample > p { margin: 0; font-weight: 600; white-space: pre-wrap; }
.sample > p small { color: var(--soft); font-weight: 400; }
.sample dl { display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 210px), 1fr)); gap: 10px 24px;
  margin: 8px 0 0; }
.sample dt { color: var(--c); font-size: 13px; font-weight: 600; }
.sample dt small { color: var(--soft); font-weight: 400; }
.sample dd { margin: 0; font-size: 14px; white-space: pre-wrap; }
code { font-size: 13px; }
details { margin: 16px 0; }
summary { cursor: pointer; font-size: 14px; font-weight: 600; }
.terms { font-size: 13px; color: var(--soft); max-width: 60rem; }
@media print { details > * { display: block; } .box { overflow: visible; } }
"""
