import jax
import numpy as np

from defi_jax.models.frozen import bytes_text, tokenizers

CONFIG = bytes_text.BytesTextConfig(dim=64)
TOKENIZER = tokenizers.utf8(48, lower_case=True, strip_punctuation=True)
OPPOSITES = {
    "open": ["open the drawer", "pull the drawer open", "please open the window", "slide it open"],
    "close": ["close the drawer", "push the drawer closed", "please close the window", "close it"],
    "left": ["move it left", "slide the window to the left", "go left", "to the left please"],
    "right": ["move it right", "slide the window to the right", "go right", "to the right please"],
}


def _features(texts):
    run = jax.jit(lambda ids, mask: bytes_text.ngram_features(CONFIG, ids, mask))
    tokens, pooled = run(*TOKENIZER(texts))
    return np.asarray(tokens), np.asarray(pooled)


def _reference(text: bytes, position: int) -> np.ndarray:
    """The documented rule in plain Python integers."""

    def fmix(value):
        value = (value ^ (value >> 16)) * 0x85EBCA6B % 2**32
        value = (value ^ (value >> 13)) * 0xC2B2AE35 % 2**32
        return value ^ (value >> 16)

    def is_word(byte):
        return byte > 127 or bytes([byte]).isalnum()

    out = []
    for scale, width in enumerate((3, 6, 16, 16)):
        digest = fmix(CONFIG.seed * 31 + scale)
        for offset in reversed(range(width)):
            span = text[max(position - offset, 0) : position + 1]
            inside = position >= offset and (scale == 3 or all(map(is_word, span)) or offset == 0)
            digest = (digest ^ (text[position - offset] + 1 if inside else 0)) * 16777619 % 2**32
        for d in range(CONFIG.dim // 4):
            bits = fmix((digest + (d + 1) * 0x9E3779B9) % 2**32)
            amplitude = CONFIG.context_scale if scale == 3 else 1.0
            out.append(((bits >> 8) / 2**24 - 0.5) * 12**0.5 * amplitude)
    return np.array(out)


def test_tokens_follow_the_documented_rule():
    text = "open the 2nd drawer é"
    tokens, _ = _features([text])
    for position in (0, 3, 4, 8, 18, 21):
        expected = _reference(text.encode(), position)
        np.testing.assert_allclose(tokens[0, position], expected, rtol=1e-6, atol=1e-6)


def test_the_end_of_a_word_is_the_same_wherever_the_word_stands():
    tokens, _ = _features(["open the drawer", "the drawer is open"])
    word_scales = CONFIG.dim * 3 // 4
    np.testing.assert_array_equal(tokens[0, 3, :word_scales], tokens[1, 17, :word_scales])
    assert (tokens[0, 3, word_scales:] != tokens[1, 17, word_scales:]).any()


def test_scale_padding_and_empty_text():
    tokens, pooled = _features(["close the window now please thanks", ""])
    assert 0.8 < tokens[0, :34, :48].std() < 1.2
    assert (tokens[0, 34:] == 0).all()
    np.testing.assert_allclose(np.sqrt(np.mean(pooled[0] ** 2)), 1.0, rtol=1e-5)
    assert (pooled[1] == 0).all()


def test_opposite_instructions_are_linearly_separable_and_generalise():
    texts = [text for group in OPPOSITES.values() for text in group]
    labels = np.repeat(np.arange(4), 4)
    _, pooled = _features(texts)

    def fit_and_predict(train, test):
        targets = np.eye(4)[labels[train]] - 0.25
        kernel = pooled[train] @ pooled[train].T + 0.1 * CONFIG.dim * np.eye(len(train))
        return (pooled[test] @ pooled[train].T @ np.linalg.solve(kernel, targets)).argmax(axis=1)

    everything = np.arange(16)
    np.testing.assert_array_equal(fit_and_predict(everything, everything), labels)
    unseen = [fit_and_predict(np.delete(everything, i), [i])[0] == labels[i] for i in everything]
    assert np.mean(unseen) >= 0.75


def test_another_seed_is_another_projection():
    ids, mask = TOKENIZER(["open"])
    other = bytes_text.BytesTextConfig(dim=64, seed=1)
    first, _ = bytes_text.ngram_features(CONFIG, ids, mask)
    second, _ = bytes_text.ngram_features(other, ids, mask)
    assert not np.isclose(first[0, :4], second[0, :4]).any(axis=0).all()
