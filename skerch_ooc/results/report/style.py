"""Colours and type of the page and of its figures, in light and dark."""

from __future__ import annotations

LIGHT = {
    "page": "#fbfbf9", "paper": "#ffffff", "ink": "#1d2126", "soft": "#59616b", "line": "#c9cdd2",
    "grid": "#eceef0", "blue": "#1f5fa8", "orange": "#a6480a", "teal": "#0c746a",
    "violet": "#6d46a6", "rose": "#a02c5d", "grey": "#5e6671", "wash": "#e4edf7",
}  # fmt: skip
DARK = {
    "page": "#14161a", "paper": "#1a1d22", "ink": "#e8e6e1", "soft": "#a9b0ba", "line": "#454c56",
    "grid": "#2a2e35", "blue": "#82b5f2", "orange": "#f0a25c", "teal": "#5cc4b5",
    "violet": "#bd9ff2", "rose": "#eb8fb4", "grey": "#9aa3ae", "wash": "#22344a",
}  # fmt: skip
"""Each text colour stands out from page, paper and wash by 4.5 or more."""

SERIES = ("blue", "orange", "teal", "violet", "rose", "grey")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', sans-serif"

_FIGURE = """
{of}text {{ font: 12px {font}; fill: {soft}; font-variant-numeric: tabular-nums; }}
{of}.strong {{ fill: {ink}; }}
{of}.label {{ font-weight: 600; stroke: {paper}; stroke-width: 4px; paint-order: stroke; }}
{of}.end {{ text-anchor: end; }}
{of}.middle {{ text-anchor: middle; }}
{of}.grid {{ stroke: {grid}; stroke-width: 1; }}
{of}.axis {{ stroke: {line}; stroke-width: 1; }}
{of}.mark {{ stroke: {soft}; stroke-width: 1; stroke-dasharray: 3 3; }}
{of}.wash {{ fill: {wash}; }}
{of}.curve {{ fill: none; stroke-width: 1.75; stroke-linejoin: round; }}
{of}.stem {{ stroke-width: 1.25; }}
{of}.band {{ opacity: 0.22; }}
{of}.halo {{ stroke: {paper}; stroke-width: 4px; paint-order: stroke; }}
{of}.dotted {{ stroke-dasharray: 2 4; stroke: {soft}; }}
"""


def figure_style(colours: dict[str, str], of: str = "") -> str:
    """The style of figures.

    Args:
        colours: By their names.
        of: What the rules are limited to, as a selector with a space after it.
    """
    rules = _FIGURE.format(of=of, font=FONT, **colours)
    for name in SERIES:
        colour = colours[name]
        rules += f"{of}.fill-{name} {{ fill: {colour}; }}\n"
        rules += f"{of}.line-{name} {{ stroke: {colour}; }}\n"
    return rules


def standalone_style() -> str:
    """The style of a figure in a file of its own; without variables, which few programs know."""
    light = figure_style(LIGHT) + f"svg {{ background: {LIGHT['paper']}; }}\n"
    dark = figure_style(DARK) + f"svg {{ background: {DARK['paper']}; }}\n"
    return f"{light}@media (prefers-color-scheme: dark) {{{dark}}}\n"


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


_PAGE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 FONT; }
header, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 44px; }
h1 { font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -0.01em; margin: 0;
  overflow-wrap: anywhere; }
h2 { font-size: 20px; font-weight: 650; margin: 52px 0 6px; padding-top: 14px;
  border-top: 1px solid var(--line); }
h3 { font-size: 15px; font-weight: 650; margin: 0 0 4px; }
p { margin: 0 0 12px; max-width: 68ch; }
.sub { color: var(--soft); margin: 8px 0 0; overflow-wrap: anywhere; max-width: none; }
.lead { font-size: 18px; margin-top: 24px; }
code { font: 0.88em ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace;
  overflow-wrap: anywhere; background: var(--wash); border-radius: 3px; padding: 1px 4px; }
