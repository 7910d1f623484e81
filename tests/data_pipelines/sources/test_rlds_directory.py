import importlib.util
import json

import pytest

from data_pipelines.sources import rlds_directory
from defi_jax import errors


@pytest.fixture
def episode(rlds_tools):
    return rlds_tools["episode"]


def test_the_folder_above_the_version_is_accepted(write_rlds, episode):
    directory = write_rlds([[episode(0)]])
    assert rlds_directory.load_info(directory.parent).version == "1.0.0"


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"name": 3, "splits": [{}]}'])
def test_damaged_descriptions_are_data_errors(write_rlds, episode, name, text):
    directory = write_rlds([[episode(0)]])
    (directory / name).write_text(text)
    with pytest.raises(errors.DataError):
        rlds_directory.load_info(directory)


def test_unknown_split_lists_the_known_ones(write_rlds, episode):
    with pytest.raises(errors.UserError, match=r"no split test.*train"):
        rlds_directory.load_info(
            write_rlds([[episode(0)]]), rlds_directory.RldsOptions(splits=("test",))
        )


def test_directory_without_dataset_is_a_usage_error(tmp_path):
    with pytest.raises(errors.UserError, match="no such RLDS directory"):
        rlds_directory.load_info(tmp_path / "nothing")
    with pytest.raises(errors.UserError, match=r"no dataset_info\.json"):
        rlds_directory.load_info(tmp_path)


def test_bucket_without_its_client_says_what_to_install():
    pytest.importorskip("fsspec")
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(errors.UserError, match=r"gcsfs.*gs://bucket/x; pip install"):
        rlds_directory.load_info("gs://bucket/x")


def test_file_format_other_than_tfrecord_is_refused(write_rlds, episode):
    directory = write_rlds([[episode(0)]])
    path = directory / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "riegeli"}))
    with pytest.raises(errors.UserError, match="riegeli"):
        rlds_directory.load_info(directory)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_a_description_nested_too_deeply_is_a_data_error(write_rlds, episode, file):
    directory = write_rlds([[episode(0)]])
    (directory / file).write_text("[" * 99999)
    with pytest.raises(errors.DataError, match=rf"not as TFDS writes it.*{file}"):
        rlds_directory.load_info(directory)
