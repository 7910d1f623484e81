"""Answers questions about a simulator in the simulator's own Python; see `simulators.ask`."""

import importlib
import json
import os
from collections.abc import Sequence

from defi_rollout import errors
from defi_rollout.benchmarks import child_errors


def main(arguments: Sequence[str]) -> int:
    """Calls functions of a module and prints their results as one JSON object.

    Args:
        arguments: the module, then the names of its functions.
    """
    name, *questions = arguments
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the simulator prints belongs to the log
    try:
        module = importlib.import_module(name)
        found = {question: getattr(module, question)() for question in questions}
    except errors.UserError as error:
        found = {"error": child_errors.encode(error)}
    answers.write(json.dumps(found) + "\n")
    answers.flush()
    os._exit(0)  # some simulators crash while they end