.word { white-space: nowrap; }
.key { display: grid; grid-template-columns: repeat(4, 1fr); gap: 8px 28px; margin: 26px 0 24px; }
.key div { border-top: 2px solid var(--ink); padding-top: 8px; }
.key dt { font-size: 13px; color: var(--soft); }
.key dd { margin: 0; font-size: 25px; line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.key .note { font-size: 13px; line-height: 1.4; font-weight: 400; color: var(--soft);
  white-space: normal; }
.said { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px 32px; }
.said h2 { font-size: 15px; margin: 0 0 4px; padding: 0; border: 0; }
.said p { font-size: 15px; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 34px 36px;
  margin-top: 22px; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; background: var(--paper);
  border: 1px solid var(--grid); border-radius: 6px; }
.single figure { grid-column: 1 / -1; display: grid; column-gap: 36px; align-items: start;
  grid-template-columns: repeat(2, minmax(0, 1fr)); grid-template-rows: auto 1fr; }
.single h3 { grid-column: 1 / -1; }
.single figcaption { margin-top: 0; max-width: 52ch; }
figcaption { font-size: 14px; line-height: 1.45; color: var(--soft); margin-top: 8px; }
.scroll { overflow-x: auto; margin: 16px 0 8px; }
.scroll:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 650; font-size: 15px; padding-bottom: 4px; }
th, td { text-align: right; padding: 5px 0 5px 22px; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--grid); }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-weight: 500; border-bottom-color: var(--line); }
tbody th { font-weight: 400; }
.tables { margin-top: 18px; display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 470px), 1fr));
  gap: 8px 48px; }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 5px 28px;
  margin: 16px 0; font-size: 14.5px; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.mono { font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace; }
.quiet { color: var(--soft); font-size: 14px; }
footer { padding-top: 40px; padding-bottom: 40px; color: var(--soft); font-size: 13.5px; }
@media screen and (max-width: 760px) {
  header { padding-top: 26px; }
  header, main, footer { padding-left: 16px; padding-right: 16px; }
  h1 { font-size: 25px; }
  h2 { margin-top: 40px; }
  .figures, .said, .tables { grid-template-columns: minmax(0, 1fr); }
  .single figure { display: block; }
  .single figcaption { margin-top: 8px; }
  figure text { font-size: 13.5px; }
  .key { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px 20px; }
  .key dd { font-size: 21px; }
  .facts { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .facts dd { margin-bottom: 9px; }
  table { font-size: 13px; }
  th, td { padding-left: 12px; }
}
@media print {
  @page { margin: 15mm 14mm; }
  body { font-size: 10.5pt; }
  header { padding-top: 0; }
  h2 { margin-top: 8mm; padding-top: 3mm; }
  .key { margin: 5mm 0; }
  .facts { gap: 2px 20px; }
  footer { padding-top: 5mm; padding-bottom: 0; }
  header, main, footer { max-width: none; padding-left: 0; padding-right: 0; }
  h1, h2, h3 { break-after: avoid; }
  .lead { font-size: 12pt; }
  .key, .said, .scroll, tr { break-inside: avoid; }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 7mm 8mm; }
  .said { grid-template-columns: repeat(3, 1fr); }
  .key { grid-template-columns: repeat(4, 1fr); }
  .key dd { font-size: 15pt; }
  .said p, table, .facts { font-size: 9.5pt; }
  figcaption, .quiet { font-size: 9pt; }
  .scroll { overflow: visible; }
}
"""


def page_style() -> str:
    """The style of the page; what is printed is light."""
    light, dark = _variables(LIGHT), _variables(DARK)
    named = {name: f"var(--{name})" for name in LIGHT}
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        "@media print { :root { color-scheme: light; --page: #ffffff; } }\n"
        + figure_style(named, "figure ")
        + _PAGE.replace("FONT", FONT)
    )
