package report

// style is the page's whole CSS: for screens of any width, light and dark, and for
// paper. Every pair of colours that text is written in has a contrast of 4.5 at least
// (WCAG 2.2, 1.4.3).
const style markup = `
:root{--bg:#fff;--panel:#f5f7f9;--ink:#18202a;--soft:#51606f;--line:#d5dce3;--link:#0a58a8;--on:#0b5f36;--onbg:#e2f3e9;--no:#9c1f17;--nobg:#fbe8e6;--warn:#714600;--warnbg:#fcefd3;--shade:rgba(20,32,45,.08)}
@media (prefers-color-scheme:dark){:root{--bg:#11161c;--panel:#19212a;--ink:#e6ebf1;--soft:#a6b2bf;--line:#2f3a46;--link:#84bdf7;--on:#8adcac;--onbg:#15332a;--no:#ffaba3;--nobg:#40201f;--warn:#f2c879;--warnbg:#3a2d12;--shade:rgba(0,0,0,.45)}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0 auto;max-width:72rem;padding:2.5rem 1.5rem 3rem;background:var(--bg);color:var(--ink);font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1,h2,h3,h4,p,ul,ol,dl,dd{margin:0}
h1{font-size:2.1rem;line-height:1.15;letter-spacing:-.02em}
h2{font-size:1.35rem;line-height:1.25;letter-spacing:-.01em;margin-bottom:.6rem}
h3{font-size:1.05rem;line-height:1.4}
h4{font-size:.8rem;text-transform:uppercase;letter-spacing:.06em;color:var(--soft);margin-bottom:.35rem}
a{color:var(--link);text-underline-offset:.15em;text-decoration-thickness:1px}
a:focus-visible,.scroll:focus-visible{outline:2px solid var(--link);outline-offset:2px}
code{font:.875em ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.soft,.stamp,small{color:var(--soft)}
small{display:block;font-weight:400;font-size:.8rem}
.ns{font-weight:400}
.none{color:var(--soft);font-style:italic}
header{border-bottom:1px solid var(--line);padding-bottom:1.5rem}
.kicker{font-size:.8rem;font-weight:600;text-transform:uppercase;letter-spacing:.09em;color:var(--soft);margin-bottom:.3rem}
.stamp{margin-top:.45rem}
.health{margin-top:1.25rem;padding:.8rem 1rem;border:1px solid;border-left-width:.4rem;border-radius:.4rem;background:var(--onbg);color:var(--on)}
.health.degraded{background:var(--warnbg);color:var(--warn)}
.health.failed{background:var(--nobg);color:var(--no)}
.health .word{font-weight:700;text-transform:capitalize}
.health p,.health li{color:var(--ink)}
.health .word{color:inherit}
.health ul{padding-left:1.2rem}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:.75rem;margin-top:1rem}
.tiles div{display:flex;flex-direction:column-reverse;padding:.7rem 1rem;background:var(--panel);border:1px solid var(--line);border-radius:.4rem}
.tiles dd{font-size:1.45rem;font-weight:650;line-height:1.25;font-variant-numeric:tabular-nums}
.tiles dt{font-size:.85rem;color:var(--soft)}
.facts{display:grid;grid-template-columns:repeat(3,1fr);gap:.7rem 1.5rem;margin-top:1rem}
.facts .wide{grid-column:1/-1}
.facts dt{font-size:.8rem;color:var(--soft)}
nav{margin-top:1.25rem}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.25rem;padding:0;list-style:none}
section{padding-top:2.25rem}
section>p{max-width:46rem;margin-bottom:.8rem}
section>h3{margin:1.25rem 0 .3rem}
.badge{display:inline-block;padding:0 .5em;border:1px solid var(--line);border-radius:1em;font-size:.8rem;font-weight:600;line-height:1.55;letter-spacing:0;white-space:nowrap;background:var(--panel);color:var(--ink)}
.badge.on{background:var(--onbg);color:var(--on);border-color:currentColor}
.badge.no{background:var(--nobg);color:var(--no);border-color:currentColor}
.badge.warn{background:var(--warnbg);color:var(--warn);border-color:currentColor}
.scroll{overflow-x:auto;max-width:100%;border:1px solid var(--line);border-radius:.4rem;margin-bottom:1rem}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.925rem}
th,td{padding:.5rem .8rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tbody tr:last-child>*{border-bottom:0}
thead th{font-size:.8rem;color:var(--soft);background:var(--panel);white-space:nowrap}
.stack td code,.stack time{white-space:nowrap}
.stack tbody th{min-width:13rem}
caption{padding:.6rem .8rem;text-align:left;font-weight:600;border-bottom:1px solid var(--line);position:sticky;left:0}
.legend{display:flex;flex-wrap:wrap;gap:.35rem 1.25rem;padding:0;margin-bottom:1rem;list-style:none;font-size:.875rem}
.mark{display:inline-block;min-width:2.6rem;text-align:center;font-weight:600;font-size:.8rem;border-radius:.25rem}
.tables{display:flex;flex-wrap:wrap;gap:1rem}
.tables .scroll{margin:0}
.matrix{width:auto;font-size:.8rem;font-variant-numeric:tabular-nums}
.matrix th,.matrix td{border-right:1px solid var(--line);overflow-wrap:normal}
.matrix td{min-width:2.6rem;padding:.35rem .25rem;text-align:center;vertical-align:middle;font-weight:600}
.matrix tbody th{position:sticky;left:0;z-index:1;min-width:9.5rem;max-width:12.5rem;padding:.35rem .7rem;overflow-wrap:anywhere;font-weight:600;background:var(--panel);box-shadow:2px 0 4px var(--shade)}
.matrix thead th{padding:.6rem .3rem;vertical-align:bottom;text-align:center;color:var(--ink)}
.matrix thead th>span{display:inline-block;writing-mode:vertical-rl;transform:rotate(180deg);max-height:12rem;white-space:normal;overflow-wrap:anywhere}
.matrix thead .corner{position:sticky;left:0;z-index:2;text-align:left;padding:.6rem .8rem;color:var(--soft);box-shadow:2px 0 4px var(--shade)}
.matrix thead .corner>span{writing-mode:horizontal-tb;transform:none;white-space:nowrap}
.m-yes{background:var(--onbg);color:var(--on)}
.m-no{background:var(--nobg);color:var(--no)}
.m-part,.m-try{background:var(--warnbg);color:var(--warn)}
.m-self,.m-un{color:var(--soft);font-weight:400!important}
article{padding:1rem 1.1rem 1.1rem;margin-top:1rem;border:1px solid var(--line);border-radius:.4rem;background:var(--bg)}
article:target,tr:target>*{background:var(--warnbg)}
article .sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem 2rem;margin-top:1rem;padding-top:.9rem;border-top:1px solid var(--line)}
.sides ol{padding-left:1.6rem}
.sides li::marker{color:var(--soft);font-variant-numeric:tabular-nums}
.sides li+li{margin-top:.6rem}
.rule{display:grid;grid-template-columns:3rem 1fr;gap:.1rem .5rem}
.rule dt{color:var(--soft);grid-column:1}
.rule dd{grid-column:2}
.findings{padding:0;list-style:none}
.findings li{padding:.55rem 0;border-bottom:1px solid var(--line);white-space:pre-line}
.arrow{color:var(--soft)}
footer{margin-top:2.5rem;padding-top:1rem;border-top:1px solid var(--line);font-size:.85rem;color:var(--soft)}
@media (max-width:44rem){
body{padding:1.25rem 1rem 2rem}
h1{font-size:1.7rem}
.tiles{grid-template-columns:1fr 1fr}
.facts{grid-template-columns:1fr 1fr}
.stack,.stack tbody,.stack tr,.stack td,.stack tbody th{display:block;min-width:0}
.stack thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.stack tr{padding:.7rem .9rem;border-bottom:1px solid var(--line)}
.stack tr:last-child{border-bottom:0}
.stack td,.stack tbody th{padding:0;border:0}
.stack td{position:relative;min-height:1.5rem;padding-left:6rem;margin-top:.35rem}
.stack td::before{content:attr(data-label);position:absolute;left:0;color:var(--soft);font-size:.85rem;text-transform:capitalize}
.matrix tbody th{min-width:8rem;max-width:9.5rem;padding:.35rem .5rem}
}
@media print{
:root{--bg:#fff;--panel:#f5f7f9;--ink:#000;--soft:#444;--line:#bbb;--link:#000;--on:#0b5f36;--onbg:#e2f3e9;--no:#9c1f17;--nobg:#fbe8e6;--warn:#714600;--warnbg:#fcefd3;--shade:transparent;color-scheme:light}
@page{margin:14mm}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{max-width:none;padding:0;font-size:9.5pt}
nav{display:none}
.scroll{overflow:visible}
h2,h3,h4,caption{break-after:avoid}
tr,article li,.health,.tiles{break-inside:avoid}
thead{display:table-header-group}
.matrix{font-size:7pt}
.matrix td{min-width:0;padding:.2rem}
.matrix tbody th,.matrix thead .corner{position:static;min-width:0;box-shadow:none;padding:.2rem .4rem}
a{text-decoration:none}
}
`
