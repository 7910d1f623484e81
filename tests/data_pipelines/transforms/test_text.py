import numpy as np

from data_pipelines.transforms import text


def test_paraphrases_are_drawn_in_training_only():
    options = ("open", "pull", "slide")
    rng = np.random.default_rng(0)
    draw, first = text.ChooseParaphrase(draw=True), text.ChooseParaphrase(draw=False)
    assert {draw(options, rng) for _ in range(50)} == set(options)
    assert {first(options, rng) for _ in range(50)} == {"open"}


class _Lengths:
    length = 1

    def __call__(self, texts):
        ids = np.array([[len(entry)] for entry in texts], np.int32)
        return ids, ids > 0

    def describe(self):
        return {"name": "lengths"}


def test_tokens_come_by_role():
    tokenize = text.Tokenize(by_role={"gfdm": _Lengths(), "goal": _Lengths()})
    tokens = tokenize(["abc", ""])
    assert tokens.keys() == {"gfdm", "goal"}
    assert tokens["goal"][0].tolist() == [[3], [0]]
    assert tokens["gfdm"][1].tolist() == [[True], [False]]
    assert tokenize.describe() == {"gfdm": {"name": "lengths"}, "goal": {"name": "lengths"}}
