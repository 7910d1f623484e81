from defi_rollout.benchmarks import base, page, scores


def _row(name, **changes):
    episode = base.Episode(
        id=name,
        task="chain",
        condition=base.STANDARD,
        instruction="open <it>",
        seed=0,
        start="usual",
        max_steps=9,
        scored_task="close",
        ends_on=(),
        film=True,
        stages=("open", "close"),
    )
    return episode.row() | {"status": "ok", "steps": 9, "video": f"videos/{name}.mp4"} | changes


def test_failures_come_first_and_say_where(tmp_path):
    rows = [
        _row("good", success=True, first_success={"open": 3, "close": 8}),
        _row("bad", first_success={"open": 3, "close": None}),
        _row("lost", status="crashed", steps=0, video=None),
    ]
    results = {
        "protocol": {"name": "toy", "version": "1", "sha256": "0" * 64},
        "bundle_sha256": None,
        "policy": {"kind": "bundle", "origins": ["self-made, scripted"]},
        "simulator": {"name": "toy", "version": "2", "commit": "c"},
        "renderer": {"vendor": "Mesa", "name": "llvmpipe", "comparable": False},
        "success_mode": base.FIRST_SUCCESS,
        "summary": scores.summarise(rows),
        "episodes": rows,
        "language_episodes": [],
    }
    page.write_page(tmp_path, results)
    text = (tmp_path / "index.html").read_text()
    assert text.index("videos/bad.mp4") < text.index("videos/good.mp4")
    assert "failed at task 2 of 2: close" in text and "crashed after 0 steps" in text
    assert "<td>trained on</td><td>self-made, scripted</td>" in text
    assert "open &lt;it&gt;" in text and "<it>" not in text
    assert "3 chains, 1.00 tasks done on average" in text and "pixels not those of a GPU" in text
