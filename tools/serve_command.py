"""``bstk serve``."""

import argparse
import importlib.util
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import bsformat
from bsformat import BstkError, Container

from .console import exact_size, print_json, say
from .governing import check_bounds, driven
from .loading import check_budgets, checked_reach, load_as_asked
from .options import source_options
from .serving.hosts import address_of, listen

if TYPE_CHECKING:
    from .serving.http_server import HttpServer
    from .serving.service import Service

#: What the extra ``serve`` brings, by the names they are imported by.
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


class _Asked(BaseException):
    """A signal asked for the end. No `Exception`, so that nobody takes it for a failure of what it came into."""


def run(args: argparse.Namespace) -> int:
    """Serve until a signal asks for the end; 0 then, whatever was under way."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise BstkError(f"serving needs the package {package}: pip install 'bitstack[serve]'", reason="serve")
    token = args.token or os.environ.get("BSTK_TOKEN") or None
    with ExitStack() as stack:
        # First what fails at once: the address, the file, the budget.
        listener = stack.enter_context(listen(args.host, args.port, token=token is not None))
        container = stack.enter_context(bsformat.open(args.uri, root=args.root, **source_options(args)))
        check_budgets(container, [args.budget])
        check_bounds(container, args)
        stack.enter_context(_logging())
        stack.enter_context(_signals())
        with suppress(_Asked):
            _serve(args, container, listener, token)
        say("bstk: stopped")
    return 0


def _serve(args: argparse.Namespace, container: Container, listener: socket.socket, token: str | None) -> None:
    from .serving.app import build_app
    from .serving.http_server import HttpServer
    from .serving.limits import Limits
    from .serving.service import Service

    limits = Limits(
        parallel=args.parallel, queue=args.queue, chunk=args.prompt_chunk, body=args.max_body, grace=args.grace
    )
    service = Service(args.name or _name(container), limits)
    http = HttpServer(build_app(service, token), listener, limits).start()
    try:
        say(f"bstk: listening on http://{address_of(listener)}/v1; loading the model")
        _answer(args, container, service, http, address_of(listener))
    finally:
        http.close()
        http.wait()


def _answer(
    args: argparse.Namespace, container: Container, service: "Service", http: "HttpServer", address: str
) -> None:
    """Load the model, answer until the end is asked for, and let what runs come to its end."""
    import bitstack

    from .serving.budget import Budget
    from .serving.engine import Engine
    from .serving.passes import Passes
    from .serving.vocabulary import Vocabulary

    context = checked_reach(container, "--context", args.context)
    use = bitstack.Use(context, batch=args.parallel, prompt=args.prompt_chunk, together=False)
    model, _ = load_as_asked(container, args, use)
    with ExitStack() as stack:
        stack.callback(model.bitstack.close)
        passes, vocabulary = Passes(model), Vocabulary(bitstack.load_tokenizer(container), model)
        limits = replace(service.limits, context=model.bitstack.needs.context)
        governor = stack.enter_context(driven(model, args, *logging.getLogger("bitstack").handlers))
        state = Budget(model.bitstack, governor)
        engine = Engine(passes, limits.parallel, service.metrics).start()
        try:
            service.begin(engine, vocabulary, state, limits)
            _say_ready(args, service, state, address)
            _until_asked()
            _drain(service, http)
        finally:
            service.draining = True
            state.settle()
            engine.stop()


def _until_asked() -> None:
    with suppress(_Asked):
        while True:
            time.sleep(3600)


def _drain(service: "Service", http: "HttpServer") -> None:
    """Answer nothing new, and wait until what runs is through, for the grace time or until a second signal."""
    service.draining = True
    http.close()
    say(f"bstk: stopping; {service.admitted} requests are being answered")
    over = time.monotonic() + service.limits.grace
    with suppress(_Asked):
        while service.admitted and time.monotonic() < over:
            time.sleep(0.05)


def _say_ready(args: argparse.Namespace, service: "Service", budget: Any, address: str) -> None:
    state = budget.state()
    size, blocks = exact_size(state["resident_bytes"]), f"{state['n_blocks']} of {state['available_blocks']} blocks"
    say(f"bstk: ready: {service.name} on http://{address}/v1, {size}, {blocks}, context {service.limits.context}")
    if args.json:
        print_json({"url": f"http://{address}/v1", "model": service.name, "context": service.limits.context} | state)
        sys.stdout.flush()


def _name(container: Container) -> str:
    """What the file is called, without its folder, its host and its type."""
    path = urlsplit(container.uri).path if "://" in container.uri else container.uri
    name = PurePosixPath(path.replace("\\", "/")).name.removesuffix(".bstk")
    return re.sub(r"[^\w.@-]", "-", name)[:100] or "model"


@contextmanager
def _signals() -> Iterator[None]:
    """Within it SIGINT and SIGTERM raise `_Asked` in the main thread, wherever that is."""

    def asked(number: int, frame: object) -> None:
        raise _Asked

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _logging() -> Iterator[None]:
    """Within it what our modules, and the web server, have to say goes to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("bstk: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("bitstack", "uvicorn.error")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
