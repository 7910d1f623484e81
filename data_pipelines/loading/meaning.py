"""Whether the actions of a mixture's data sets mean the same, and are those of a robot."""

from collections.abc import Mapping

import numpy as np
from absl import logging

from data_pipelines import episodes
from data_pipelines.open_x import registry
from defi_jax import embodiment, errors

Sources = Mapping[str, episodes.EpisodeSource]  # by name of the component


def check_mix(sources: Sources, where: str) -> None:
    """Checks that the actions of all datasets and robots of the sources mean the same.

    Raises:
        UserError: they do not, see `embodiment.check_mix`; or nothing is known of some, and these
            are not the only ones, of one dataset and robot.
    """
    known, unknown = {}, {}
    for name, meta in _kinds(sources).items():
        convention = registry.convention_of(meta)
        if convention is None:
            unknown[name] = (meta.source, meta.embodiment)
        else:
            known[name] = convention
    embodiment.check_mix(known, where)
    if len(set(unknown.values())) > (0 if known else 1):
        raise errors.UserError(
            f"nothing is known of what the actions of {', '.join(unknown)} mean"
            + (f", and those of {', '.join(known)} are known" if known else ""),
            where,
            "train joint on each alone, take the others as action-free video (convert "
            "--strip_actions), or describe the robots in defi_jax/embodiment.py",
        )
    for name in unknown:
        logging.warning("%s: nothing is known of what its actions mean", name)


def check_robot(sources: Sources, robot: str) -> None:
    """Checks that the sources' actions are those of a robot; see `embodiment.check_robot`."""
    for name, meta in _kinds(sources).items():
        convention = registry.convention_of(meta)
        if convention is not None:
            embodiment.check_robot(robot, convention, name)


def _kinds(sources: Sources) -> dict[str, episodes.EpisodeMeta]:
    """Returns an episode of each dataset and robot that the sources have actions of, by name."""
    found = {}
    for component, source in sources.items():
        metas = (source.meta(int(i)) for i in np.flatnonzero(source.has_actions))
        pairs = {(meta.source, meta.embodiment): meta for meta in metas}
        for (dataset, robot), meta in sorted(pairs.items()):
            is_alone = len(pairs) == 1
            found[component if is_alone else f"{component} ({dataset}, {robot})"] = meta
    return found
