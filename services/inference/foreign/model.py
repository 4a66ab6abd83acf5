"""A causal model of transformers: loaded, tried, and called with what its signature takes; hot: every step.

What a model can do is asked of its class and its cache. One thing is tried: that a text read at once and token by
token, with the state kept between, gives the same logits. Encoders that are stored as language models do not, nor do
classes that keep their state elsewhere.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import (
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)
from transformers.utils import logging as library_logging

from formats.checkpoint.architecture import Unsupported
from microkernel.errors import DataLoss, Overloaded
from services.inference.foreign.folder import ForeignFolder, state_per_page

__all__ = ["CausalModel"]

TRIED = (1, 2, 3, 4)  # tokens of the trial
GO_ON = frozenset(
    {
        "bamba",
        "falcon_h1",
        "granitemoehybrid",
        "lfm2",
        "lfm2_moe",
        "mamba2",
        "nemotron_h",
        "olmo_hybrid",
        "qwen3_5_text",
        "qwen3_next",
    }
)
"""Models whose recurrent state goes on with several tokens at once, as is tested; others lose what came before them."""

MERGED = {DummyLayer, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer}  # see `batch`


class CausalModel:
    """A loaded model and what it can do.

    `reads_at_once`: only the first piece of a text may have several tokens. `merges`: states of equal length can be
    computed in one batch; `pads`: those of different lengths too. `page_bytes` is a page's share of a state.
    """

    def __init__(self, folder: ForeignFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        """Read the weights and try them. Raises `Unsupported`, `DataLoss`, and `Overloaded` where memory is short."""
        self.device = device
        self.where = folder.path.name
        self._model = _load(folder, device, dtype)
        takes = inspect.signature(self._model.forward).parameters
        self._takes = set(takes)
        self._state = next((name for name in ("past_key_values", "cache_params") if name in takes), None)
        kinds = {type(layer) for layer in self.fresh().layers}
        recurrent = any(issubclass(kind, LinearAttentionCacheLayerMixin) for kind in kinds)
        text = folder.hf_config.get_text_config(decoder=True)
        self.reads_at_once = recurrent and text.model_type not in GO_ON
        self.merges = kinds <= MERGED
        self.attends = any(issubclass(kind, DynamicLayer) for kind in kinds)
        self.pads = self.merges and (not self.attends or self._pads(text))
        self.weight_bytes: int = sum(parameter.nbytes for parameter in self._model.parameters())
        self.page_bytes = self._try(dtype)

    def fresh(self) -> DynamicCache:
        """The state of a sequence without tokens."""
        return DynamicCache(config=self._model.config)

    def run(
        self, state: DynamicCache, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, keep: int
    ) -> torch.Tensor:
        """Logits [rows, keep, vocabulary] of the last `keep` of `tokens` [rows, n] at `positions` [rows, n].

        `mask` [rows, all tokens] is 0 where a row is padded; None where none is. The state has the tokens afterwards.
        """
        more: dict[str, Any] = {str(self._state): state}
        if "position_ids" in self._takes:
            more["position_ids"] = positions
        if "logits_to_keep" in self._takes:
            more["logits_to_keep"] = keep
        if mask is not None and self.attends:
            more["attention_mask"] = mask
        logits: torch.Tensor = self._model(input_ids=tokens, use_cache=True, return_dict=True, **more).logits
        return logits[:, -keep:]

    def _pads(self, config: Any) -> bool:
        """Whether rows can be padded on the left: each is told its positions, and no layer counts from the first."""
        if "position_ids" not in self._takes or "attention_mask" not in self._takes:
            return False
        chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
        return not chunked and getattr(config, "attention_chunk_size", None) is None

    @torch.inference_mode()
    def _try(self, dtype: torch.dtype) -> int:
        """See that the state works; returns what it takes a page."""
        if self._state is None:
            raise Unsupported(
                f"{self.where}: {type(self._model).__name__} of transformers keeps its state in its own way"
            )
        tokens = torch.tensor([TRIED], device=self.device)
        positions = torch.arange(len(TRIED), device=self.device)[None]
        sizes = []
        try:
            whole = self.run(self.fresh(), tokens, positions, None, len(TRIED)).float()
            state, steps = self.fresh(), []
            for place in range(len(TRIED)):
                one = slice(place, place + 1)
                steps.append(self.run(state, tokens[:, one], positions[:, one], None, 1).float())
                sizes.append(_nbytes(state))
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise _too_large(self.where, self.device) from error
        except Exception as error:
            raise Unsupported(f"{self.where}: transformers cannot run it token by token: {_line(error)}") from error
        if not bool(torch.isfinite(whole).all()):
            raise DataLoss(f"{self.where}: its output is not finite", remedy="verify the model's files")
        apart = (torch.cat(steps, 1) - whole).norm() / (whole - whole.mean()).norm()
        if not apart < max(1e-2, 32 * torch.finfo(dtype).eps):  # nor is it where a step is not finite
            raise Unsupported(
                f"{self.where}: token by token it gives other results than at once: it does not write one token after "
                "the other, or transformers does not keep its state"
            )
        growth = (sizes[-1] - sizes[1]) / (len(sizes) - 2)
        return state_per_page(growth, int(sizes[-1] - growth * len(sizes)))


def _load(folder: ForeignFolder, device: torch.device, dtype: torch.dtype) -> Any:
    library_logging.disable_default_handler()  # its lines go where the node's go
    library_logging.enable_propagation()
    library_logging.disable_progress_bar()
    where = folder.path.name
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder.path,
            config=folder.hf_config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        missing = sorted(report["missing_keys"]) or sorted(str(one) for one in report["mismatched_keys"])
        if missing:
            raise DataLoss(
                f"{where}: tensor {missing[0][:100]} is missing or has another shape", remedy="pull it again"
            )
        for name, parameter in model.named_parameters():
            if not bool(torch.isfinite(parameter.detach().sum(dtype=torch.float64))):
                raise DataLoss(f"{where}: tensor {name} holds numbers that are not finite: the file is damaged")
        return model.to(device).eval()
    except DataLoss:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_large(where, device) from error
    except Exception as error:
        raise Unsupported(f"{where}: transformers cannot load it: {_line(error)}") from error


def _nbytes(state: DynamicCache) -> int:
    """What a state takes."""
    values: list[Any] = []
    for layer in state.layers:
        for value in vars(layer).values():
            values += value.values() if isinstance(value, dict) else [value]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor) and value.dim())


def _too_large(where: str, device: torch.device) -> Overloaded:
    return Overloaded(
        f"{where} does not fit into the memory of {device}", remedy="free memory, or take a smaller model"
    )


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
