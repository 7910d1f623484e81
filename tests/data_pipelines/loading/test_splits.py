import pytest
from defi_rollout import spec

from data_pipelines.loading import splits
from defi_jax import errors
from defi_jax.models.frozen import tokenizers


def _fingerprint(tokenizer):
    request = splits.Request(
        tokenizers={"gfdm": tokenizer},
        split="train",
        seed=0,
        global_batch=2,
        process_index=0,
        process_count=1,
    )
    return request.fingerprint()["tokenizers"]["gfdm"]


def test_fingerprint_tells_rules_apart():
    facts = {"name": "bytes", "length": 20, "lower_case": True, "strip_punctuation": False}
    tokenizer = tokenizers.utf8(20, lower_case=True, strip_punctuation=False)
    assert _fingerprint(tokenizer) == facts


def test_fingerprint_changes_with_either_file_of_a_pair(tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{}")
    text = spec.TextSpec(
        name="clip",
        length=8,
        lower_case=False,
        strip_punctuation=False,
        file="vocab.json",
        start_ids=(20,),
        end_ids=(21,),
        pad_id=21,
    )
    tokenizer = tokenizers.ReleaseTokenizer(text=text, directory=str(tmp_path), vocab_size=22)
    first = _fingerprint(tokenizer)
    assert first["pad_id"] == 21
    digests = {first["sha256"]}
    for name in ("vocab.json", "merges.txt"):
        path = tmp_path / name
        path.write_text(path.read_text() + "\n")
        digests.add(_fingerprint(tokenizer)["sha256"])
    assert len(digests) == 3
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(errors.UserError, match=r"no merges\.txt"):
        _fingerprint(tokenizer)
