"""References to documented names by the module that defines them, or by none at all."""

from __future__ import annotations

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def _found(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    if node.get("refdomain") != "py":
        return None
    domain = env.domains["py"]
    name = node["reftarget"].rpartition(".")[2]
    known = [full for full, *_ in domain.get_objects() if full.rpartition(".")[2] == name]
    if not known:
        return None
    # What is exported is known by two names.
    name = min(known, key=len)
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects it."""
    app.connect("missing-reference", _found)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
