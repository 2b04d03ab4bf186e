"""The style sheet of the report: every colour of the page and of its charts, for light and dark."""

from __future__ import annotations

from greedynas_fast.stages.report.heatmap import HEAT_STEPS

GENERATION_STEPS = 9  # classes g0 (first generation) .. g9 (last)

_VARIABLES = """
:root{color-scheme:light dark;
--page:#f7f7f4;--card:#ffffff;--ink:#1f2328;--soft:#5d646c;--line:#e0e0da;--grid:#ecece7;--code:#f2f2ee;
--c1:#2b6cb0;--c2:#cf6f1e;--c3:#1f8f72;--c4:#7d57b2;--c5:#bf3f66;--c6:#807a17;
--zero:#f3f3ef;--positive:#1d5fa8;--negative:#c2571a;--early:#cfdceb;--late:#123f73;--strong:#ffffff}
@media (prefers-color-scheme:dark){:root{
--page:#16181b;--card:#1e2125;--ink:#e4e6e8;--soft:#9ba3ab;--line:#343940;--grid:#2a2e33;--code:#262a2f;
--c1:#6cabee;--c2:#ee9a52;--c3:#4fc3a1;--c4:#b193e6;--c5:#ee7f9f;--c6:#c8bf4e;
--zero:#2a2e33;--positive:#6cb0f5;--negative:#f0924c;--early:#33485f;--late:#a9d3ff;--strong:#101214}}
"""

