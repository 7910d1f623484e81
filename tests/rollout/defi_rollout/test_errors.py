import pytest
from defi_rollout import errors


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (ValueError("of odd length"), "of odd length"),
        (KeyError("fps"), "KeyError('fps')"),
        (OSError(28, "No space left on device", "a.npy"), "No space left on device"),
        (MemoryError(), "MemoryError()"),
    ],
)
def test_an_error_takes_the_place_of_others_and_says_them(cause, said):
    with (
        pytest.raises(errors.DataError) as caught,
        errors.DataError.instead_of(
            (ValueError, KeyError, OSError, MemoryError), "cut", "a.npy", "again"
        ),
    ):
        raise cause
    assert str(caught.value) == f"cut ({said}): a.npy; again"
    assert caught.value.__cause__ is cause


def test_other_errors_pass_as_they_are():
    with (
        pytest.raises(errors.UserError, match="mine"),
        errors.DataError.instead_of(ValueError, "not this"),
    ):
        raise errors.UserError("mine")
