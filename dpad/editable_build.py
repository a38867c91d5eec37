"""The build backend of pyproject.toml: setuptools' own for `pip install -e .`, and a plain refusal of anything else.

Imported by pip, never run. A wheel would install top-level modules named `sampler` and `run` for every other project of
the environment, so this repository is only installed in place.
"""

from __future__ import annotations

from typing import NoReturn

from setuptools.build_meta import build_editable, get_requires_for_build_editable, prepare_metadata_for_build_editable

__all__ = ["build_editable", "build_sdist", "build_wheel", "get_requires_for_build_editable",
           "prepare_metadata_for_build_editable"]


def build_wheel(*arguments: object, **options: object) -> NoReturn:
    """Refuse to build a wheel or a source archive."""
    raise SystemExit("dpad is installed in place: clone the repository and run `pip install -e .` in it")


build_sdist = build_wheel