_PAGE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:30px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:20px;margin:0 0 4px;letter-spacing:-.005em}
h3{font-size:15px;margin:26px 0 8px}
p{margin:6px 0 14px;max-width:96ch}
.lead,.soft{color:var(--soft)}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:22px 24px 24px;margin-top:22px}
section>p:first-of-type{color:var(--soft)}
nav{margin:18px 0 0;display:flex;flex-wrap:wrap;gap:6px 18px;font-size:14px}
a{color:var(--c1);text-decoration:none}a:hover{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:14px;margin:16px 0 4px}
.tile{border:1px solid var(--line);border-radius:10px;padding:13px 16px}
.tile b{display:block;font-size:27px;line-height:1.25;font-weight:650;letter-spacing:-.01em;white-space:nowrap}
.tile span{display:block;color:var(--soft);font-size:13.5px;line-height:1.4}
.steps{display:flex;flex-wrap:wrap;gap:8px;list-style:none;padding:0;margin:18px 0 0;font-size:14px}
.steps li{border:1px solid var(--line);border-radius:99px;padding:3px 13px}
.steps .done{border-color:var(--c3)}.steps .done::before{content:"✓ ";color:var(--c3);font-weight:700}
.steps .part{border-color:var(--c2)}.steps .none{color:var(--soft);border-style:dashed}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:13px}
code{background:var(--code);border-radius:4px;padding:1px 5px;overflow-wrap:anywhere}
pre{background:var(--code);border-radius:8px;padding:13px 16px;margin:10px 0 0;overflow-x:auto;line-height:1.6}
pre.copy{user-select:all;-webkit-user-select:all;white-space:pre-wrap;overflow-wrap:anywhere}
details{margin-top:14px}details summary{cursor:pointer;color:var(--c1);font-size:14.5px}
.missing{border:1px dashed var(--line);border-radius:8px;padding:11px 15px;margin:12px 0 0;color:var(--soft)}
.warning{border-left:3px solid var(--c2);padding:4px 14px;margin:14px 0 0}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:22px 30px;margin-top:14px;
align-items:end}
.beside{display:flex;flex-wrap:wrap;gap:8px 40px;align-items:flex-start}
.beside .matrix{flex:1 1 480px;min-width:0}.beside>div{flex:0 1 auto}.beside h3{margin-top:8px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;min-width:min(100%,380px);font-size:14px;margin-top:8px;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;color:var(--soft);font-size:13px}
th,td{padding:6px 20px 6px 0;border-bottom:1px solid var(--line);vertical-align:baseline}
th.n,td.n{text-align:right;white-space:nowrap}
tbody tr:last-child td{border-bottom:0}td code{white-space:nowrap}
"""

_CHARTS = """
figure{margin:0;min-width:0}
figcaption{font-size:14px;font-weight:600;margin-bottom:2px}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:13px;color:var(--soft);margin:2px 0 4px}
.legend span{display:inline-flex;align-items:center;gap:6px}
.legend i{width:14px;height:3px;border-radius:2px;background:currentColor;flex:none}
.legend i.box{height:12px;border-radius:3px}
.legend i.ramp{width:54px;height:10px;background:linear-gradient(90deg,var(--early),var(--late))}
.legend i.scale{width:120px;height:10px;background:linear-gradient(90deg,var(--negative),var(--zero),var(--positive))}
.legend i.ring{width:12px;height:12px;border-radius:50%;background:none;border:3px solid var(--c5)}
svg{display:block;width:100%;height:auto}
svg text{font-family:inherit;fill:var(--ink)}
svg .tick{font-size:11.5px;fill:var(--soft)}svg .name{font-size:12px;fill:var(--soft)}
svg .note{font-size:11.5px;fill:var(--soft)}
.mid{text-anchor:middle}.end{text-anchor:end}
svg .grid{stroke:var(--grid)}svg .axis{stroke:var(--line)}
svg .mark{stroke:var(--soft);stroke-dasharray:4 4;opacity:.75}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.line.faint{stroke-width:1;opacity:.3}
.front{fill:none;stroke:var(--c2);stroke-width:1.8;stroke-linejoin:round}
circle.on{stroke:var(--c2);stroke-width:1.8}
circle.out{opacity:.45}
circle.ring{fill:none;stroke:var(--c5);stroke-width:3}
.heat .cell{font-size:10px;text-anchor:middle}.heat .cell.strong{fill:var(--strong)}
.heat.bare{shape-rendering:crispEdges;border-radius:4px}
.matrix{max-width:640px;margin:10px 0 4px}
.smalls{display:grid;grid-template-columns:repeat(auto-fill,minmax(124px,1fr));gap:14px 16px;margin-top:12px}
.smalls div{font-size:12.5px;color:var(--soft)}
.hx{fill:var(--card)}
.net{min-width:820px;margin-top:4px}
.net .label{font-size:13px}.net .small{font-size:12px;fill:var(--soft)}
.net .stage{font-size:11.5px;fill:var(--soft);letter-spacing:.03em}
.net .strong{font-weight:600}.net .rule{stroke:var(--line)}.net .wire{stroke:var(--line);stroke-width:2}
.net .skip{fill:none;stroke:var(--soft);stroke-dasharray:3 3;stroke-width:1.3}
.net .fixed{fill:var(--code);stroke:var(--line)}
.net .bar{fill:var(--soft);opacity:.42}
.net .se{fill:var(--card);stroke:var(--c5);stroke-width:2}.net .setext{font-size:8.5px;font-weight:700;fill:var(--c5)}
.k0{fill:color-mix(in oklab,var(--hue) 42%,var(--card))}.k1{fill:color-mix(in oklab,var(--hue) 68%,var(--card))}
.k2{fill:var(--hue)}
@media print{body{background:#fff}section{break-inside:avoid-page}}
"""


def style_sheet() -> str:
    """The CSS of the page; its text never varies."""
    rules = [_VARIABLES, _PAGE, _CHARTS]
    for slot in range(1, 7):
        colour = f"var(--c{slot})"
        rules.append(
            f".s{slot}{{stroke:{colour}}}.f{slot}{{fill:{colour}}}"
            f".b{slot}{{background:{colour}!important;color:{colour}}}.hue{slot}{{--hue:{colour}}}"
        )
    for step in range(HEAT_STEPS + 1):
        share = 100 * step // HEAT_STEPS
        for sign, end in (("", "positive"), ("-", "negative")):
            rules.append(f".h{sign}{step}{{fill:color-mix(in oklab,var(--{end}) {share}%,var(--zero))}}")
    for step in range(GENERATION_STEPS + 1):
        share = 100 * step // GENERATION_STEPS
        rules.append(f".g{step}{{fill:color-mix(in oklab,var(--late) {share}%,var(--early))}}")
    return "".join(rules)
