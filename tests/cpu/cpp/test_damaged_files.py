"""Damaged files of a pipeline's folder: text_to_image refuses each in one sentence, or reads it as what it is."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from tests.cpu.cpp.conftest import run
from tests.harness import module_engines
from tests.harness.damage import damaged, tries
from tests.harness.manifests import file_entry

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")
FILES = (
    "pipeline.json",
    "model_index.json",
    "manifest.json",
    "text_encoder_2/manifest.json",
    "scheduler/scheduler_config.json",
    "vae/config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return module_engines.tiny("FluxPipeline", tmp_path_factory.mktemp("damaged"))[1]


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_refused_in_one_sentence(driver, folder, tmp_path, file):
    copy = shutil.copytree(folder, tmp_path / "engines")
    rng, content = random.Random(file), (copy / file).read_text()
    index = json.loads((copy / "pipeline.json").read_text())
    for _ in range(tries(12)):
        (copy / file).write_bytes(damaged(rng, content))
        for entry in index["files"]:
            if entry["file"] == file:  # as if it had been written so
                entry |= file_entry(copy / file) | {"file": file}
        if file != "pipeline.json":
            (copy / "pipeline.json").write_text(json.dumps(index))
        # What is read as it should be ends where engines would be opened: there is no folder to exchange tensors in.
        done = run(
            driver, "picture", tmp_path / "none", copy, "--prompt", "a <unk> fox", "--steps", 2, "--out", "x.png"
        )
        said = done.stderr.strip()
        assert done.returncode == 1 and said.startswith("text_to_image: "), (done.returncode, said)
        assert ", want " in said and said.endswith(".") and "\n" not in said, said
