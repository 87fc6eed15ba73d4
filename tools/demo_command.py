"""``bstk demo``: a page with a budget slider. (``make demo`` is another thing: `bitstack.tools.demo`.)"""

import argparse
import json
import secrets
import socket
from contextlib import suppress
from importlib.util import find_spec

import bsformat
from bsformat import BstkError, Container
from bsformat.errors import ModelError

from .console import say
from .options import source_options


def run(args: argparse.Namespace) -> int:
    """Load, serve the page until interrupted, and print where it is."""
    for package in ("gradio", "uvicorn"):
        if find_spec(package) is None:
            raise BstkError(f"bstk demo needs {package}: pip install 'bitstack[demo]'", reason="demo")
    from .web.server import is_loopback, listen

    with (
        listen(args.host, args.port) as listening,
        bsformat.open(args.uri, root=args.root, **source_options(args)) as container,
    ):
        for size in (args.budget, args.against, args.ceiling):
            if size is not None:
                container.plan(size)  # refused before anything heavy is imported
        token = None if is_loopback(args.host) else secrets.token_urlsafe(24)
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/" + (f"?token={token}" if token else "")
        _serve(container, args, listening, token, url)
    return 0


def _serve(
    container: Container, args: argparse.Namespace, listening: socket.socket, token: str | None, url: str
) -> None:
    import bitstack

    from .loading import checked_reach, load_with_bar, place
    from .web.page import build, mounted
    from .web.room import find_room
    from .web.server import serve
    from .web.sides import Sides

    device, dtype = place(args)
    use = bitstack.Use(checked_reach(container, "--context", args.context))
    room = find_room(
        container,
        device,
        dtype,
        use,
        models=args.models,
        budget=args.budget,
        against=args.against,
        ceiling=args.ceiling,
    )
    say(f"bstk: {room.reason}")
    models = [load_with_bar(container, room.budgets[i], device, dtype, use=use) for i in range(room.models)]
    if models[0].config.is_encoder_decoder or not models[0].can_generate():
        raise ModelError(
            f"is a {type(models[0]).__name__}, which continues no prompt", where=container.uri, reason="model-task"
        )
    sides = Sides(models, bitstack.load_tokenizer(container), room)
    page = mounted(build(container, sides, prompt=args.prompt, tokens=args.max_new_tokens, raw=args.raw))
    if args.json:
        print(json.dumps({"url": url, "models": room.models, "reason": room.reason}), flush=True)
    else:
        print(f"{url}  (interrupt with Ctrl-C)", flush=True)
    try:
        with suppress(KeyboardInterrupt):  # the way in which this ends
            serve(page, listening, token)
    finally:
        sides.close()
    say("bstk: ended")
