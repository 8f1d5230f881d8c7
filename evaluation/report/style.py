"""How a report looks, in light and in dark, and the few lines of script that read values off its curves."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1d2125; --soft: #626a73; --rule: #dfe2e6; --grid: #eceef0; --tint: #f5f6f8;
  --best: #1f5fa8; --warn: #a65a00; --warn-tint: #fdf5e8;
  --c0: #1f5fa8; --c1: #c8553d; --c2: #3d8a5b; --c3: #8a5ba6; --c4: #b8891f; --c5: #5c6670;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15181c; --ink: #e4e7ea; --soft: #98a1ab; --rule: #30363d; --grid: #252a30; --tint: #1c2025;
    --best: #86b7f0; --warn: #e5b062; --warn-tint: #2a2317;
    --c0: #78aeea; --c1: #ec8a72; --c2: #74c294; --c3: #c397dd; --c4: #dbb458; --c5: #a3adb7;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 1104px; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: break-word;
}
h1 { margin: 0 0 .3rem; font-size: 2rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; }
h2 { margin: 0 0 .25rem; font-size: 1.2rem; font-weight: 650; letter-spacing: -.005em; }
h3 { margin: 2rem 0 .6rem; font-size: .95rem; font-weight: 650; }
p { margin: 0 0 .8rem; max-width: 46rem; text-wrap: pretty; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .2em; }
a:hover { color: var(--best); }
p code { white-space: nowrap; }
code, pre { font: .86em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
section { margin-top: 3.5rem; padding-top: 1.4rem; border-top: 1px solid var(--rule); }
.lead, .note, figcaption .unit, .soft { color: var(--soft); }
.lead { margin-bottom: 1.4rem; }
.note { font-size: .87rem; }
.scroll + .note { margin-top: 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; margin-top: 1.6rem; font-size: .9rem; color: var(--soft); }

.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)); gap: 1.5rem 1.2rem; margin: 2.2rem 0; }
.figures div { border-top: 2px solid var(--ink); padding-top: .55rem; display: flex; flex-direction: column-reverse;
  justify-content: flex-end; }
.figures dt { font-size: .85rem; line-height: 1.35; color: var(--soft); }
.figures dd { margin: 0; font-size: 1.7rem; line-height: 1.25; font-weight: 600; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.figures dt span { display: block; }
.figures + .note { margin-top: -.7rem; max-width: none; }
.figures small { font-size: .85rem; font-weight: 400; letter-spacing: 0; color: var(--soft); }

.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible { outline: 2px solid var(--c0); outline-offset: 3px; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; line-height: 1.4; }
th, td { padding: .45rem 0 .45rem 1.6rem; text-align: left; vertical-align: baseline; border-bottom: 1px solid var(--rule);
  font-weight: 400; }
th:first-child, td:first-child { padding-left: 0; }
thead th { color: var(--soft); font-size: .85rem; vertical-align: bottom; border-bottom-color: var(--soft); }
.number { text-align: right; white-space: nowrap; }
.best { font-weight: 680; color: var(--best); }
.metrics th[scope=row] { min-width: 14rem; }
.metrics .note { min-width: 16rem; }
.many th[scope=row] { min-width: 12rem; }
.many thead th { white-space: normal; }
.many td, .many thead th + th { padding-left: 1rem; }
.metrics tr:hover td, .metrics tr:hover th[scope=row] { background: var(--tint); }
.metrics thead .soft { display: block; font-size: .8rem; }
.metrics .group th { padding-top: 1.6rem; font-weight: 650; }
.metrics tbody:first-of-type .group th { padding-top: .9rem; }
.conditions { font-size: .87rem; margin-top: .6rem; }
.conditions th, .conditions td { padding-top: .25rem; padding-bottom: .25rem; }
.conditions th[scope=row] { white-space: nowrap; }
.conditions td { min-width: 8rem; max-width: 20rem; overflow-wrap: anywhere; }
.conditions .apart { font-weight: 650; }
.conditions .apart th, .conditions .apart td { font-weight: inherit; }
.metrics th:first-child { position: sticky; left: 0; background: var(--page); }
.glossary { columns: 2 24rem; column-gap: 2.5rem; margin: .6rem 0 0; font-size: .87rem; }
.glossary > div { break-inside: avoid; padding: .25rem 0; }
.glossary dt { display: inline; font-weight: 600; margin-right: .5em; }
.glossary dd { display: inline; margin: 0; color: var(--soft); }
.direction { color: var(--soft); padding-left: .25em; }
.warning { margin: 1rem 0; padding: .7rem 1rem; border-left: 3px solid var(--warn); background: var(--warn-tint);
  max-width: 52rem; }
.warning p { margin: 0; }
.warning p + p { margin-top: .4rem; }

.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 2rem 1.6rem; }
.search { display: grid; grid-template-columns: minmax(0, 26rem) minmax(0, 1fr); gap: 1.5rem 2.5rem; align-items: start; }
.search thead th { white-space: normal; }
.search th, .search td { padding-left: 1.1rem; }
.search th, .search td { padding-top: .3rem; padding-bottom: .3rem; }
figure { margin: 0; min-width: 0; }
figcaption { line-height: 1.4; }
figcaption strong { font-weight: 600; }
figcaption .unit { margin-left: .5em; font-size: .85rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1.1em; min-height: 1.5em; font-size: .82rem; line-height: 1.5;
  color: var(--soft); font-variant-numeric: tabular-nums; }
.legend b { font-weight: 500; color: var(--ink); }
.legend i { display: inline-block; width: 1.1em; height: 0; margin-right: .45em; vertical-align: .3em;
  border-top: 2px solid var(--c); }
.legend .at { margin-left: auto; }
.chart svg { display: block; width: 100%; height: auto; margin-top: .3rem; touch-action: pan-y; }
.chart text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--grid); } .axis { stroke: var(--soft); stroke-width: .8; }
.line { fill: none; stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.band { fill: var(--c); opacity: .18; }
.curve circle { fill: var(--c); }
.ring { fill: none; stroke: var(--ink); stroke-width: 1.3; }
.cursor { stroke: var(--soft); stroke-dasharray: 2 3; visibility: hidden; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); }
.c3 { --c: var(--c3); } .c4 { --c: var(--c4); } .c5 { --c: var(--c5); }

img { display: block; }
.pixels { image-rendering: pixelated; }
.classes { display: grid; grid-template-columns: minmax(1.5rem, max-content) minmax(0, 1fr); gap: .35rem 1rem;
  align-items: center; }
.classes > span { color: var(--soft); font-size: .87rem; text-align: right; font-variant-numeric: tabular-nums; }
.tiles { display: grid; grid-template-columns: repeat(10, minmax(0, 76px)); gap: .35rem; }
.tiles figcaption { font-size: .75rem; line-height: 1.5; color: var(--soft); text-align: center;
  font-variant-numeric: tabular-nums; }
.tiles img { width: 100%; height: auto; border-radius: 2px; }
.sheet { display: inline-block; background: #ffffff; border: 1px solid var(--rule); border-radius: 4px; }
.sheet img { max-width: none; height: auto; }

.stages { margin-top: 1.8rem; }
details { margin: 1.2rem 0; }
summary { cursor: pointer; font-weight: 600; padding: .2rem 0; }
summary .soft { font-weight: 400; }
.settings { columns: 3 19rem; column-gap: 2.5rem; margin-top: .8rem; }
.settings > div { break-inside: avoid; margin-bottom: 1.5rem; }
.settings h3 { margin: 0 0 .3rem; }
.fields { margin: 0; font-size: .87rem; }
.fields > div { display: flex; justify-content: space-between; gap: 1rem; padding: .2rem 0;
  border-bottom: 1px solid var(--rule); }
.fields dt { color: var(--soft); min-width: 0; }
.fields dd { margin: 0; text-align: right; min-width: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.changed { font-weight: 650; color: var(--best); }
.versions { max-width: 26rem; }
pre { margin: .6rem 0 0; padding: .8rem 1rem; background: var(--tint); border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media (max-width: 640px) {
  body { padding: 1.8rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  section { margin-top: 2.6rem; }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .figures dd { font-size: 1.45rem; }
  .metrics th[scope=row] { min-width: 9rem; max-width: 10.5rem; }
  .metrics td, .metrics thead th + th { padding-left: 1rem; }
  .search { grid-template-columns: minmax(0, 1fr); }
  p code { white-space: normal; }
  .classes { gap: .25rem .6rem; }
  .tiles { gap: 2px; }
}
@media print { body { max-width: none; padding: 0; } nav { display: none; } section { break-inside: avoid-page; } }
"""

