"""Everything a user can set, in frozen sections, validated once; from flags, `QUIRE_*` environment variables and a TOML file.

A field's metadata is its documentation: `quire serve --help` and docs/serving.md are made from it. Field names are unique across
sections, so a flag is `--field-name`, a variable `QUIRE_FIELD_NAME` and a TOML key `[section] field_name`. Flags win over
variables, variables over the file. Config never changes after start.
"""

from __future__ import annotations

import os
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ipc.errors import ConfigError

ENV_PREFIX = "QUIRE_"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ModelConfig(_Section, frozen=True):
    """What to serve."""

    model: Annotated[str, Meta(description="Model directory or hub id; empty serves the bundled demo model.")] = ""
    tokenizer: Annotated[str, Meta(description="Directory with tokenizer.json, if it is not the model's.")] = ""
    served_model_name: Annotated[str, Meta(description="Name clients use for the model; default: its directory name or hub id.")] = ""
    revision: Annotated[str, Meta(description="Branch, tag or commit of a hub model.")] = ""
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="Weights and activations; auto takes the checkpoint's (float16 becomes bfloat16 on the CPU)."),
    ] = "auto"
    max_model_len: Annotated[int, Meta(ge=0, description="Longest prompt plus output in tokens; 0 takes the model's own.")] = 0
    quantization: Annotated[
        Literal["none", "int8", "int4"],
        Meta(description="Round the weights to so many bits when they are loaded (CPU only, docs/serving.md)."),
    ] = "none"
    load_format: Annotated[
        Literal["safetensors", "dummy"], Meta(description="dummy makes random weights of the right shape, for benchmarks.")
    ] = "safetensors"
    chat_template: Annotated[str, Meta(description="File with a Jinja chat template that replaces the model's.")] = ""
    max_logprobs: Annotated[int, Meta(ge=0, le=64, description="Most alternatives a request may ask for per token.")] = 20
    pooling: Annotated[
        Literal["auto", "last", "mean"],
        Meta(description="Embeddings are the last token's state or the mean of all; auto reads 1_Pooling/config.json, else last."),
    ] = "auto"


class CacheConfig(_Section, frozen=True):
    """The paged KV cache."""

    block_size: Annotated[int, Meta(ge=1, le=256, description="Tokens per KV block.")] = 16
    num_blocks: Annotated[int, Meta(ge=0, description="KV blocks to allocate; 0: as many as --kv-cache-memory holds.")] = 0
    kv_cache_memory: Annotated[
        str, Meta(description="Memory for KV blocks per worker, as 512M or 4G; auto decides by device and model.")
    ] = "auto"
    kv_cache_dtype: Annotated[
        Literal["auto", "fp8", "fp8_e4m3"],
        Meta(description="Type of cached keys and values: auto is the model's; fp8 is fp8_e4m3, half the memory, on CUDA only."),
    ] = "auto"
    enable_prefix_caching: Annotated[bool, Meta(description="Share KV blocks between requests that begin alike.")] = True


class SchedulerConfig(_Section, frozen=True):
    """Who runs when."""

    max_num_seqs: Annotated[int, Meta(ge=1, le=8192, description="Most requests in the running batch.")] = 256
    max_num_batched_tokens: Annotated[
        int, Meta(ge=1, le=1_048_576, description="Token budget of one step; longer prompts are prefilled in chunks.")
    ] = 2048
    target_step_ms: Annotated[
        float,
        Meta(
            ge=0,
            le=60_000,
            description="Milliseconds that a step shall take at most: prompts beside running streams, or beside one another, are "
            "computed in chunks of as many tokens as fit by what earlier steps took. 0: as many as the token budget allows.",
        ),
    ] = 250.0
    scheduling_policy: Annotated[
        Literal["fcfs", "priority"], Meta(description="fcfs, or priority: a lower priority number goes first, then arrival.")
    ] = "fcfs"
    max_queued_requests: Annotated[int, Meta(ge=1, description="Waiting requests beyond which new ones get 429.")] = 4096
    overlap: Annotated[bool, Meta(description="Plan a step while the one before it computes.")] = True


class ParallelConfig(_Section, frozen=True):
    """How many processes share the work."""

    tensor_parallel_size: Annotated[int, Meta(ge=1, le=64, description="Workers that split each layer.")] = 1
    frontends: Annotated[int, Meta(ge=1, le=64, description="HTTP processes on the one listening socket.")] = 1


