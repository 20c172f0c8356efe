"""The command `quire`. Each subcommand imports what it needs when it runs, so that the rest starts at once."""

from __future__ import annotations

import argparse
import os
import sys
import time

STARTED = time.monotonic()
ADMIN_ACTIONS = {
    "state": "what the server is doing",
    "drain": "finish running requests, then end, as on SIGTERM",
    "reset-prefix-cache": "forget all KV blocks that no request uses",
    "log-level": "change the log level of all processes",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 after a crash, 2 for what the user can put right."""
    from quire import packages

    try:
        packages.check()
    except ImportError as error:
        print(f"quire: {error}", file=sys.stderr)
        return 2
    words = sys.argv[1:] if arguments is None else arguments
    parsed = _parser(benchmarks=words[:1] == ["bench"]).parse_args(words)
    from ipc.errors import ConfigError, QuireError

    try:
        code = int(parsed.run(parsed))
        sys.stdout.flush()
        return code
    except ConfigError as error:
        print(f"quire: {error}", file=sys.stderr)
        return 2
    except QuireError as error:
        print(f"quire: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who read our output has left, as `head` does. Nothing may try to write the rest of it when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser(benchmarks: bool) -> argparse.ArgumentParser:
    """benchmarks: with the flags of `quire bench`, whose modules nobody else needs."""
    from quire import settings_flags

    parser = settings_flags.Parser(prog="quire", description="Serve large language models.", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=settings_flags.Parser)
    serve = commands.add_parser("serve", help="run the HTTP server", description="Run the HTTP server.", allow_abbrev=False)
    serve.add_argument("positional_model", nargs="?", metavar="MODEL", help="directory or hub id; none serves the bundled demo model")
    settings_flags.add(serve)
    serve.set_defaults(run=_serve)
    about = "Talk to a model in the terminal."
    chat = commands.add_parser("chat", help="talk to a model in the terminal", description=about, allow_abbrev=False)
    chat.add_argument("positional_model", nargs="?", metavar="MODEL", help="directory or hub id; none takes the bundled demo model")
    chat.add_argument("--url", help="talk to the server at this address instead of starting an engine")
    chat.add_argument("--system", metavar="TEXT", help="system message to begin with")
    chat.add_argument("--max-tokens", type=int, metavar="N", help="longest answer; default: the rest of the context")
    chat.add_argument("--temperature", type=float, metavar="T", help="0 is greedy; default: what the model recommends")
    settings_flags.add(chat)
    chat.set_defaults(run=_chat)
    bench = commands.add_parser("bench", help="measure speed", description="Measure speed.", allow_abbrev=False)
    if benchmarks:
        from quire.benchmarks.cli import add_commands

        add_commands(bench.add_subparsers(metavar="COMMAND", required=True, parser_class=settings_flags.Parser))
    about = "Ask or tell a running server, over its admin socket."
    admin = commands.add_parser("admin", help="ask or tell a running server", description=about, allow_abbrev=False)
    actions = admin.add_subparsers(metavar="ACTION", required=True, dest="action", parser_class=settings_flags.Parser)
    for name, what in ADMIN_ACTIONS.items():
        action = actions.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".", allow_abbrev=False)
        if name == "log-level":
            action.add_argument(
                "value", choices=("debug", "info", "warning", "error"), metavar="LEVEL", help="debug, info, warning or error"
            )
        action.add_argument("--socket", default="", metavar="PATH", help="its admin socket; default: that of the one server that runs")
        action.set_defaults(run=_admin)
    commands.add_parser("version", help="print the version").set_defaults(run=_version)
    parser.add_argument("--version", action="version", version=_version_text(), help=argparse.SUPPRESS)
    return parser


def _serve(parsed: argparse.Namespace) -> int:
    from quire import early_signals, quick_imports, settings_flags
    from quire.early_workers import EarlyWorkers

    config = settings_flags.collect(parsed)
    with early_signals.end_in_order(), EarlyWorkers(config.parallel.tensor_parallel_size) as early:
        quick_imports.begin()
        from quire.serve import serve

        quick_imports.end()
        return serve(config, STARTED, early)


def _chat(parsed: argparse.Namespace) -> int:
    from quire import chat, settings_flags

    config = settings_flags.collect(parsed)
    request = chat.Settings(system=parsed.system or "", max_tokens=parsed.max_tokens, temperature=parsed.temperature)
    if parsed.url:
        keys = config.server.api_key
        return chat.talk(chat.HttpBackend(parsed.url, keys[0] if keys else "", config.model.model), request)
    return chat.talk(chat.EngineBackend(settings_flags.given(parsed)), request)


def _admin(parsed: argparse.Namespace) -> int:
    from quire import admin_client

    return admin_client.run(parsed.action, getattr(parsed, "value", ""), parsed.socket)


def _version(_parsed: argparse.Namespace) -> int:
    print(_version_text())
    return 0


def _version_text() -> str:
    from quire.version import __version__

    return f"quire {__version__}"


if __name__ == "__main__":
    sys.exit(main())
