"""The live view of an answer: what `generate --watch` and chat leave on the screen is the answer that generate prints.

    bash tests/run.sh tests/test_watch.py
"""

import os
import re

import pytest
import torch

import run
from dpad.engine.loading import load
from dpad.interact import terminal
from dpad.results.formatting import LAYOUT, printable

PROMPT = "Dan is 33 years old. Zoe is 38 years older than Dan. How old is Zoe?"


@pytest.fixture
def model(checkpoint_folder):
    """Flags for a small random model."""
    return ["-m", str(checkpoint_folder), "--device", "cpu"]


def left_on_screen(shown):
    """What a terminal shows in the end: drafts are gone, and so is what moves the cursor."""
    return re.sub(r"(\x1bD)+\x1b\[\d+A\x1b7.*?\x1b8\x1b\[J", "", shown, flags=re.DOTALL)


@pytest.mark.parametrize("flags", [
    ["-b", "16", "-th", "1"], ["-b", "16", "-th", "0.5", "-e"], ["-b", "32"],
], ids=" ".join)
def test_watch_shows_drafts_and_ends_with_the_answer(model, capsys, monkeypatch, flags):
    """--watch draws masks being decoded, without special tokens, and leaves what generate prints on a terminal."""
    command = ["generate", *model, "--prompt", PROMPT, "-l", "32", *flags]
    assert run.main(command) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr(terminal, "can_redraw", lambda: True)
    assert run.main([*command, "--watch"]) == 0
    shown = capsys.readouterr().out
    assert "░" in shown and "<|" not in shown and PROMPT not in shown
    left = left_on_screen(shown)
    assert "\x1b" not in left and left.rpartition("[")[0] == printable(expected, LAYOUT).rpartition("[")[0]


def test_watch_in_a_pipe_is_generate(model, capsys):
    """Nothing is drawn where nobody looks: lines, as without --watch."""
    command = ["generate", *model, "--prompt", PROMPT, "-l", "32", "-th", "0.02"]
    assert run.main(command) == 0
    expected = capsys.readouterr().out
    assert run.main([*command, "--watch"]) == 0
    assert capsys.readouterr().out.rpartition("[")[0] == expected.rpartition("[")[0]


def test_what_a_model_writes_cannot_steer_the_terminal(capsys):
    """Guards drafts and finished blocks, in chat as well, against a model that writes escape sequences."""
    loaded = load("tiny", device="cpu")
    mask_id = loaded.model.config.mask_token_id
    ids = loaded.tokenizer("one\x1b[2J\x1b]0;title\x07\ntwo\r", add_special_tokens=False)["input_ids"]
    view = terminal.LiveView(loaded, colour=False)
    view.put(torch.tensor([[5]]))  # the prompt
    for half in (ids[:4], ids[4:]):
        view.put_draft(torch.tensor([[*half, mask_id]]))
        view.put(torch.tensor([half]))
    shown = capsys.readouterr().out
    view.finish(loaded.answer_text.decode(ids))
    shown += capsys.readouterr().out
    assert "\x1b[2J" not in shown and "\x1b]" not in shown and "\x07" not in shown and "\r" not in shown
    assert left_on_screen(shown) == "one\\x1b[2J\\x1b]0;title\\x07\ntwo\\r\n"


@pytest.mark.parametrize("columns, lines", [(40, 10), (80, 24), (1, 1)])
@pytest.mark.parametrize("text", ["x" * 5000, "世" * 3000, "a\n" * 500, "a\tb" * 500, "short", ""],
                         ids=["letters", "wide", "lines", "tabs", "short", "empty"])
def test_a_draft_fits_on_the_screen(text, columns, lines):
    """Guards the saved cursor: a draft that scrolled its own beginning away could not be drawn over."""
    shown, rows = terminal.fit(text, os.terminal_size((columns, lines)))
    assert rows <= max(2, lines - 1) and (shown == text or shown.endswith("…") and text.startswith(shown[:-1]))
    width = {"世": 2, "\t": 8}
    cells = [sum(width.get(character, 1) for character in line) for line in shown.split("\n")]
    assert columns == 1 or sum(max(1, -(-count // columns)) for count in cells) <= rows + 1


def test_an_answer_begins_again_on_another_screen(monkeypatch, capsys):
    """Guards what stands on the screen when its size changes while an answer is drawn."""
    loaded = load("tiny", device="cpu")
    ids = loaded.tokenizer("#### 14 eggs", add_special_tokens=False)["input_ids"]
    view = terminal.LiveView(loaded, colour=False)
    view.put(torch.tensor([[5]]))  # the prompt
    view.put_draft(torch.tensor([ids[:2]]))
    view.put(torch.tensor([ids[:2]]))
    written = view.written
    view.put_draft(torch.tensor([ids[2:]]))
    monkeypatch.setattr(terminal.shutil, "get_terminal_size", lambda: os.terminal_size((47, 11)))
    capsys.readouterr()
    view.put_draft(torch.tensor([ids[2:]]))
    assert capsys.readouterr().out.startswith(f"\n{written}\x1bD")
    view.finish("#### 14 eggs")
    assert capsys.readouterr().out.endswith("eggs\n")


@pytest.mark.parametrize("name, end", [
    ("tiny", "<|endoftext|>"), ("tiny", "<|eot_id|>"), ("dream-tiny", "<|im_end|>"),
])
def test_nothing_is_shown_after_the_end(name, end, capsys):
    """In a block that goes on after its end, in drafts, in later blocks, and where a character is split over blocks."""
    loaded = load(name, device="cpu")
    ids = loaded.tokenizer("#### 14 é", add_special_tokens=False)["input_ids"]
    end_id, mask_id = loaded.tokenizer.convert_tokens_to_ids(end), loaded.model.config.mask_token_id
    rest = loaded.tokenizer("14==", add_special_tokens=False)["input_ids"]
    answer = [*ids, end_id, *rest]
    for split in range(len(answer)):
        view = terminal.LiveView(loaded, colour=False)
        view.put(torch.tensor([rest]))  # the prompt
        for begin, stop in ((0, split), (split, len(answer))):
            draft = [mask_id if token in ids else token for token in answer[begin:stop]]
            view.put_draft(torch.tensor([draft], dtype=torch.long))
            view.put(torch.tensor([answer[begin:stop]], dtype=torch.long))
        view.end()
        view.finish(loaded.answer_text.decode(answer))
        shown = capsys.readouterr().out
        assert "14==" not in shown and "<|" not in shown
        assert left_on_screen(shown) == "#### 14 é\n"