class DeviceConfig(_Section, frozen=True):
    """What computes."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"], Meta(description="auto takes CUDA where there is a usable GPU, else the CPU, and says so.")
    ] = "auto"
    cpu_threads: Annotated[
        int, Meta(ge=0, le=1024, description="Compute threads per CPU worker; 0 shares the cores among the workers.")
    ] = 0
    gpu_memory_utilization: Annotated[
        float,
        Meta(gt=0, le=1, description="Share of a GPU's memory that may be in use, other programs' part included."),
    ] = 0.9
    batch_invariant: Annotated[
        bool, Meta(description="A request's attention gives the same bits alone and in any batch, at some cost of speed; on CUDA only.")
    ] = False
    attention_prefill: Annotated[
        Literal["auto", "mma", "wgmma"],
        Meta(description="Kernel that attends for prompts on CUDA: auto takes mma everywhere; wgmma is for Hopper, not measured yet."),
    ] = "auto"
    enforce_eager: Annotated[bool, Meta(description="Launch every kernel by itself on the GPU, without recorded graphs.")] = False


class StructuredOutputsConfig(_Section, frozen=True):
    """Output that follows a schema, regex or grammar."""

    grammar_processes: Annotated[
        int, Meta(ge=0, le=16, description="Processes that try grammars out before they are used; 0 turns structured output off.")
    ] = 2
    grammar_compile_timeout: Annotated[float, Meta(gt=0, le=600, description="Seconds a grammar may take to compile, else status 400.")] = (
        5.0
    )
    grammar_compile_memory: Annotated[int, Meta(ge=16, le=65_536, description="MiB a grammar may take to compile, else status 400.")] = 512
    max_grammar_chars: Annotated[int, Meta(ge=64, description="Longest schema, regex or grammar in characters.")] = 131_072
    max_grammar_rows: Annotated[int, Meta(ge=1, le=8192, description="Most requests under a grammar in the running batch; more wait.")] = (
        128
    )
    grammar_cache_memory: Annotated[int, Meta(ge=1, description="MiB that compiled grammars, kept for reuse, may take.")] = 128


class ServerConfig(_Section, frozen=True):
    """The HTTP server."""

    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 8000
    api_key: Annotated[list[str], Meta(description="Keys that clients must send as a bearer token; none: open.")] = []
    api_key_file: Annotated[str, Meta(description="File with further keys, one per line; lines that begin with # are not keys.")] = ""
    allowed_host: Annotated[
        list[str], Meta(description="Further names that a Host header may have when listening on loopback; * allows all.")
    ] = []
    allowed_origin: Annotated[
        list[str], Meta(description="Web pages, such as https://app.example, that may ask a server on loopback without keys; * is all.")
    ] = []
    stream_keepalive: Annotated[
        float, Meta(ge=0, description="Seconds of silence after which a stream gets a sign of life; 0 sends none.")
    ] = 15.0
    max_stored_responses: Annotated[int, Meta(ge=0, description="Stored /v1/responses; 0 stores none.")] = 1024
    max_stored_bytes: Annotated[int, Meta(ge=0, description="Memory for stored /v1/responses.")] = 64 * 1024 * 1024
    tool_call_parser: Annotated[
        str, Meta(description="Format of the model's tool calls (docs/tool_calling.md); auto looks at the chat template, none is off.")
    ] = "auto"
    reasoning_parser: Annotated[
        str, Meta(description="Format of the model's reasoning (docs/tool_calling.md); auto looks at the chat template, none is off.")
    ] = "auto"
    tool_call_schemas: Annotated[
        Literal["strict", "always"],
        Meta(description="Calls that a model may make keep to the schemas of tools that say strict, or of all; forced calls always do."),
    ] = "strict"
    state_dir: Annotated[
        str,
        Meta(description="Directory for files and batches; empty: systemd's, else $XDG_STATE_HOME/quire; none turns both off."),
    ] = ""
    max_file_bytes: Annotated[int, Meta(ge=1024, description="Largest upload to /v1/files.")] = 200 * 1024 * 1024
    max_stored_file_bytes: Annotated[int, Meta(ge=1024, description="Disk space for all uploads together.")] = 8 * 1024 * 1024 * 1024
    batch_concurrency: Annotated[int, Meta(ge=1, le=4096, description="Lines of batches (completions of theirs) that run at a time.")] = 16
    max_body_bytes: Annotated[int, Meta(ge=1024, description="Largest request body.")] = 4 * 1024 * 1024
    header_timeout: Annotated[float, Meta(gt=0, description="Seconds a new connection has for its first request's headers.")] = 30.0
    body_timeout: Annotated[float, Meta(gt=0, description="Seconds a request has for its body, else status 408.")] = 60.0
    keepalive_timeout: Annotated[float, Meta(gt=0, description="Seconds after which a connection without a request is closed.")] = 75.0
    max_connections: Annotated[int, Meta(ge=1, description="Open connections per frontend.")] = 8192
    max_prompts_per_request: Annotated[int, Meta(ge=1, description="Prompts in one completions request; times n at most 4x this.")] = 256
    max_embedding_inputs: Annotated[int, Meta(ge=1, description="Inputs in one embeddings request.")] = 2048
    shutdown_timeout: Annotated[float, Meta(ge=0, description="Seconds that running requests get to finish on SIGTERM.")] = 30.0


class LogConfig(_Section, frozen=True):
    """What is said, and how much of it."""

    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least severity that is logged.")] = "info"
    log_requests: Annotated[bool, Meta(description="One line for each finished request.")] = False


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All sections."""

    model: ModelConfig = ModelConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    parallel: ParallelConfig = ParallelConfig()
    device: DeviceConfig = DeviceConfig()
    structured_outputs: StructuredOutputsConfig = StructuredOutputsConfig()
    server: ServerConfig = ServerConfig()
    log: LogConfig = LogConfig()


