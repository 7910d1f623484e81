import html.parser
import json
import re
import shutil

import pytest
import tiny_run

from defi_jax import errors
from tools.report import writer

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Outline(html.parser.HTMLParser):
    """Checks that tags close in order; keeps the visible text and what the page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.sources = [], [], []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass  # SVG closes its own

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open):
            self.text.append(data)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tiny_run.write(tmp_path_factory.mktemp("writer") / "run")
    writer.write(folder)
    return folder


def test_json_holds_the_seconds_of_the_report_too(root):
    report = json.loads((root / writer.NUMBERS).read_text())
    assert list(report["phase_seconds"]) == [*tiny_run.PHASES, "report"]
    assert report["total_seconds"] == pytest.approx(
        sum(tiny_run.PHASES.values()) + report["phase_seconds"]["report"]
    )


def test_page_is_well_formed_and_refers_to_nothing_outside(root):
    text = (root / writer.PAGE).read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert not re.search(r"https?://", text)
    assert all(s.startswith(("data:", "#")) for s in outline.sources)
    # Two sheets, two clips of four pictures, four pairs; films of nine shown episodes.
    kinds = [s.split(";")[0] for s in outline.sources]
    assert kinds.count("data:image/webp") == 2 + 2 * 4 + 4
    assert kinds.count("data:video/mp4") == 4 + 6


def test_page_says_the_numbers_and_escapes_what_others_wrote(root):
    outline = Outline()
    outline.feed((root / writer.PAGE).read_text())
    words = " ".join(" ".join(outline.text).split())
    for expected in ("67 %", "24.2 dB", "at most 50 %", "press <the> button"):
        assert expected in words, expected
    assert re.search(r"20\.\d min", words)  # and the seconds of the report itself


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("phases.json", "launch/demo.py --output={root}"),
        ("gidm/metrics.jsonl", "--config=configs/gidm.py:tiny --workdir={root}/gidm"),
        ("bundle/bundle.json", "launch/export.py --workdir={root}/joint --output={root}/bundle"),
        ("evaluation/results.json", "-m defi_rollout evaluate {root}/bundle"),
        ("data/human.png", "launch/data.py preview --store={root}/data/human"),
    ],
)
def test_missing_file_is_named_with_the_command_that_makes_it(root, tmp_path, name, command):
    run = shutil.copytree(root, tmp_path / "run")
    (run / writer.PAGE).unlink()
    (run / name).unlink()
    with pytest.raises(errors.UserError) as caught:
        writer.write(run)
    assert str(run / name) in str(caught.value)
    assert command.format(root=run) in str(caught.value)
    assert not (run / writer.PAGE).exists()


def test_films_beyond_the_limit_are_named_instead(root, monkeypatch):
    monkeypatch.setattr("tools.report.pictures.MAX_BYTES", 0)
    writer.write(root)
    text = (root / writer.PAGE).read_text()
    assert "<video" not in text and "videos/drawer-open-v3-0000.mp4" in text


def test_a_run_without_codebook_has_a_report(root, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(root, run)
    for path in (run / "gidm/media").glob("*pairs_by_code*"):
        path.unlink()
    lines = [json.loads(line) for line in (run / "gidm/metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith("code_")} for line in lines]
    (run / "gidm/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    report = writer.write(run)
    assert report["gidm_code_usage"] is None and report["probe_r2"] == 0.625
    text = (run / writer.PAGE).read_text()
    assert "its codebook is switched off" in text and 'class="code"' not in text
