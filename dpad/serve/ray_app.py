"""The server as a Ray Serve deployment: replicas on several machines, each with a model and its batches.

    pip install -r dpad/serve/requirements.txt
    serve run dpad/serve/ray.yaml              # Ray Serve's own command; docs/server.md

Ray starts, spreads over and ends replicas by how many requests are open. Every replica is the application of app.py,
with its own decoding thread: what reaches it while it decodes is its next batch. Imported by Ray; needs ray[serve]
(dpad/serve/requirements.txt).
"""

from __future__ import annotations

import os
from typing import Any

from ray import serve

from dpad.engine.checks import check_text, suggest
from dpad.engine.fields import settings_of
from dpad.engine.loading import family_of, load
from dpad.serve.app import Service, make_app
from dpad.serve.command import KEY, check_answer_length
from dpad.serve.limits import Limits

LOADING = ("model", "adapter", "device", "dtype")


class Model:
    """A replica: what Ray makes a deployment of. Its arguments are those of `build`."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.service: Service | None = None

    def __serve_build_asgi_app__(self) -> Any:
        """Ray asks for the application once in each replica."""
        choices, limits = split(self.arguments)
        loaded = load(**{("name" if name == "model" else name): value for name, value in self.arguments.items()
                         if name in LOADING})
        self.service = Service(loaded, loaded.family.settings.from_choices(choices), limits)
        return make_app(self.service, local_only=self.arguments.get("local_only", True), api_key=os.environ.get(KEY))

    def check_health(self) -> None:
        """Ray replaces a replica whose decoding thread has died."""
        if self.service is not None and not self.service.decoder.is_alive():
            raise RuntimeError("the decoding thread has ended")


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application that ray.yaml names.

    arguments: model, adapter, device and dtype as in `dpad.load`; local_only, whether requests must name this machine
    as their host; limits by the names of limits.py; and decoding settings by their names.

    Raises:
        ValueError: an argument is unknown or cannot be used; before any replica is started.
    """
    choices, limits = split(arguments)
    check_answer_length(family_of(arguments["model"]).settings.from_choices(choices), limits)
    return serve.deployment(serve.ingress()(Model)).bind(arguments)


def split(arguments: dict[str, Any]) -> tuple[dict[str, Any], Limits]:
    """The decoding settings among the arguments, and the limits."""
    check_text("model", arguments.get("model"))
    limits = {entry.name for entry in settings_of(Limits)}
    known = {entry.name for entry in family_of(arguments["model"]).settings.choices()}
    unknown = sorted(arguments.keys() - {*LOADING, "local_only", *limits, *known})
    if unknown:
        raise ValueError(f"{unknown[0]} is no argument{suggest(unknown[0], [*LOADING, 'local_only', *limits, *known])}")
    choices = {name: value for name, value in arguments.items() if name in known}
    return choices, Limits(**{name: value for name, value in arguments.items() if name in limits})
