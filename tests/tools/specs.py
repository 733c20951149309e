"""Spec files for the factories of the tests."""

from __future__ import annotations

import json
from pathlib import Path

FACTORIES = Path(__file__).resolve().parent / "factories.py"


def write_spec(folder: Path, factory: str, measurements: int, *, name: str = "spec.toml", **more):
    """Writes a spec file for a factory of tests/tools/factories.py; nested tables as keywords."""
    tables = {"operator": {"factory": f"{FACTORIES}:{factory}"}}
    top = {"measurements": measurements}
    for key, value in more.items():
        if isinstance(value, dict):
            tables.setdefault(key, {}).update(value)
        else:
            top[key] = value
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for section, values in tables.items():
        nested = {k: v for k, v in values.items() if isinstance(v, dict)}
        lines.append(f"[{section}]")
        lines += [f"{k} = {json.dumps(v)}" for k, v in values.items() if k not in nested]
        for sub, inner in nested.items():
            lines.append(f"[{section}.{sub}]")
            lines += [f"{k} = {json.dumps(v)}" for k, v in inner.items()]
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path