class Field(msgspec.Struct, frozen=True):
    """One setting, as the CLI and the docs need it."""

    section: str
    name: str
    kind: type  # bool, int, float, str or list
    choices: tuple[str, ...]
    default: Any
    description: str


def fields() -> Iterator[Field]:
    """Every setting of every section, in order."""
    for section_info in msgspec.structs.fields(Config):
        section = typing.cast(type[_Section], section_info.type)
        for info in msgspec.structs.fields(section):
            base, description = info.type, ""
            if typing.get_origin(base) is Annotated:
                base, *metas = typing.get_args(base)
                description = next((meta.description for meta in metas if isinstance(meta, Meta) and meta.description), "")
            choices: tuple[str, ...] = ()
            if typing.get_origin(base) is Literal:
                choices, base = typing.get_args(base), str
            kind = typing.get_origin(base) or base
            default = info.default if info.default is not msgspec.NODEFAULT else info.default_factory()
            yield Field(section_info.name, info.name, kind, choices, default, description)


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, file: str | None = None) -> Config:
    """Merge file, environment and flags (field name to value) into one Config.

    Raises ConfigError naming the unknown key, or the bad value and where it came from.
    """
    known = {field.name: field for field in fields()}
    values: dict[str, dict[str, Any]] = {}
    if file:
        for field, value in _from_file(file, known):
            _put(values, field, value, f"{file}: [{field.section}] {field.name}")
    for key, text in (environ if environ is not None else os.environ).items():
        if not key.startswith(ENV_PREFIX):
            continue
        name = key[len(ENV_PREFIX) :].lower()
        if name not in known:
            raise ConfigError(f"environment variable {key} is not a quire setting{_suggest(name, known)}")
        _put(values, known[name], _parse(known[name], text, key), key)
    for name, value in (flags or {}).items():
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}{_suggest(name, known)}")
        _put(values, known[name], value, "--" + name.replace("_", "-"))
    config = msgspec.convert(values, Config)
    _check_together(config)
    return config


