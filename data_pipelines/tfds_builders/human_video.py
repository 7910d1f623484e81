"""Human video as TFDS datasets: action-free clips in RLDS's form, written without TensorFlow.

    from data_pipelines.tfds_builders import human_video

    builder = human_video.SomethingSomethingV2(input_dir="ssv2", data_dir="tfds")
    builder.download_and_prepare()
    tfds.data_source("something_something_v2", data_dir="tfds", split="train")

`launch/data.py build` does the same. Which clips there are, and how each becomes an episode, is
said in `sources.human_video`; the dataset's `info.metadata` keeps for each split the clip rules,
the counts and every rejected clip with its reason. Records lie in the order of a hash of their ids,
as TFDS shuffles them.

A dataset appears as a whole: after a kill, `download_and_prepare` begins anew. What is too large to
begin anew is converted into a store, which goes on where it stopped, and exported from there.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds
import tqdm
from tensorflow_datasets.core import constants

from data_pipelines import episodes, files
from data_pipelines.formats import json_files
from data_pipelines.sources import base, ego4d, epic_kitchens, video_clips, video_layout
from data_pipelines.sources import human_video as source_lib
from data_pipelines.tfds_builders import rlds_writer
from defi_jax import errors

_FIX = "check --input"


class _HumanVideo(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Clips with captions and without actions; see the module.

    Args:
        input_dir: folder of the raw data; "" for TFDS's manual directory.
        options: how clips are stored.
        captions: caption file; "" searches the folder.
        source_name: name of the data set in each episode; "" for the builder's.
        embodiment: who acts in the videos.
        workers: how clips are decoded.
        progress: draw a progress bar on stderr.
        file_format: format of the records; TensorFlow alone reads "tfrecord".
        **kwargs: of TFDS's builders, such as `data_dir`.

    Raises:
        UserError: no such folder, or not of this data set, when it is prepared.
        DataError: an annotation is damaged, or a split gave no episode.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Clips as RLDS episodes."}
    code_path = None  # of checksums and citations beside the module, of which there are none
    _DESCRIPTION = _HOMEPAGE = ""
    _MISSING = ""  # what a folder without annotations needs

    def __init__(
        self,
        *,
        input_dir: str | pathlib.Path = "",
        options: video_clips.ClipOptions | None = None,
        captions: str = "",
        source_name: str = "",
        embodiment: str = "human",
        workers: base.Workers | None = None,
        progress: bool = True,
        file_format: str = "array_record",
        **kwargs: Any,
    ):
        self._input_dir = str(input_dir)
        self._options = options or video_clips.ClipOptions()
        self._captions, self._source_name = captions, source_name
        self._embodiment, self._progress = embodiment, progress
        self._workers = workers or base.Workers(count=2)
        self._metadata = tfds.core.MetadataDict()
        super().__init__(file_format=file_format, **kwargs)
        # A data source travels to loader processes with its builder, which is made again there.
        self._original_state = {"file_format": file_format, **self._original_state}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._DESCRIPTION,
            homepage=self._HOMEPAGE or None,
            features=rlds_writer.rlds_features(self._fields()),
            metadata=self._metadata,
        )

    def _fields(self) -> dict[str, Any]:
        encoding = self._options.image_format
        image = tfds.features.Image(shape=(None, None, 3), encoding_format=encoding)
        return {f"{rlds_writer.exported.IMAGE}0": image}

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Writes the dataset, unless it is there; `kwargs` are TFDS's.

        Raises:
            UserError: a dataset of other clips is in its place, another run writes it, or as the
                class says.
            DataError: see the class.
        """
        directory = pathlib.Path(self.data_path).parent
        files.make_directory(directory)
        with files.alone(directory):
            if self.is_prepared() and self._input_dir:
                self._check_same()
            for leftover in directory.glob(
                f"{constants.INCOMPLETE_PREFIX}*_{self.version}"
            ):  # of a killed run
                shutil.rmtree(leftover)
            super().download_and_prepare(**kwargs)

    def _check_same(self) -> None:
        wanted = {key: base.recipe(s) for key, s in self.open_splits(self._input_dir).items()}
        found = {key: split["recipe"] for key, split in (self.info.metadata or {}).items()}
        if differing := files.differences(found, json_files.parse(json.dumps(wanted))):
            raise errors.UserError(
                f"dataset was made otherwise ({'; '.join(differing)})",
                self.data_path,
                "delete it, or choose another --output",
            )

    def _find_splits(self, directory: pathlib.Path) -> Mapping[str, Mapping[str, Any]]:
        """Returns for each split the "captions" or "splits" by which a source is opened."""
        raise NotImplementedError

    def open_splits(self, directory: str | pathlib.Path) -> dict[str, base.ItemSource]:
        """Lists the clips of each split.

        Raises:
            UserError, DataError: see the class.
        """
        directory = pathlib.Path(directory)
        if not directory.is_dir():
            raise errors.UserError("no such video folder", str(directory), _FIX)
        if self._captions:
            chosen: Mapping[str, Mapping[str, Any]] = {"train": {"captions": self._captions}}
        else:
            chosen = self._find_splits(directory)
        if not chosen:
            raise errors.UserError(f"not {self.name}", str(directory), self._MISSING)
        how = video_clips.Reading(
            name=self._source_name or self._default_source(directory),
            embodiment=self._embodiment,
            options=self._options,
            workers=self._workers,
        )
        found = {}
        for split, which in chosen.items():
            own = dataclasses.replace(how, splits=which.get("splits"))
            source = source_lib.open_source(directory, own, captions=which.get("captions"))
            found[split] = source.shuffled()
        return found

    def _default_source(self, directory: pathlib.Path) -> str:
        return self.name

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Any]]]:
        sources = self.open_splits(self._input_dir or dl_manager.manual_dir)
        return {split: self._generate_examples(split, one) for split, one in sources.items()}

    def _generate_examples(
        self, split: str, source: base.ItemSource
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (id, example); notes in `info.metadata` what came and what did not."""
        tally, first = base.Tally(), None
        stripped = base.WithoutActions(source)
        bar = tqdm.tqdm(stripped.read(), split, source.total, unit="ep", disable=not self._progress)
        for found in bar:
            tally.add(found)
            if isinstance(found, episodes.Episode):
                _check_cameras(found)
                yield found.episode_id, rlds_writer.example(found)
            else:
                first = first or found
        counts = tally.to_json()
        start = {"source": source.name, "recipe": base.recipe(source)}
        self._metadata[split] = start | counts
        if not counts["episodes"]:
            reason = f"; the first: {first.item}: {first.reason}" if first else ""
            raise errors.DataError(
                f"split {split} gave no episode ({len(counts['rejected'])} rejected{reason})",
                self.name,
            )

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[tfds.core.SplitInfo]:
        """Writes the splits record by record, where TFDS would need TensorFlow beyond 1 GB."""
        found, features = [], rlds_writer.rlds_features(self._fields())
        for split, examples in self._split_generators(dl_manager).items():
            writer = rlds_writer.SplitFiles(self._get_filename_template(split))
            try:
                for _, one in itertools.islice(examples, download_config.max_examples_per_split):
                    writer.write(rlds_writer.serialize(features, one))
                found.append(writer.finish())
            finally:
                writer.close()
        return found


class SomethingSomethingV2(_HumanVideo):
    """Something-Something v2: clips `<id>.webm` with official label files, or the video layout."""

    _DESCRIPTION = "People doing something with something, each clip with its label; no actions."
    _HOMEPAGE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
    _MISSING = "it needs train.json or validation.json of the labels, or give --captions=FILE"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "One folder with the clips <id>.webm and the label files."

    def _find_splits(self, directory: pathlib.Path) -> Mapping[str, Mapping[str, Any]]:
        found = {}
        for split in ("train", "validation"):
            names = (f"{split}.json", f"something-something-v2-{split}.json")
            paths = [path for name in names for path in _shallow(directory, name)]
            found |= {split: {"captions": paths[0]}} if paths else {}
        return _layout_splits(directory) or found


class Ego4dFho(_HumanVideo):
    """Ego4D, hand-object clips: `fho_main.json` with `clips/` or `full_scale/`."""

    _DESCRIPTION = "First-person hands: each valid action of the camera wearer; no actions."
    _HOMEPAGE = "https://ego4d-data.org"
    _MISSING = f"it needs {ego4d.FILE}, here or in annotations/, or give --captions=FILE"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"One folder with {ego4d.FILE} and the videos."

    def _find_splits(self, directory: pathlib.Path) -> Mapping[str, Mapping[str, Any]]:
        path = ego4d.find(directory)
        return {"train": {"captions": path}} if path else {}


class EpicKitchens100(_HumanVideo):
    """EPIC-KITCHENS-100: `EPIC_100_{train,validation}.csv` with the videos."""

    _DESCRIPTION = "First-person cooking: each narrated segment; no actions."
    _HOMEPAGE = "https://epic-kitchens.github.io"
    _MISSING = "it needs EPIC_100_train.csv or EPIC_100_validation.csv, or give --captions=FILE"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "One folder with EPIC_100_{train,validation}.csv and the videos."

    def _find_splits(self, directory: pathlib.Path) -> Mapping[str, Mapping[str, Any]]:
        tables = epic_kitchens.find(directory, None)
        return {table.stem.removeprefix("EPIC_100_"): {"captions": table} for table in tables}


class VideoFolder(_HumanVideo):
    """Any folder of captioned videos; its episodes are of the folder's name."""

    _DESCRIPTION = "Captioned videos; no actions."
    _MISSING = "it needs captions, see docs/data_sources.md, or give --captions=FILE"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "One folder with videos and their captions."

    def _default_source(self, directory: pathlib.Path) -> str:
        return directory.resolve().name

    def _find_splits(self, directory: pathlib.Path) -> Mapping[str, Mapping[str, Any]]:
        return _layout_splits(directory) or {"train": {}}


BUILDERS: Mapping[str, type[_HumanVideo]] = {
    builder.name: builder
    for builder in (SomethingSomethingV2, Ego4dFho, EpicKitchens100, VideoFolder)
}


def _check_cameras(episode: episodes.Episode) -> None:
    if len(episode.frames) > 1:
        raise errors.UserError(
            f"clips of several cameras ({', '.join(episode.frames)})",
            f"episode {episode.episode_id!r}",
            "use launch/data.py convert --strip_actions and export",
        )


def _layout_splits(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns the splits of the official video layout, {} where the folder is of another kind."""
    folder = video_layout.annotation_folder(directory)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder else []
    return {name: {"splits": [name]} for name in names}


def _shallow(directory: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Returns the files of a name in a folder and in those below it."""
    return sorted([*directory.glob(name), *directory.glob(f"*/{name}")])
