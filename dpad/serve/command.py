"""`run.py serve`: a server that OpenAI's clients understand.

    pip install -r dpad/serve/requirements.txt
    python run.py serve -m tiny -d gaussian -k 3 -sc 1.6 -th 0.9

The flags of limits.py, where the server listens, and its key. Imported by run.py.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dpad.engine.checks import check_integer
from dpad.engine.fields import add_flags, read_flags, settings_of
from dpad.engine.settings import DecodingSettings
from dpad.serve.limits import Limits

if TYPE_CHECKING:
    from dpad.engine.loading import LoadedModel

KEY = "DPAD_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen; by default only this "
                       "machine can ask (default: %(default)s)")
    group.add_argument("--port", type=int, default=8000, metavar="N", help="0: a free one (default: %(default)s)")
    group.add_argument("--api_key", metavar="KEY", help="what clients must send. A command line can be read by other "
                       f"users of the machine; better set the variable {KEY}")
    add_flags(group, settings_of(Limits))


def run_serve(
    args: argparse.Namespace, settings: DecodingSettings, load: Callable[[], LoadedModel], note: Callable[[str], None],
) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Args:
        settings: how to decode where a request does not say.
        load: loads the model that `args` names.

    Raises:
        ValueError: a flag cannot be used, or a package is missing.
    """
    limits = Limits(**read_flags(args, settings_of(Limits)))
    check_integer("port", args.port, 0, 2**16 - 1)
    api_key = os.environ.get(KEY) if args.api_key is None else args.api_key
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key == api_key.strip() != ""):
        raise ValueError("api_key must have at least one character, and only ASCII ones that can be printed")
    check_answer_length(settings, limits)
    check_packages()

    from dpad.serve.server import listen, serve

    with listen(args.host, args.port) as listener:
        if args.host not in LOOPBACK and api_key is None:
            note(f"everybody who reaches {args.host} can use this server; {KEY} or --api_key sets a key")
        loaded = load()

        from dpad.serve.app import Service, make_app

        service = Service(loaded, settings, limits)
        app = make_app(service, local_only=args.host in LOOPBACK, api_key=api_key)
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"http://{host}:{listener.getsockname()[1]}/v1 serves {loaded.name} (Ctrl-C ends it)", flush=True)
        serve(service, app, listener)


def check_answer_length(settings: DecodingSettings, limits: Limits) -> None:
    """Raise ValueError where answers are longer by default than a request may ask for."""
    if settings.gen_length > limits.max_tokens:
        raise ValueError(f"gen_length is {settings.gen_length}; it must be at most max_tokens ({limits.max_tokens})")


def check_packages() -> None:
    """Raise ValueError unless what the server needs is installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f"the server needs {', '.join(missing)}: pip install -r dpad/serve/requirements.txt")
