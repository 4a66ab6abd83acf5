"""A folder that transformers computes, asked through the kernel like any other model."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager

import pytest
import tiny_foreign
from tiny_model import write_tiny_model

from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.inference.service import Inference
from services.memory.service import Memory
from services.models.service import Models
from services.scheduler.service import Scheduler

END = 258  # <|im_end|>


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("models") / "foreign")  # for its tokenizer
    return tiny_foreign.write(folder, "gpt2", vocab_size=259, bos_token_id=END, eos_token_id=END)


@asynccontextmanager
async def node(folder):
    services = (Devices, Memory, Models, Scheduler, Inference)
    async with TestKernel(*services, settings={"inference": {"model": str(folder)}}) as system:
        yield system


async def test_it_chats_and_is_shown_with_its_sizes(folder, caplog):
    caplog.set_level(logging.WARNING, "microkernel.inference")
    async with node(folder) as system:
        pieces = [
            piece
            async for piece in system.stream(
                "inference.chat", messages=[{"role": "user", "content": "Hi"}], max_tokens=8, temperature=0
            )
        ]
        assert pieces[-1].usage.completion_tokens > 0
        [model] = await system.call("inference.list")
        assert (model.state, model.architecture, model.quantization) == ("ready", "gpt2", "F32")
        assert model.parameters > 0
    assert "'GPT2LMHeadModel' is not one that is computed here, but by transformers" in caplog.text
