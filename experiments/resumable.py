"""Runs of minutes to hours: each result is written at once, so an interrupted experiment goes on."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent.parent / "transformer_lib" / "book" / "results"


class Results:
    """The runs of one experiment, in transformer_lib/book/results/NAME.json, which a chapter shows.

    With other settings than those in the file the old runs would mean something else: ValueError.
    """

    def __init__(self, name: str, command: str, **settings: Any) -> None:
        self.file = FOLDER / f"{name}.json"
        settings = json.loads(json.dumps(settings))  # as a file gives them back: lists, no tuples
        self.notes: dict[str, Any] = {"command": command, "settings": settings, "runs": {}}
        if self.file.exists():
            notes = json.loads(self.file.read_text())
            if notes["settings"] != settings:
                raise ValueError(f"{self.file} has {notes['settings']}, not {settings}: delete it")
            self.notes["runs"] = notes["runs"]
        self.notes["versions"] = {"python": platform.python_version(), "torch": torch.__version__}

    def __contains__(self, run: str) -> bool:
        return run in self.notes["runs"]

    def __getitem__(self, run: str) -> Any:
        return self.notes["runs"][run]

    def __setitem__(self, run: str, result: Any) -> None:
        self.notes["runs"][run] = result
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.notes, indent=1) + "\n")
        os.replace(new, self.file)
