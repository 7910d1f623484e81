"""How the page looks: neutral, in the reader's light or dark mode, printable."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #faf9f6; --card: #ffffff; --text: #222326; --muted: #6c6d72; --line: #e3e1db;
  --accent: #2c6496; --soft: #a9c6de; --good: #25754a; --bad: #ad4027; --track: #efede8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #17181b; --card: #1f2125; --text: #e4e2dd; --muted: #9c9ca2; --line: #34363c;
    --accent: #7fb2de; --soft: #41627f; --good: #6cc393; --bad: #e58b71; --track: #2b2d32;
  }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
main, body > header, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.5rem }
body > header { padding-top: 3rem }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em }
h2 { font-size: 1.35rem; margin: 0 0 .4rem }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem }
h3 .note { font-weight: 400; margin-left: .5rem }
section { padding: 2.2rem 0 .6rem; border-top: 1px solid var(--line); margin-top: 2rem }
p { max-width: 46rem; margin: .4rem 0 1rem }
.muted, figcaption, .note { color: var(--muted) }
.note, figcaption { font-size: .86rem; line-height: 1.4 }
nav { margin-top: 1.4rem; font-size: .92rem }
nav a { color: var(--accent); text-decoration: none; margin-right: 1.1rem; white-space: nowrap }
nav a:hover { text-decoration: underline }
.tiles { display: grid; gap: .9rem; margin-top: 1.6rem;
  grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)) }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .9rem 1.1rem }
.tile b { display: block; font-size: 1.75rem; line-height: 1.2; font-weight: 600;
  font-variant-numeric: tabular-nums }
.tile span { display: block }
.tile .note { margin-top: .2rem }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; font-variant-numeric: tabular-nums;
  font-size: .94rem }
.wide { overflow-x: auto }
th { font-weight: 600; font-size: .84rem; color: var(--muted); vertical-align: bottom }
th, td { text-align: left; padding: .34rem 1.4rem .34rem 0; border-bottom: 1px solid var(--line) }
td.n, th.n { text-align: right }
tbody tr.first td { border-top: 2px solid var(--line) }
tr.total td { font-weight: 600 }
td code { white-space: nowrap }
figure { margin: 0 }
img, video { max-width: 100%; border-radius: 6px; display: block }
.pixels { image-rendering: pixelated }
.sheet img { width: 100%; border: 1px solid var(--line) }
.sheet { margin: .6rem 0 1.4rem }
.curves { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)) }
.curves figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .9rem 1rem .7rem }
.curves h3 { margin-top: 0 }
svg { display: block; overflow: visible; width: 100%; height: auto }
svg text { fill: var(--muted); font-size: 11px; font-family: inherit }
.grid { stroke: var(--line); stroke-width: 1 }
.raw, .smooth { fill: none; stroke-linejoin: round }
.raw { stroke: var(--soft); stroke-width: 1.2 }
.smooth { stroke: var(--accent); stroke-width: 2 }
svg.share { width: 13.75rem; height: 1.1rem }
.track { fill: var(--track) } .fill { fill: var(--accent); opacity: .55 }
.whisker { stroke: var(--text); stroke-width: 1.5; fill: none }
.bar { display: block; width: min(26rem, 40vw); height: .85rem; background: var(--track);
  border-radius: 3px; overflow: hidden }
.bar span { display: block; height: 100%; background: var(--accent); opacity: .75 }
.future { display: grid; grid-template-columns: 7.5rem 7.5rem 1fr; gap: .3rem .9rem;
  align-items: start; margin-bottom: 1.1rem }
.future figure img { width: 100% }
.strips { display: grid; grid-template-columns: 4.6rem 1fr; gap: .25rem .6rem; align-items: center }
.strips img { width: 100%; border-radius: 4px }
.code { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; padding: .45rem 0;
  border-bottom: 1px solid var(--line) }
.code > span { width: 4.6rem; color: var(--muted); font-size: .86rem }
.code img { width: 6.6rem; border-radius: 4px }
details { margin: .6rem 0 1rem } summary { cursor: pointer; color: var(--accent) }
.films { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr));
  margin-bottom: 1.2rem }
.films.three { grid-template-columns: repeat(3, minmax(0, 14rem)) }
.film video, .film img { width: 100%; background: var(--track); aspect-ratio: 1 }
.film figcaption { margin-top: .35rem }
.film q { color: var(--text) }
.none { aspect-ratio: 1; background: var(--track); border-radius: 6px; padding: 1rem;
  display: block; font-size: .84rem; color: var(--muted) }
.good { color: var(--good); font-weight: 600 } .bad { color: var(--bad); font-weight: 600 }
code { font: .86em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere }
footer { padding: 2rem 1.5rem 4rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.4rem; font-size: .9rem }
dt { color: var(--muted) } dd { margin: 0 }
"""
