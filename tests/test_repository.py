"""Tests of what a reader finds at the top of the repository: requirements, licence and citation.

    bash tests/run.sh tests/test_repository.py
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib

import yaml

from dpad import ROOT
from dpad.results.records import version as installed_version


def python_files():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True,
                            text=True)
    names = listed.stdout.split() if listed.returncode == 0 else []
    found = [ROOT / name for name in names] or [
        path for path in ROOT.rglob("*.py") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    return [path for path in found if path.exists()]


def test_requirements_are_what_is_imported():
    """Imports that nobody listed fail on a stranger's machine; packages that nobody imports are minutes of download."""
    # Commands; plugins; what lm-eval's minerva_math imports; what uvicorn parses with; clients that tests may skip.
    unimported = {"ruff", "mypy", "coverage", "pytest_cov", "pytest_xdist", "math_verify", "antlr4_python3_runtime",
                  "sympy", "h11", "openai", "aiohttp", "requests", "tenacity"}
    package = {"yaml": "PyYAML", "PIL": "pillow"}  # where its name is not the module's
    own = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    imported = set()
    for path in python_files():
        own.add(path.stem)  # files beside a script are importable from it by name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]  # pip brings these along
    own |= {line.partition("==")[0] for line in build}
    needed = {package.get(name, name) for name in imported - own - set(sys.stdlib_module_names)}
    folders = (ROOT, ROOT / "demo", ROOT / "dpad" / "serve", ROOT / "dpad" / "engine")
    lines = [line.split("#")[0].strip() for folder in folders
             for line in (folder / "requirements.txt").read_text().splitlines()]
    pinned = dict(line.replace("[serve]", "").split("==") for line in lines if line)
    assert {name.replace("-", "_") for name in pinned} - unimported == needed
    # The packages of the page, the server and quantized weights may be missing.
    optional = "".join((folder / "requirements.txt").read_text() for folder in folders[1:]).replace("[serve]", "")
    for name, version in pinned.items():
        installed = installed_version(name)
        if installed is not None or f"{name}==" not in optional:
            assert str(installed).split("+")[0] == version, f"{name} is not the version that is tested here"


def test_license_and_citation():
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:100]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0" and citation["authors"]
    assert "Suffix Dropout" in paper["title"] and "2508.14148" in json.dumps(paper) and len(paper["authors"]) == 8
