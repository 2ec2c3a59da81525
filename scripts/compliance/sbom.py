"""A software bill of materials: the installed distributions as CycloneDX 1.6 JSON.

Reads the metadata of an environment's packages; writes one file. The serial number is a hash of the
content, so the same environment gives the same file.
"""

import json
import re
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts.compliance.check import PASSED, Check

_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def build(distributions: list[metadata.Distribution]) -> dict[str, Any]:
    """Return the document. A package that is found twice on the path counts once."""
    packages = {
        canonical(d.metadata["Name"]): d for d in reversed(distributions) if d.metadata["Name"]
    }
    components = [_component(name, packages[name]) for name in sorted(packages)]
    refs = {component["name"]: component["bom-ref"] for component in components}
    dependencies = [
        {"ref": refs[name], "dependsOn": [refs[one] for one in _needs(packages[name], refs)]}
        for name in sorted(packages)
    ]
    content = {"components": components, "dependencies": dependencies}
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        **content,
    }


def canonical(name: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _component(name: str, package: metadata.Distribution) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{package.version}"
    component: dict[str, Any] = {
        "type": "library", "bom-ref": purl, "name": name, "version": package.version, "purl": purl,
    }  # fmt: skip
    expression = package.metadata.get("License-Expression")
    if expression:
        component["licenses"] = [{"expression": expression}]
    elif licence := _licence(package):
        component["licenses"] = [{"license": {"name": licence}}]
    return component


def _licence(package: metadata.Distribution) -> str:
    """Return the licence that a package names, its classifier first: the field may hold a text."""
    classifiers = package.metadata.get_all("Classifier") or []
    names = [c.rpartition("::")[2].strip() for c in classifiers if c.startswith("License ::")]
    stated = (package.metadata.get("License") or "").strip().splitlines()
    return names[-1] if names else (stated[0][:120] if stated else "")


def _needs(package: metadata.Distribution, known: dict[str, str]) -> list[str]:
    """Return the installed packages that one requires, extras left out."""
    names = set()
    for requirement in package.requires or []:
        match = _REQUIREMENT.match(requirement)
        if match and "extra ==" not in requirement and canonical(match[1]) in known:
            names.add(canonical(match[1]))
    return sorted(names)


def check(file: Path) -> Check:
    """Write the document of this environment."""
    document = build(list(metadata.distributions()))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    components = document["components"]
    unknown = [c["name"] for c in components if "licenses" not in c]
    lines = [f"- without a stated licence: {', '.join(unknown)}"] if unknown else []
    summary = f"{len(components)} packages in {file}; {len(unknown)} state no licence"
    return Check("SBOM (CycloneDX 1.6)", PASSED, summary, lines)
