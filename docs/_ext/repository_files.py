"""Links of pages to files of the repository that are no pages: each is shown on a page of its own.

So the same relative link works where the page is read as plain Markdown beside the files, and on
the built site, which does not know where the repository is published.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

log = logging.getLogger(__name__)

FOLDER = "files"
LEXERS = {".md": "markdown", ".py": "python", ".toml": "toml", ".sh": "bash", ".sbatch": "bash"}


class OutsideLinks(SphinxTransform):
    """Notes links that leave the documentation's folder, before they are looked for among pages."""

    default_priority = 10

    def apply(self, **_: Any) -> None:
        """Replaces each by a reference whose address is filled in when the page is written."""
        source = Path(self.env.srcdir)
        page = source / self.env.docname
        for node in list(self.document.findall(_is_link)):
            target = str(node["reftarget"]).partition("#")[0]
            # MyST takes the end off a Markdown file, even if it is none of its pages.
            suffix = ".md" if node.get("refdomain") == "doc" else ""
            path = (page.parent / (target + suffix)).resolve()
            if path.is_relative_to(source) or not path.is_relative_to(source.parent):
                continue
            if not path.exists():
                log.warning("there is no %s in the repository", target, location=node)
                continue
            name = path.relative_to(source.parent).as_posix()
            node.replace_self(nodes.reference("", "", *node.children, repository_file=name))


def _is_link(node: nodes.Node) -> bool:
    links = addnodes.pending_xref | addnodes.download_reference
    return isinstance(node, links) and node.get("reftype") == "myst"


def _fill_in(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for node in doctree.findall(nodes.reference):
        if "repository_file" in node:
            target = f"{FOLDER}/{node['repository_file']}"
            node["refuri"] = app.builder.get_relative_uri(docname, target)
            node["internal"] = True


def _note(app: Sphinx, doctree: nodes.document) -> None:
    found = {
        n["repository_file"] for n in doctree.findall(nodes.reference) if "repository_file" in n
    }
    app.env.metadata[app.env.docname]["repository_files"] = sorted(found)


def _pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file that is linked, and for each file of a folder that is."""
    root = Path(app.srcdir).parent
    linked = {
        name for data in app.env.metadata.values() for name in data.get("repository_files", ())
    }
    waiting, done = sorted(linked), set()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        path = root / name
        inner = _entries(path) if path.is_dir() else []
        waiting += [f"{name}/{entry.name}" for entry in inner]
        body = _listing(path, inner) if path.is_dir() else _source(app, path)
        body = f'<div class="repository-file">{body}</div>'
        title = f"<h1><code>{html.escape(name)}</code></h1>"
        yield f"{FOLDER}/{name}", {"title": name, "body": title + body, "toc": ""}, "page.html"


def _entries(folder: Path) -> list[Path]:
    """What of a folder is shown."""
    hidden = (".", "__")
    return [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(hidden)]


def _listing(folder: Path, entries: list[Path]) -> str:
    items = [
        f'<li><a href="{html.escape(f"{folder.name}/{entry.name}.html")}">'
        f"<code>{html.escape(entry.name)}</code></a></li>"
        for entry in entries
    ]
    return f"<ul>{''.join(items)}</ul>"


def _source(app: Sphinx, path: Path) -> str:
    lexer = LEXERS.get(path.suffix, "text")
    return str(app.builder.highlighter.highlight_block(path.read_text(), lexer))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the parts."""
    app.add_transform(OutsideLinks)
    app.connect("doctree-read", _note)
    app.connect("doctree-resolved", _fill_in)
    app.connect("html-collect-pages", _pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