def _from_file(file: str, known: dict[str, Field]) -> Iterator[tuple[Field, Any]]:
    try:
        with open(file, "rb") as handle:
            document = tomllib.load(handle)
    except OSError as error:
        raise ConfigError(f"cannot read the config file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None
    sections = {field.section for field in known.values()}
    for section, table in document.items():
        if section not in sections or not isinstance(table, dict):
            raise ConfigError(f"{file}: unknown section [{section}]; there are {', '.join(sorted(sections))}")
        for name, value in table.items():
            if name not in known or known[name].section != section:
                raise ConfigError(f"{file}: unknown key {name!r} in [{section}]{_suggest(name, known)}")
            yield known[name], value


def _put(values: dict[str, dict[str, Any]], field: Field, value: Any, source: str) -> None:
    """Validate one value against its own section so that the error can name the source."""
    section = next(info.type for info in msgspec.structs.fields(Config) if info.name == field.section)
    try:
        msgspec.convert({field.name: value}, section)
    except msgspec.ValidationError as error:
        reason = str(error).split(" - at")[0]
        reason = reason[0].lower() + reason[1:]
        for kind, words in (("`int`", "an integer"), ("`float`", "a number"), ("`str`", "text"), ("`bool`", "true or false")):
            reason = reason.replace(kind, words)
        reason = reason.split(", got ")[0]  # the value itself is named below
        if field.choices:
            reason = f"must be one of {', '.join(field.choices)}"
        raise ConfigError(f"{source}: {reason}, got {value!r}") from None
    values.setdefault(field.section, {})[field.name] = value


def _parse(field: Field, text: str, source: str) -> Any:
    """A string from the environment as the field's type; lists are separated by commas."""
    try:
        if field.kind is bool:
            return {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}[text.lower()]
        if field.kind is list:
            return [part.strip() for part in text.split(",") if part.strip()]
        return field.kind(text)
    except (ValueError, KeyError):
        expected = {bool: "true or false", int: "an integer", float: "a number"}.get(field.kind, "text")
        raise ConfigError(f"{source}: expected {expected}, got {text!r}") from None


def _suggest(name: str, known: Mapping[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# As in a Host header, without its port.
_HOST = re.compile(r"[^\s/:\[\]]+|\[[0-9a-fA-F:.]+\]")
# A scheme, a host and maybe a port; a slash at the end does no harm.
_ORIGIN = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/\s]+/?")


def _check_together(config: Config) -> None:
    parse_bytes(config.cache.kv_cache_memory)
    if config.scheduler.max_num_batched_tokens < config.scheduler.max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens ({config.scheduler.max_num_batched_tokens}) must be at least max_num_seqs "
            f"({config.scheduler.max_num_seqs}), or a full batch could not take one step"
        )
    for name in config.server.allowed_host:
        if name != "*" and not _HOST.fullmatch(name):
            raise ConfigError(f"allowed_host must be * or a name without scheme and port, such as chat.example.org, got {name!r}")
    for origin in config.server.allowed_origin:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(f"allowed_origin must be * or as browsers send it, https://app.example or http://host:3000, got {origin!r}")


def parse_bytes(text: str) -> int | None:
    """'512M', '4G', '1073741824' in bytes; None for 'auto'. Raises ConfigError."""
    if text == "auto":
        return None
    units = types.MappingProxyType({"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40})
    number, unit = (text[:-1], units[text[-1].upper()]) if text and text[-1].upper() in units else (text, 1)
    try:
        size = int(float(number) * unit)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(f"kv_cache_memory must be 'auto' or a size such as 512M or 4G, got {text!r}")
    return size


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes must know of the model, read from its directory before any of them starts (ipc/model_info.py)."""

    path: str
    tokenizer_path: str
    name: str
    architecture: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: list[int]
    generation_defaults: dict[str, float] = {}
    hidden_size: int = 1
    pooling: Literal["last", "mean"] = "last"


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor hands to one child, as JSON in an inherited descriptor.

    epoch: this process life's number, unique in the runtime directory. fds: name to inherited descriptor number: 'arena', 'death'
    (read end of a pipe that closes when the supervisor dies), 'listen' (frontends). version: quire's.
    """

    role: Literal["frontend", "scheduler", "worker"]
    index: int
    epoch: int
    scheduler_epoch: int
    runtime_dir: str
    device: Literal["cpu", "cuda"]
    config: Config
    model: ModelInfo
    fds: dict[str, int]
    version: str = "unknown"

    def address(self, endpoint: Literal["frontends", "workers", "supervisor"], epoch: int | None = None) -> str:
        """ZeroMQ address of an endpoint; the scheduler's two carry its epoch, so a successor never shares a name with the dead."""
        if endpoint == "supervisor":
            return f"ipc://{self.runtime_dir}/supervisor"
        return f"ipc://{self.runtime_dir}/{endpoint}-{self.scheduler_epoch if epoch is None else epoch}"

    @property
    def identity(self) -> str:
        """ZeroMQ routing id: fresh in each life, because a ROUTER ignores a second peer of the same name."""
        return f"{self.role}.{self.index}.{self.epoch}"
