"""The page's style sheet.

Light and dark by the reader's theme, one column on a phone, light on paper.
"""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1d2430;
  --soft: #5b6675; --line: #dde2e9; --train: #2f6fbf; --val: #c4571b; --other: #2a7f62;
  --mark: #fff3d6; }
@media (prefers-color-scheme: dark) { :root { --page: #14181e; --card: #1d232c; --ink: #e6eaf0;
  --soft: #a0acbb; --line: #343d4a; --train: #6ca8f0; --val: #f0935a; --other: #62c3a0;
  --mark: #3a3320; } }
@media print { :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --soft: #444;
  --line: #ccc; --train: #1f5fae; --val: #b34a10; --other: #1c6b50; --mark: #fff3d6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5; font: 15px/1.5
  system-ui, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC",
  sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 1.5rem; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 1.08rem; margin: 0 0 10px; }
.about { color: var(--soft); margin: 0 0 18px; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px 18px; margin: 0 0 16px; min-width: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px;
  margin: 0 0 16px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 14px; }
.tile b { display: block; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .86rem; }
.grid2 { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; margin: 0 0 16px; }
.grid2 .card { margin: 0; }
svg { display: block; width: 100%; height: auto; }
.narrow { display: none; }
.tick { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.train { stroke: var(--train); } .val { stroke: var(--val); } .other { stroke: var(--other); }
.raw { stroke: var(--train); stroke-width: 1; opacity: .3; }
.limit { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
.dot { stroke: var(--card); stroke-width: 1.5; } .dot.val { fill: var(--val); }
.bar { fill: var(--train); }
.key { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 6px 0 0; padding: 0; list-style: none;
  color: var(--soft); font-size: .88rem; }
.key i { display: inline-block; width: 18px; height: 0; border-top: 3px solid; margin-right: 6px;
  vertical-align: middle; }
.key .train { border-color: var(--train); } .key .val { border-color: var(--val); }
.key .limit { border-top-style: dashed; border-color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: 5px 10px 5px 6px; border-top: 1px solid
  var(--line); overflow-wrap: anywhere; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; }
th { font-weight: 500; } td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
.answers td:first-child { width: 116px; }
.best { background: var(--mark); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.prompt { font-weight: 600; margin: 0 0 4px; }
.sample + .sample { margin-top: 18px; }
.none, .note { color: var(--soft); } .note { font-size: .88rem; margin: 8px 0 0; }
summary { cursor: pointer; font-size: 1.08rem; font-weight: 700; }
details[open] summary { margin-bottom: 10px; }
footer { color: var(--soft); font-size: .85rem; }
@media (max-width: 640px) { main { padding: 14px 10px 32px; } .grid2 { grid-template-columns: 1fr; }
  .card { padding: 12px; } .wide { display: none; } .narrow { display: block; }
  .tiles { grid-template-columns: 1fr 1fr; } .answers tr, .answers td,
  .answers td:first-child { display: block; width: auto; }
  .answers td + td { border-top: 0; padding-top: 0; } .answers td { padding-left: 6px; } }
@media print { main { max-width: none; padding: 0; } .card, .tile, .sample { break-inside: avoid; }
  body { font-size: 11px; } }
"""
