import numpy as np

from data_pipelines.transforms import text


def test_paraphrases_are_drawn_in_training_only():
    options = ("open", "pull", "slide")
    rng = np.random.default_rng(0)
    assert {text.paraphrase(options, rng, draw=True) for _ in range(50)} == set(options)
    assert {text.paraphrase(options, rng, draw=False) for _ in range(50)} == {"open"}
