"""Token ids of examples/cpp against transformers', for vocabularies learnt from the documents and the prompts below."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from svdq_trt.artifact import pipeline_file
from svdq_trt.artifact.entry import FileEntry
from svdq_trt.artifact.pipeline_file import PipelineFile
from tests.cpu.cpp.conftest import run
from tests.harness.manifests import file_entry

transformers = pytest.importorskip("transformers", reason="transformers is not installed: the ids are its")
ROOT = Path(__file__).resolve().parents[3]
LENGTH = 77

PROMPTS = (
    "",
    " ",
    "a photo of a fox",
    "A PHOTO  of\ta\nFox,\u00a0close-up\u3000!",
    "it's the dog's, they'll, we've, I'm, you're, he'd, can't; 'Tis IT'S 'S",
    "4k 8K 1024x1024 f/1.8 ½ ² ٣ 十二 Ⅷ",
    "naïve café crème brûlée; cafe\u0301 nai\u0308ve",  # one letter, and two that become one
    "ИВАН Грозный, Ἀχιλλεύς ΟΔΥΣΣΕΥΣ, İstanbul ISPARTA ıi, STRASSE straße, ǅ ﬁ ﬀ",
    "一只狐狸 きつね キツネ 여우 狐",
    "नमस्ते สวัสดี שָׁלוֹם مَرْحَبًا",
    "🦊 fox 👩‍🚀 on the moon 🌕🌕 👍🏽 ❤️ 🇫🇷",
    "(masterpiece:1.2), [best], {quality}, <lora:foo:0.8> -- *** ... !!! ?!",
    "!",
    "!!! hello! wow",
    "<|endoftext|> a <|startoftext|>fox<|ENDOFTEXT|>!!<|startoftext|>>> a|> <|endoftext",
    "</s> a<pad> fox <unk> </s",
    "zero\u200bwidth\u200djoiner\ufeff and \u0085next\u000bline\u2028separator",
    "ﬃ Ⅳ ① ㎏ ｆｕｌｌ ｗｉｄｔｈ ½ …",
    'controls \x01\x02\x7f, ~tilde~ `code` $x^2$ \\backslash\\ "quotes" “curly” ‘s ’s',
    "a very long prompt, " * 40,
    "éüñ" * 30,
    "supercalifragilisticexpialidocious" * 5,
    "𝒜 𝔣𝔬𝔵 𐍈 𠮷野家 \U0001f98a\u0301",
)


def folder_of(path: Path, component: str, class_name: str) -> Path:
    """A folder of no engines with the files that lie in that of its tokenizer."""
    index = {"_class_name": "FluxPipeline", component: ["transformers", class_name]}
    (path / "model_index.json").write_text(json.dumps(index))
    files = [p.relative_to(path).as_posix() for p in path.rglob("*.*") if p.name != "pipeline.json"]
    listed = tuple(FileEntry(**file_entry(path / file) | {"file": file}) for file in files)
    pipeline_file.write(path, PipelineFile(pipeline="FluxPipeline", engines={}, files=listed))
    return path


def ids(driver, folder: Path, component: str):
    """Of all prompts: ids, and how many the whole text has."""
    done = run(driver, "tokens", folder, component, LENGTH, given=json.dumps(PROMPTS))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def expected(tokenizer):
    cut = tokenizer(list(PROMPTS), padding="max_length", max_length=LENGTH, truncation=True).input_ids
    return [[one, len(tokenizer(text, verbose=False).input_ids)] for text, one in zip(PROMPTS, cut, strict=True)]


def compare(got, want):
    for text, ours, theirs in zip(PROMPTS, got, want, strict=True):
        assert ours == theirs, (text, ours, theirs)


def lines():
    documents = [line for path in sorted((ROOT / "docs").glob("*.md")) for line in path.read_text().splitlines()]
    return [*documents, *PROMPTS[2:]]


@pytest.fixture(scope="module")
def clip_backend():
    """CLIP's tokenizer with a vocabulary of 1500."""
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    backend = transformers.CLIPTokenizer().backend_tokenizer
    specials = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = ByteLevel.alphabet()
    backend.train_from_iterator(
        lines(),
        BpeTrainer(
            vocab_size=1500,
            end_of_word_suffix="</w>",
            special_tokens=["!", *specials],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return json.loads(backend.to_str())["model"]


def as_published(folder: Path, model, pad: str) -> None:
    """A folder with vocab.json and merges.txt, as CLIP's have it; SDXL's second has another padding."""
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    options = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    specials = {
        name: {"content": f"<|{word}|>", **options}
        for name, word in (("bos_token", "startoftext"), ("eos_token", "endoftext"), ("unk_token", "endoftext"))
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(specials | {"pad_token": pad}))
    typed = {name: {"__type": "AddedToken", **token} for name, token in specials.items()}
    config = {"model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | typed | {"pad_token": pad}))


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_clip_of_vocabulary_and_merges(driver, clip_backend, tmp_path, pad):
    as_published(tmp_path / "tokenizer", clip_backend, pad)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    compare(ids(driver, folder_of(tmp_path, "tokenizer", "CLIPTokenizer"), "tokenizer"), expected(tokenizer))


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_clip_of_one_file(driver, clip_backend, tmp_path, pad):
    """What transformers 5 saves."""
    merges = [tuple(pair) for pair in clip_backend["merges"]]
    options = {"model_max_length": LENGTH, "pad_token": pad}
    transformers.CLIPTokenizer(vocab=clip_backend["vocab"], merges=merges, **options).save_pretrained(
        tmp_path / "tokenizer"
    )
    assert not (tmp_path / "tokenizer" / "vocab.json").exists()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    compare(ids(driver, folder_of(tmp_path, "tokenizer", "CLIPTokenizer"), "tokenizer"), expected(tokenizer))


def sentencepiece_model(file: Path):
    """A SentencePiece file as Protocol Buffers read it."""
    from transformers.utils import sentencepiece_model_pb2_new as pb2

    model = pb2.ModelProto()
    model.ParseFromString(file.read_bytes())
    return model


@pytest.fixture(scope="module")
def t5(driver, tmp_path_factory):
    """A folder as T5's are published: a SentencePiece file with T5's normalizer, and tokenizer.json of the same."""
    folder = tmp_path_factory.mktemp("t5")
    (folder / "text").write_text("\n".join(lines()))
    trained = run(driver, "train", folder / "text", folder / "spiece", 1200)
    assert trained.returncode == 0, trained.stderr
    model = sentencepiece_model(folder / "spiece.model")
    vocab = [(piece.piece, piece.score) for piece in model.pieces]
    charsmap = model.normalizer_spec.precompiled_charsmap
    assert len(charsmap) > 100_000
    tokenizer = transformers.T5Tokenizer(vocab=vocab, _spm_precompiled_charsmap=charsmap, extra_ids=2)
    tokenizer.save_pretrained(folder / "tokenizer_2")
    return folder


@pytest.mark.parametrize("from_sentencepiece", [True, False])
def test_t5(driver, t5, tmp_path, from_sentencepiece):
    target = tmp_path / "tokenizer_2"
    target.mkdir()
    for file in (t5 / "tokenizer_2").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    if from_sentencepiece:
        (target / "spiece.model").write_bytes((t5 / "spiece.model").read_bytes())
    tokenizer = transformers.T5Tokenizer.from_pretrained(target, local_files_only=True)
    compare(ids(driver, folder_of(tmp_path, "tokenizer_2", "T5Tokenizer"), "tokenizer_2"), expected(tokenizer))


def test_t5_without_a_normalizer(driver, tmp_path):
    from tests.harness import tiny_encoders

    (tmp_path / "tokenizer_2").mkdir()
    tokenizer, _ = tiny_encoders.t5(tmp_path / "tokenizer_2")
    compare(ids(driver, folder_of(tmp_path, "tokenizer_2", "T5Tokenizer"), "tokenizer_2"), expected(tokenizer))
