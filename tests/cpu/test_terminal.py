"""Names from files on a terminal: as they are, on one line, and without a say in what is printed."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.table import Table

from svdq_trt import cli
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.terminal import quoted, say
from svdq_trt.build import events, summary, ui
from svdq_trt.build.console import Console
from svdq_trt.cli import models
from tests.harness.manifests import complete

#: names of folders: what rich would take for markup or a picture, and what a terminal would obey
PLAIN = ["[b]bold[/b]", "[/b]", "[link=x]", ":smile:", "a [1] b", "[red"]
STEERING = {"a\nb": r"a\nb", "\x1b[2Jx": r"\x1b[2Jx", "a\rb": r"a\rb", "\u202egnp": r"\u202egnp", "\udcff": r"\udcff"}


@pytest.mark.parametrize("name", [*PLAIN, *STEERING])
def test_summary_of_a_finished_build(tmp_path, name, capsys):
    lora = {"file": name, "sha256": "", "strength": 1.0, "quantized_layers": [], "dense_layers": []}
    lora |= {"text_encoder_tensors": 0, "left_out": []}
    kept = [{"name": "x", "reason": "[/b] of the recipe"}]
    told_of = complete(loras=[lora], kept_16bit=kept, timings_s={"plan": 1.0}, peak_rss_bytes={"build": 1})
    built = SimpleNamespace(manifest=told_of, engine=SimpleNamespace(folder=tmp_path / name / name), parts=())
    summary.print_summary([built])
    printed, want = capsys.readouterr().out, STEERING.get(name, name)
    assert f"Details: {tmp_path}/{want}/{want}/manifest.json" in printed  # the line under the table
    row = want.rpartition("/")[2]  # the folder's own name
    assert row in [line.partition(" int4 ")[0].strip() for line in printed.splitlines() if " int4 " in line], (
        printed
    )  # its row
    assert f"LoRA {want} at 1" in printed and "[/b] of the recipe" in printed


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", [*PLAIN, *STEERING])
def test_lines_and_bars_of_a_build(name, terminal, monkeypatch):
    out, want = io.StringIO(), STEERING.get(name, name)
    monkeypatch.setattr(ui, "_PLAIN_EVERY_S", -1.0)
    console = Console(file=out, width=200, force_terminal=terminal, color_system=None)
    with ui.Screen(console) as screen:
        screen.say(f"note {name}")
        screen.reused(f"stage {name}")
        with screen.stage(f"sample {name}") as progress:
            progress(1, 4, f"at {name}")
            screen._live.refresh()
    for words in (f"note {want}", f"stage {want}", f"sample {want}", f"at {want}"):
        assert words in out.getvalue(), out.getvalue()


def test_cells_and_titles_of_tables():
    out = io.StringIO()
    table = Table("[/b]", title="[/i]")
    table.add_row("a\x1b[1mb")
    Console(file=out, width=60).print(table)
    assert "[/b]" in out.getvalue() and "[/i]" in out.getvalue() and r"a\x1b[1mb" in out.getvalue()


@pytest.mark.parametrize("name", [*PLAIN, *STEERING])
def test_an_error_is_one_line(name, monkeypatch, capsys):
    def fail(args):
        raise ArtifactError(name, "missing", "a file")

    monkeypatch.setattr(models, "run", fail)
    assert cli.main(["models"]) == 1
    assert capsys.readouterr().err == f"svdq-trt: {STEERING.get(name, name)}: missing, want a file.\n"
    with pytest.raises(SystemExit):
        cli.main([f"--{name}"])
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_verify_quotes_what_a_manifest_says(tmp_path, monkeypatch, capsys):
    from svdq_trt.artifact import manifest as manifests
    from svdq_trt.engine import plugin_lib

    data = complete(model="a\nsvdq-trt: fine", backend={"name": "\x1b[2J", "version": "1"})
    monkeypatch.setattr(manifests, "verify", lambda *_: data)
    monkeypatch.setattr(plugin_lib, "find", lambda: SimpleNamespace(version="1"))
    assert cli.main(["verify", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 2 and r"a\nsvdq-trt: fine" in printed and r"\x1b[2J" in printed


def test_what_a_library_prints_into_the_pipe_is_quoted(capsys):
    assert events.parse("\x1b[2J noise\n") is None
    assert capsys.readouterr().err == "\\x1b[2J noise\n"


def test_say_keeps_its_own_lines_and_letters(capsys):
    say("", "a\tb", "Größe 模型 №1")
    assert capsys.readouterr().out == "\na\\tb\nGröße 模型 №1\n"
    assert quoted("Größe 模型") == "Größe 模型"
