"""`make sbom`: what a release is made of, as CycloneDX 1.6 tells it: what is pinned, and what was taken from elsewhere.

The lock says all of it, so no tool has to look at an environment, and the same tree gives the same file.
"""

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from db.version import version

ROOT = Path(__file__).parents[1]


def bill() -> dict[str, Any]:
    """The whole document."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = re.findall(r"^([\w.-]+)==([^\s;\\]+)", (ROOT / "requirements.lock").read_text(), re.M)
    vendored = tomllib.loads((ROOT / "static" / "vendor" / "VENDOR.toml").read_text())["file"]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": _component("application", "pypi", project["name"], version(), project["license"])},
        "components": [
            *(_component("library", "pypi", name, version) for name, version in pinned),
            *(
                _component("library", "npm", file["package"], file["version"], file["licence"])
                | {"hashes": [{"alg": "SHA-256", "content": file["sha256"]}]}
                for file in vendored
            ),
        ],
    }


def _component(kind: str, registry: str, name: str, version: str, licence: str = "") -> dict[str, Any]:
    purl = f"pkg:{registry}/{name}@{version}"
    found: dict[str, Any] = {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}
    return found | ({"licenses": [{"license": {"id": licence}}]} if licence else {})


if __name__ == "__main__":
    json.dump(bill(), sys.stdout, indent=2)
    print()
