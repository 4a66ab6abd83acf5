"""What a training job is: the TOML text that `mk train` takes, as types.

Sizes are in tokens, rows and steps; times in seconds. A row is `data.length` tokens, a step is `schedule.rows` rows:
the global batch. A step's rows are cut into `schedule.shards` virtual shards. Their number is fixed for the whole job
and sums are taken in their order, so it does not matter to the result how many workers share them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from microkernel.config import line_of
from microkernel.errors import Invalid
from microkernel.message import Message

__all__ = [
    "CheckpointConfig", "DataConfig", "DeviceConfig", "EvaluationConfig", "FaultConfig", "JobConfig", "MethodConfig",
    "ModelConfig", "ScheduleConfig", "ServeConfig", "read_job", "with_files",
]  # fmt: skip

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
PLACED = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*://")  # how a path begins that means the same wherever it is read
UNKNOWN = re.compile(r"unknown field `([^`]*)`")  # as msgspec says it
LARGEST_TEXT = 1 << 20  # characters of a job's configuration

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
Share = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
Target = Literal["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e9)]
NotNegative = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]


class ModelConfig(Message, forbid_unknown_fields=True, kw_only=True):
    """What is trained: `base` is a stored model, by its name or ref. For one from scratch, its sizes instead.

    A new model has the `architecture` of one that is computed here, and the tokenizer of the stored model `tokenizer`;
    `kv_heads` is `heads` and `head_size` is `hidden_size / heads` unless given.
    """

    base: str | None = None
    architecture: Literal["llama", "qwen2", "qwen3", "mistral"] = "llama"
    tokenizer: str | None = None
    layers: Count | None = None
    hidden_size: Count | None = None
    heads: Count | None = None
    kv_heads: Count | None = None
    head_size: Count | None = None
    ffn_size: Count | None = None
    context_length: Count | None = None
    tied_embeddings: bool = True


class MethodConfig(Message, forbid_unknown_fields=True, kw_only=True):
    """How: `lora` adds low-rank products to `targets` (https://arxiv.org/abs/2106.09685), `full` changes all weights.

    With `four_bit` the base of a LoRA stays in the 4 bits of its file, or is rounded to 4 bits.
    """

    kind: Literal["lora", "full"] = "lora"
    rank: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    alpha: Positive = 32.0
    dropout: Share = 0.0
    targets: tuple[Target, ...] = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    four_bit: bool = False


class DataConfig(Message, forbid_unknown_fields=True, kw_only=True):
    """Of what: files of texts, by their paths in the tree; patterns with `*` are taken.

    `kind`: `text` is a document a file, or the `text` of each record; `chat` has `messages` as OpenAI's, and loss on
    what the assistant says; `completion` has `prompt` and `completion`, and loss on the latter. `auto` looks at the
    first record. Without `evaluation` files, `evaluation_part` of the documents are held out. Up to `bad_records` that
    cannot be read are named and left out.
    """

    train: tuple[str, ...]
    evaluation: tuple[str, ...] = ()
    evaluation_part: Share = 0.02
    kind: Literal["auto", "text", "chat", "completion"] = "auto"
    length: Annotated[int, msgspec.Meta(ge=8, le=1 << 20)] = 512
    bad_records: Annotated[int, msgspec.Meta(ge=0)] = 100


class ScheduleConfig(Message, forbid_unknown_fields=True, kw_only=True):
    """How long and how fast: `steps`, or `epochs` over the data where that is not given.

    The rate rises over `warmup` (steps, or a part of all below 1) and then decays to `final` times its height. `clip` 0
    does not clip. Muon (https://kellerjordan.github.io/posts/muon) takes the matrices of layers, at `muon_rate`, and
    AdamW the rest.
    """

    steps: Count | None = None
    epochs: Positive = 1.0
    rows: Count = 8
    shards: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 4
    optimiser: Literal["adamw", "muon"] = "adamw"
    rate: Positive = 2e-4
    muon_rate: Positive = 0.02
    weight_decay: NotNegative = 0.01
    betas: tuple[Share, Share] = (0.9, 0.95)
    warmup: NotNegative = 0.03
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    final: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.1
    clip: NotNegative = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0


class EvaluationConfig(Message, forbid_unknown_fields=True, kw_only=True):
    """What is measured on held-out rows: every so many steps (0: at the end only), on at most `rows` of them."""

    every: Annotated[int, msgspec.Meta(ge=0)] = 50
    rows: Count = 64


class DeviceConfig(Message, forbid_unknown_fields=True, kw_only=True):
    """On what: `workers` processes by `strategy`, each with `threads` (0: what suits), in `dtype`.

    `recompute` keeps a layer's input only and computes the rest again for the gradient: slower, in less memory.
    """

    strategy: Literal["local", "ddp"] = "local"
    device: str | None = None
    workers: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    recompute: bool = False


class CheckpointConfig(Message, forbid_unknown_fields=True, kw_only=True):
    """When a checkpoint is written: `every` so many steps, or as often as its cost and faults suggest (None).

    Of them `keep` are kept.
    """

    every: Count | None = None
    keep: Count = 2


class FaultConfig(Message, forbid_unknown_fields=True, kw_only=True):
    """What is done about faults: `diverged` is a loss that is no number, or above `spike` times its own mean.

    `rollback` takes the last checkpoint and leaves the rows out that led there. A worker is replaced `restarts` times
    in an hour.
    """

    diverged: Literal["stop", "rollback"] = "stop"
    spike: Annotated[float, msgspec.Meta(gt=1.0)] = 20.0
    restarts: Annotated[int, msgspec.Meta(ge=0)] = 100


class ServeConfig(Message, forbid_unknown_fields=True, kw_only=True):
    """What becomes of the result: its name among the models, the job's unless given, and whether it answers at once."""

    name: str | None = None
    load: bool = True


class JobConfig(Message, forbid_unknown_fields=True, kw_only=True):
    """A whole job."""

    model: ModelConfig
    data: DataConfig
    name: str = "training"
    method: MethodConfig = MethodConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    devices: DeviceConfig = DeviceConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    faults: FaultConfig = FaultConfig()
    serve: ServeConfig = ServeConfig()

    @property
    def from_scratch(self) -> bool:
        """Whether there is no model to begin with."""
        return self.model.base is None


def read_job(text: str, where: str = "the configuration") -> JobConfig:
    """A job by its TOML text. Raises `Invalid` with the line and the key."""
    if len(text) > LARGEST_TEXT:
        raise Invalid(f"{where} has {len(text)} characters, and {LARGEST_TEXT} are taken")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{where} is not TOML: {error}") from error
    return _check(_convert(values, where, text), where, text)


def with_files(
    config: JobConfig, files: Mapping[str, tuple[str, ...]], text: str, where: str = "the configuration"
) -> JobConfig:
    """The job with paths of the tree in place of those that are relative to the file `text` was in.

    Raises `Invalid` with the line for a relative path that `files` does not name, or names nothing for.
    """
    data = config.data
    train = tuple(path for given in data.train for path in _placed("train", given, files, text, where))
    held_out = tuple(path for given in data.evaluation for path in _placed("evaluation", given, files, text, where))
    return msgspec.structs.replace(config, data=msgspec.structs.replace(data, train=train, evaluation=held_out))


def _placed(key: str, given: str, files: Mapping[str, tuple[str, ...]], text: str, where: str) -> tuple[str, ...]:
    if PLACED.match(given):
        return (given,)
    if not files.get(given):
        sentence = f"'{given[:96]}' is relative, and the node does not know to what: paths of its tree begin with /"
        raise _invalid(where, text, ("data", key), f"{sentence}; `mk train` puts files there by itself")
    return files[given]


def _convert(values: dict[str, Any], where: str, text: str) -> JobConfig:
    try:
        return msgspec.convert(values, JobConfig)
    except msgspec.ValidationError as error:
        sentence, _, path = str(error).partition(" - at `$")
        keys = tuple(re.findall(r"[\w-]+", path.rstrip("`").replace("[...]", "")))
        if (unknown := UNKNOWN.search(sentence)) is not None:
            keys, sentence = (*keys, unknown[1]), "there is no such key"
        raise _invalid(where, text, keys, sentence) from error


def _check(config: JobConfig, where: str, text: str) -> JobConfig:
    """What no single field shows."""
    if NAME.fullmatch(config.name) is None:
        raise _invalid(where, text, ("name",), "a name has up to 64 letters, digits and -_., and begins with no sign")
    if not config.data.train:
        raise _invalid(where, text, ("data", "train"), "there is nothing to train on")
    schedule = config.schedule
    if schedule.rows % schedule.shards:
        sentence = f"{schedule.rows} rows cannot be cut into {schedule.shards} equal shards"
        raise _invalid(where, text, ("schedule", "shards"), sentence)
    if config.devices.workers > schedule.shards:
        sentence = f"{config.devices.workers} workers cannot share {schedule.shards} shards: raise schedule.shards"
        raise _invalid(where, text, ("devices", "workers"), sentence)
    if config.devices.workers > 1 and config.devices.strategy == "local":
        raise _invalid(where, text, ("devices", "strategy"), "`local` has one worker: take `ddp` for more")
    if not config.from_scratch:
        return config
    if config.method.kind != "full":
        raise _invalid(where, text, ("method", "kind"), "a model from scratch is trained in full: set kind = 'full'")
    for field in ("tokenizer", "layers", "hidden_size", "heads", "ffn_size"):
        if getattr(config.model, field) is None:
            raise _invalid(where, text, ("model", field), f"without a base, a model needs {field}")
    return config


def _invalid(where: str, text: str, keys: tuple[str, ...], sentence: str) -> Invalid:
    line = line_of(text, keys)
    place = f"{where}, line {line}" if line else where
    field = ".".join(keys)
    return Invalid(f"{place}: {field}: {sentence}" if field else f"{place}: {sentence}", field=field or None)
