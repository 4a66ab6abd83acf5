"""Libraries that read and write the tree through fsspec."""

from __future__ import annotations

import os

import fsspec
import fsspec.asyn
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

CONTENT = os.urandom(3_000_000)


def test_pandas_reads_and_writes_tables(fs, environment):
    table = pd.DataFrame({"name": ["ä", "b", "c"], "number": [1, 2, 3]})
    table.to_csv("mk:///data/t/table.csv", index=False)
    assert pd.read_csv("mk:///data/t/table.csv").equals(table)
    table.to_csv("mk:///data/t/table.csv.gz", index=False)
    assert pd.read_csv("mk:///data/t/table.csv.gz").equals(table)
    table.to_json("mk:///data/t/table.jsonl", orient="records", lines=True)
    assert pd.read_json("mk:///data/t/table.jsonl", lines=True).equals(table)
    table.to_pickle("mk:///tmp/t/table.pickle")
    assert pd.read_pickle("mk:///tmp/t/table.pickle").equals(table)
    with pytest.raises(FileNotFoundError):
        pd.read_csv("mk:///data/t/nothing.csv")


def test_pandas_is_told_which_node_it_is(fs, node):
    options = {**node.options, "skip_instance_cache": True}
    pd.DataFrame({"a": [1]}).to_csv("mk:///data/t/x.csv", index=False, storage_options=node.options)
    assert fs.cat_file("/data/t/x.csv") == b"a\n1\n"
    assert len(pd.read_csv("mk:///data/t/x.csv", storage_options=node.options)) == 1
    assert fsspec.filesystem("mk", **options).exists("/data/t/x.csv")


def test_torch_saves_and_loads(fs):
    state = {"weight": torch.randn(300, 1000), "step": 7}
    with fs.open("/data/t/state.pt", "wb") as file:
        torch.save(state, file)
    with fs.open("/data/t/state.pt", "rb") as file:
        loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["weight"], state["weight"])
    assert loaded["step"] == 7


def test_tensors_go_there_and_back(fs):
    tensors = {"a": torch.randn(100, 100), "b": torch.arange(9)}
    with fs.open("/data/t/a.safetensors", "wb") as file:
        file.write(safetensors.torch.save(tensors))
    with fs.open("/data/t/a.safetensors", "rb") as file:
        loaded = safetensors.torch.load(file.read())
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_numpy_saves_and_loads(fs):
    with fs.open("/data/t/a.npy", "wb") as file:
        np.save(file, np.arange(1000))
    with fs.open("/data/t/a.npy", "rb") as file:
        assert np.load(file).tolist() == list(range(1000))


def test_a_mapping_of_files_is_a_folder(fs):
    mapping = fs.get_mapper("/data/t/map")
    mapping["a/b"] = b"1"
    assert dict(mapping) == {"a/b": b"1"}
    del mapping["a/b"]
    assert len(mapping) == 0
