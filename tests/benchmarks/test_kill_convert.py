import pytest

from benchmarks import kill_convert, make_rlds


@pytest.mark.slow
def test_killed_and_restarted_conversion_gives_the_bytes_of_one_run(tmp_path):
    made = make_rlds.write(tmp_path / "rlds", size_mib=24, image_size=16, seed=0)
    assert made["episodes"] > 2 * 256  # a shard has 256
    result = kill_convert.run(tmp_path / "rlds" / make_rlds.NAME, tmp_path, kills=3, seed=1)
    assert len(result.killed_at) == 3 and max(result.published_at) > 0
    assert len(result.straight) == 2 * 3 + 1
    assert result.resumed == result.straight
