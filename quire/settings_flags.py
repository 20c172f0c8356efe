"""Command-line flags made from the settings (ipc.config), so that a setting is described in one place."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import Any, NoReturn

from ipc import config
from ipc.config import Config
from ipc.errors import ConfigError

_TITLES = {
    "model": "model",
    "cache": "KV cache",
    "scheduler": "scheduling",
    "parallel": "processes",
    "device": "device",
    "structured_outputs": "structured output",
    "server": "HTTP server",
    "log": "logging",
}
# Where the kind of value does not say it.
_METAVARS = {"target_step_ms": "MS", "gpu_memory_utilization": "SHARE", "kv_cache_memory": "SIZE"}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, with exit code 2; it knows which subcommand an unknown flag was meant for."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            self.error(f"unknown argument {flag}" + (f"; did you mean {close[0]}?" if close else ""))
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


def add(parser: argparse.ArgumentParser) -> None:
    """One flag per setting, grouped by section, besides the file that may hold them."""
    parser.formatter_class = _Help
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings; flags and QUIRE_* variables win over it")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in config.fields():
        if field.section not in groups:
            groups[field.section] = parser.add_argument_group(_TITLES.get(field.section, field.section))
        groups[field.section].add_argument("--" + field.name.replace("_", "-"), dest=field.name, **_options(field))


def collect(arguments: argparse.Namespace) -> Config:
    """The Config that these flags, the environment and the file make together. Raises ConfigError."""
    return config.load(given(arguments), file=arguments.config)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings given as flags, by field name. Raises ConfigError when the model is named twice."""
    names = {field.name for field in config.fields()}
    flags = {name: value for name, value in vars(arguments).items() if name in names}
    positional: str | None = arguments.positional_model
    if positional is not None:
        if flags.setdefault("model", positional) != positional:
            raise ConfigError(f"two models are named: {positional} and --model {flags['model']}")
    return flags


def _options(field: config.Field) -> dict[str, Any]:
    """Arguments of add_argument. SUPPRESS: what was not given must not hide the environment or the file."""
    default = {True: "on", False: "off"}.get(field.default, field.default) if field.kind is bool else field.default
    shown = f" (default: {default})" if default not in ("", [], None) else ""
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": (field.description + shown).replace("%", "%%")}
    if field.kind is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    if field.kind is list:
        return options | {"action": "append", "metavar": "TEXT", "help": options["help"] + " May be given several times."}
    if field.choices:
        return options | {"choices": field.choices}
    metavar = {int: "N", float: "SECONDS"}.get(field.kind, "TEXT")
    return options | {"type": field.kind, "metavar": _METAVARS.get(field.name, metavar)}
