"""The style sheet of the HTML view: light, dark, phone and paper.

Blue and orange are Okabe and Ito's colour-blind safe pair, darkened or lightened until they reach 3:1 on the page
(text: 4.5:1 and more). Colour is never the only sign: the two sides also differ in line style or marker.
"""

STYLE = """
:root{color-scheme:light dark;--page:#fdfdfc;--ink:#1c2126;--soft:#59636e;--rule:#e1e4e8;--strong-rule:#b3bac2;
--id:#0064a4;--ood:#c04d00;--id-fill:rgba(0,100,164,.16);--ood-fill:rgba(192,77,0,.14);--warn:#8a5a00;--warn-page:#fff8e6}
@media screen and (prefers-color-scheme:dark){:root{--page:#14171a;--ink:#e6e8ea;--soft:#a0a9b3;
--rule:#2b3138;--strong-rule:#4d5660;--id:#63b8ee;--ood:#f0a348;--id-fill:rgba(99,184,238,.2);--ood-fill:rgba(240,163,72,.16);--warn:#eebd57;
--warn-page:#25200f}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Noto Sans","Liberation Sans",sans-serif}
main{max-width:68rem;margin:0 auto;padding:clamp(1.5rem,5vw,3.5rem) clamp(1rem,4vw,2rem) 4rem}
h1{font-size:clamp(1.5rem,1.1rem + 1.8vw,2.1rem);line-height:1.2;letter-spacing:-.015em;margin:0 0 .35rem;text-wrap:balance}
h2{font-size:1.2rem;line-height:1.3;letter-spacing:-.005em;margin:3rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;line-height:1.4;margin:1.75rem 0 .25rem}
h1,h2,h3,p,li,.facts td.text{overflow-wrap:anywhere}
p{margin:.25rem 0 .75rem;max-width:42rem}
.soft,figcaption{color:var(--soft);font-size:.9rem}
.lead{font-size:1.15rem;line-height:1.45;font-weight:600;margin:1.75rem 0 .6rem}
ul{margin:.25rem 0 0;padding-left:1.15rem;max-width:42rem}
li{margin:.2rem 0}li::marker{color:var(--soft)}
.warnings{margin:1.75rem 0 0;
padding:.8rem 1.1rem .9rem;border-left:4px solid var(--warn);background:var(--warn-page);border-radius:0 6px 6px 0}
.warnings strong{color:var(--warn)}
nav{margin:2rem 0 0}nav ul{list-style:none;padding:0;max-width:none;display:flex;flex-wrap:wrap;gap:.35rem 1.1rem}
nav li{margin:0}a{color:var(--id);text-underline-offset:.2em}h2{scroll-margin-top:.5rem}
details{margin:.75rem 0 1.25rem}summary{cursor:pointer;color:var(--id);padding:.35rem 0;overflow-wrap:anywhere}
summary:focus-visible,a:focus-visible{outline:2px solid var(--id);outline-offset:3px}
.scroll{overflow-x:auto;margin:.5rem 0 1rem}
.scroll:focus-visible{outline:2px solid var(--id);outline-offset:3px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.92rem;line-height:1.4;font-variant-numeric:tabular-nums}
th,td{padding:.42rem 0 .42rem 1.25rem;text-align:left;vertical-align:baseline;border-bottom:1px solid var(--rule)}
th:first-child{padding-left:0;padding-right:.5rem}
thead th{color:var(--soft);font-weight:500;font-size:.85rem;border-bottom-color:var(--strong-rule);vertical-align:bottom}
tbody th{font-weight:400;min-width:8.5rem;overflow-wrap:break-word}
.num{text-align:right;white-space:nowrap}
thead .num{white-space:normal;min-width:5.6rem}.facts thead .num{min-width:0}
.ci{color:var(--soft);font-size:.92em;font-weight:400}
.strong th,.strong td{font-weight:650}
.sticky th,.sticky td{padding-left:.8rem}.sticky thead .num{min-width:4.4rem}
.sticky th:first-child{padding-left:0;position:sticky;left:0;background:var(--page)}
.facts{width:auto;min-width:min(100%,30rem)}
code{font:.86em/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;color:var(--soft);white-space:nowrap}
pre{margin:.4rem 0;padding:.6rem .8rem;border:1px solid var(--rule);border-radius:6px}
pre code{white-space:pre-wrap;overflow-wrap:anywhere;color:var(--ink)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:1.75rem 2.5rem;margin:1rem 0 1.5rem}
figure{margin:0;max-width:27rem;break-inside:avoid}
figcaption{margin-bottom:.5rem}figcaption b{display:block;color:var(--ink);font-weight:600}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-family:inherit;font-variant-numeric:tabular-nums}
.tick{font-size:11px;fill:var(--soft)}.name{font-size:11.5px;fill:var(--soft)}
.value{font-size:11px;fill:var(--ink)}.cell{fill:none;stroke:var(--rule);stroke-width:1}
.grid{stroke:var(--rule);stroke-width:1}.axis{stroke:var(--strong-rule);stroke-width:1}
.diagonal{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:4 4}
.band,.fill-id{fill:var(--id-fill)}.fill-ood{fill:var(--ood-fill)}.bar-id{fill:var(--id);opacity:.6}
.solid-id,.dot-id{fill:var(--id)}.solid-ood,.dot-ood{fill:var(--ood)}
.stroke-id,.stroke-ood{fill:none;stroke:var(--id);stroke-width:1.8;stroke-linejoin:round}
.stroke-ood{stroke:var(--ood);stroke-dasharray:5 3}
.stroke-thin{fill:none;stroke:var(--ood);stroke-width:1;opacity:.45}.diagonal{fill:none}
.stroke-tie{fill:none;stroke:var(--soft);stroke-width:1.8}.dot-tie{fill:var(--soft)}.whisker{stroke:var(--id);stroke-width:1}
.whisker-ood{stroke:var(--ood);stroke-width:1}.halo{paint-order:stroke;stroke:var(--page);stroke-width:3px;stroke-linejoin:round}
@media screen and (max-width:40rem){
.words thead{display:none}.words tr{display:block;padding:.55rem 0;border-bottom:1px solid var(--rule)}
.words th,.words td{display:block;padding:0;border:0}.words tbody th{font-weight:600}
.cards thead{display:none}.cards,.cards tbody{display:block;min-width:0}
.cards tr{display:block;padding:.55rem 0;border-bottom:1px solid var(--rule)}
.cards th,.cards td{display:flow-root;padding:.12rem 0;border:0;text-align:right;white-space:normal}
.cards tbody th:first-child{position:static;font-weight:600;text-align:left;overflow-wrap:anywhere}
.cards td::before{content:attr(data-head);float:left;max-width:58%;
margin-right:1.25rem;text-align:left;color:var(--soft);font-weight:400}
.cards th[data-head]::before{content:attr(data-head) ": ";font-weight:400}
.cards td:empty{display:none}}
@media print{@page{margin:16mm}nav,summary{display:none}details::details-content{content-visibility:visible;display:block}
body{font-size:10pt}main{max-width:none;padding:0}.scroll{overflow:visible}
h2,h3{break-after:avoid}h2{margin-top:1.6rem}tr,.warnings,.facts{break-inside:avoid}:root{--page:#fff}thead{display:table-header-group}
th,td{padding-left:.7rem}.sticky th:first-child{position:static}
.figures{grid-template-columns:repeat(2,1fr)}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
