"""The look of the HTML page."""

STYLE = """
:root { --ground:#f4f6f8; --surface:#ffffff; --ink:#1b2128; --muted:#5a6572; --line:#dfe4ea; --accent:#0072b2 }
@media (prefers-color-scheme: dark) {
  :root { --ground:#0e1216; --surface:#171c22; --ink:#e8edf2; --muted:#9fabb8; --line:#2c343d; --accent:#56b4e9 }
}
* { box-sizing:border-box }
body { margin:0; background:var(--ground); color:var(--ink); font:15px/1.55 system-ui, sans-serif;
  -webkit-text-size-adjust:100% }
header, main { max-width:1080px; margin:0 auto; padding:0 20px }
header { padding-top:36px }
main { padding-bottom:48px }
h1 { margin:0; font-size:28px; line-height:1.2; letter-spacing:-.01em; overflow-wrap:anywhere }
h2 { margin:0 0 4px; font-size:19px }
h3 { margin:22px 0 8px; font-size:15px; overflow-wrap:anywhere }
.facts, .intro { margin:6px 0 16px; color:var(--muted) }
.findings { max-width:78ch; margin:20px 0 }
nav { display:flex; flex-wrap:wrap; gap:6px 18px; margin-bottom:20px; font-size:14px }
a { color:var(--accent); text-underline-offset:3px }
.tiles { display:grid; grid-template-columns:repeat(auto-fit, minmax(190px, 1fr)); gap:12px; margin:0 }
.tile, section { background:var(--surface); border:1px solid var(--line); border-radius:12px }
.tile { padding:14px 16px }
.tile dt { color:var(--muted); font-size:13px }
.tile dd { margin:0 }
.tile b { display:block; font-size:30px; font-weight:650; line-height:1.25; font-variant-numeric:tabular-nums }
.tile span { color:var(--muted); font-size:13px }
section { padding:22px 24px 24px; margin-bottom:18px }
figure { margin:0 }
img { display:block; width:100%; height:auto }
.charts { display:flex; flex-wrap:wrap; gap:20px 28px; margin-bottom:20px }
.charts figure { flex:1 1 calc(var(--w) * 82px); max-width:calc(var(--w) * 122px); min-width:0 }
.charts figcaption { margin-bottom:4px; font-weight:600; font-size:14px; overflow-wrap:anywhere }
.tables { display:flex; flex-wrap:wrap; gap:18px 36px; align-items:flex-start }
.tables > * { max-width:100% }
details { flex:1 1 100% }
summary { cursor:pointer; color:var(--accent); font-size:14px; padding:4px 0 }
.scroll { overflow-x:auto }
table { border-collapse:collapse; font-size:14px; font-variant-numeric:tabular-nums }
caption { text-align:left; color:var(--muted); font-size:13px; padding-bottom:4px }
th, td { padding:5px 18px 5px 0; text-align:left; vertical-align:top; border-bottom:1px solid var(--line);
  overflow-wrap:anywhere }
th { font-weight:600; white-space:nowrap }
td:first-child { overflow-wrap:break-word }  /* words of names stay whole beside long values */
.n { text-align:right; white-space:nowrap }
tbody tr:last-child td { border-bottom:0 }
pre { overflow-x:auto; margin:8px 0 0; padding:14px; border-radius:8px; background:var(--ground); font-size:12.5px }
.pictures { display:grid; grid-template-columns:repeat(auto-fill, minmax(min(100%, 290px), 1fr)); gap:18px;
  align-items:start }
.pictures img { border-radius:8px }
.pictures figcaption { padding-top:6px; font-size:14px; overflow-wrap:anywhere }
.words { margin:2px 0 8px; font-size:14px; line-height:1.7; overflow-wrap:anywhere }
mark { padding:1px 5px; border-radius:4px; background:var(--c); color:#10151a; box-decoration-break:clone;
  -webkit-box-decoration-break:clone }
ul { margin:8px 0 0; padding-left:20px; max-width:78ch }
@media (max-width: 560px) {
  header, main { padding-left:12px; padding-right:12px }
  section { padding:16px 14px 18px }
  h1 { font-size:23px }
  .tiles { grid-template-columns:1fr 1fr }
  .tile { padding:10px 12px }
  .tile b { font-size:24px }
}
@media print { section { break-inside:avoid-page } nav { display:none } }
"""