# Moving over a curve shows the values there in its legend; without the script the last values stand in it.
SCRIPT = """
for (const figure of document.querySelectorAll('.chart')) {
  const svg = figure.querySelector('svg'), cursor = svg.querySelector('.cursor');
  const [low, high, left, right] = svg.dataset.x.split(' ').map(Number);
  const curves = [...svg.querySelectorAll('.line')].map(line => ({
    at: line.dataset.at.split(' ').map(Number), values: line.dataset.value.split(' ') }));
  const shown = [...figure.querySelectorAll('b')], last = shown.map(b => b.textContent);
  const where = figure.querySelector('.at');
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const x = low + (place - left) / (right - left) * (high - low);
    const near = at => at.reduce((best, v, i) => Math.abs(v - x) < Math.abs(at[best] - x) ? i : best, 0);
    const dense = curves.reduce((a, b) => b.at.length > a.at.length ? b : a);
    const step = dense.at[near(dense.at)], drawn = left + (step - low) / (high - low) * (right - left);
    cursor.setAttribute('x1', drawn); cursor.setAttribute('x2', drawn); cursor.style.visibility = 'visible';
    curves.forEach((curve, i) => { shown[i].textContent = curve.values[near(curve.at)]; });
    where.textContent = 'at ' + (Math.abs(step) < 10 ? +step.toFixed(2) : Math.round(step).toLocaleString('en'));
  });
  svg.addEventListener('pointerleave', () => {
    cursor.style.visibility = 'hidden'; where.textContent = '';
    shown.forEach((b, i) => { b.textContent = last[i]; });
  });
}
"""
