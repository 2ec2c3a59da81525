"""The style sheet of report.html: one for light, dark and print, from 360 pixels to 4k.

Colours are variables that the charts use too. The contrast of text is at least 4.5 to 1 in both
themes. On narrow screens the cells of a table stand below each other, each with its column's name.
"""

STYLE = (
    """
:root{color-scheme:light dark;--back:#fbfbf9;--card:#fff;--ink:#1b1c1e;--dim:#585c63;--line:#dcdcd6;
--good:#15693a;--good-back:#e2f3e8;--bad:#a3261c;--bad-back:#fbe6e3;--plain-back:#ececea;
--link:#1d4fa0;--bar:#7d9cc9;
--c1:#1f5fbf;--c2:#b3500d;--c3:#15693a;--c4:#7a3ea8;--c5:#8a1f4d;--c6:#4f5b12}
@media(prefers-color-scheme:dark){:root{--back:#141518;--card:#1d1f23;--ink:#ececee;--dim:#a9adb5;
--line:#34373d;--good:#7fd6a2;--good-back:#153323;--bad:#ff9c90;--bad-back:#3d1b17;
--plain-back:#2b2d32;--link:#8db8ff;--bar:#4c6a97;
--c1:#7fb0ff;--c2:#ffab66;--c3:#7fd6a2;--c4:#d0a3f5;--c5:#ff9dbf;--c6:#c9d36b}}
*{box-sizing:border-box}
html{font-size:clamp(15px,.55vw + 10px,22px);-webkit-text-size-adjust:100%}
body{margin:0;background:var(--back);color:var(--ink);line-height:1.5;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:66rem;margin:0 auto;padding:2rem 1.25rem 4rem}
a{color:var(--link)}
h1{font-size:clamp(1.55rem,4.2vw,2.5rem);line-height:1.15;margin:.2rem 0 .8rem;
letter-spacing:-.015em;text-wrap:balance}
h2{font-size:1.35rem;line-height:1.25;margin:3rem 0 .6rem}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
p{margin:.4rem 0;max-width:46rem}
.eyebrow,.dim,figcaption,footer{color:var(--dim)}
.eyebrow{font-size:.9rem;margin:0;overflow-wrap:anywhere}
.lead{font-size:1.08rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:.75rem;
margin:1.4rem 0;padding:0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.8rem 1rem}
.tile dt{color:var(--dim);font-size:.88rem}
.tile dd{margin:0}
.tile .big{font-size:1.75rem;font-weight:650;line-height:1.2;letter-spacing:-.01em}
.tile .small{color:var(--dim);font-size:.88rem}
.try{display:grid;gap:.5rem;margin:.6rem 0}
.try div{display:grid;gap:.1rem}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:.9em}
pre{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem;
margin:.3rem 0;white-space:pre-wrap;overflow-wrap:anywhere}
.banner{border-left:.3rem solid var(--bad);background:var(--bad-back);padding:.6rem 1rem;
border-radius:.3rem;margin:1rem 0}
.badge{display:inline-block;font-size:.82rem;font-weight:600;border-radius:1rem;padding:.05rem .6rem;
background:var(--plain-back);color:var(--ink);vertical-align:.12em;white-space:nowrap;
letter-spacing:0}
.badge.good{background:var(--good-back);color:var(--good)}
.badge.bad{background:var(--bad-back);color:var(--bad)}
.bad-text{color:var(--bad)}
.facts{margin:.6rem 0;padding:0}
.facts div{display:grid;grid-template-columns:11rem 1fr;gap:.1rem 1rem;padding:.25rem 0}
.facts dt{color:var(--dim)}.facts dd{margin:0;max-width:46rem}
.phase{border-top:1px solid var(--line);margin-top:2.4rem}
.phase h2{margin-top:1.6rem}
.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.93rem;font-variant-numeric:tabular-nums;margin:.4rem 0}
.wide{width:100%}
caption{text-align:left;color:var(--dim);padding:.2rem 0}
th,td{text-align:left;vertical-align:top;padding:.35rem .9rem .35rem 0;
border-bottom:1px solid var(--line)}
thead th{color:var(--dim);font-weight:500}
tbody th{font-weight:600}
.num{text-align:right}
.sub{color:var(--dim);font-size:.88em;white-space:nowrap}
details{margin:.6rem 0;border:1px solid var(--line);border-radius:.5rem;background:var(--card)}
summary{cursor:pointer;padding:.5rem .8rem;color:var(--link)}
details>*:not(summary){margin-left:.8rem;margin-right:.8rem}
details .scroll{max-height:30rem;overflow:auto}
figure{margin:1.2rem 0}
figcaption{font-size:.92rem;max-width:46rem}
svg{display:block;max-width:100%;height:auto;overflow:visible}
.chart-wide svg,.chart-narrow svg{width:100%}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),26rem));gap:1rem}
.chart-narrow{display:none}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
fill:var(--dim)}
svg .label{fill:var(--ink)}svg .value{fill:var(--ink);font-weight:600}
svg .grid{stroke:var(--line)}svg .axis{stroke:var(--dim)}
svg .base{stroke:var(--dim);stroke-dasharray:5 4}
svg .stage{stroke:var(--line);stroke-dasharray:2 3}
svg .bar{fill:var(--bar)}
svg .line{fill:none;stroke-width:2.2;stroke-linejoin:round}
svg .faint{fill:none;stroke:var(--dim);stroke-width:1;opacity:.35}
svg .whisker{stroke-width:1.6;opacity:.75}
svg .hollow{fill:var(--back);stroke-width:1.8}
"""
    + "".join(
        f"svg .c{n}{{stroke:var(--c{n})}}svg .dot.c{n}{{fill:var(--c{n});stroke:none}}"
        for n in range(1, 7)
    )
    + """
@media(max-width:640px){
main{padding:1.2rem 1rem 3rem}
.chart-wide{display:none}.chart-narrow{display:block}
.tiles{grid-template-columns:1fr 1fr;gap:.5rem}
.tile{padding:.6rem .7rem}.tile .big{font-size:1.35rem}
.facts div{grid-template-columns:1fr}
.stack thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.stack,.stack tbody,.stack tr,.stack th,.stack td{display:block}
.stack tr{border-bottom:1px solid var(--line);padding:.4rem 0}
.stack th,.stack td{border:0;padding:.1rem 0;text-align:left}
.stack td{display:grid;grid-template-columns:8.5rem 1fr;gap:.6rem}
.stack td:empty{display:none}
.stack td::before{content:attr(data-head);color:var(--dim)}
.sub{white-space:normal}
}
@media print{
:root{color-scheme:light;--back:#fff;--card:#fff;--ink:#000;--dim:#444;--line:#bbb;--good:#15693a;
--good-back:#fff;--bad:#a3261c;--bad-back:#fff;--plain-back:#fff;--link:#000;--bar:#9ab;
--c1:#1f5fbf;--c2:#b3500d;--c3:#15693a;--c4:#7a3ea8;--c5:#8a1f4d;--c6:#4f5b12}
html{font-size:11px}
main{max-width:none;padding:0}
details{display:none}
.badge{border:1px solid currentColor}
.tiles{grid-template-columns:repeat(auto-fit,minmax(8rem,1fr))}
h2,h3{break-after:avoid}
tr,figure,.tile,pre,.facts div{break-inside:avoid}
}
"""
)
