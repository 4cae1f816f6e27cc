"""Uploads a trained model to the Hugging Face Hub: its preset, with the model card.

  python -m keras_densepred push runs/mine hf://user/name
  python -m keras_densepred push runs/mine hf://user/name --public

The repository is private unless --public is given. Log in first, with `hf auth login`. Afterwards
`keras_densepred.saved.load("hf://user/name")`, `predict hf://user/name` and the like fetch it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_densepred import saved
from keras_densepred._optional import require

if TYPE_CHECKING:
    from rich.console import Console

NAME = "push"
SUMMARY = "upload a trained model to the Hugging Face Hub"
_HANDLE = re.compile(r"hf://([\w.-]+/[\w.-]+)")
_LICENCE = "license: other"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("model", metavar="RUN", help="a run's directory, or its preset")
    parser.add_argument("handle", metavar="hf://USER/NAME", help="where it goes")
    parser.add_argument("--public", action="store_true", help="for all to see; else private")
    parser.add_argument("--message", default="Model of keras_densepred", help="of the commit")


def run(options: argparse.Namespace, console: Console) -> int:
    """Uploads; returns the exit code."""
    match = _HANDLE.fullmatch(options.handle)
    if match is None:
        raise ValueError(f"{options.handle!r} is no place on the hub: give hf://USER/NAME.")
    hub = require("huggingface_hub", "hub")
    model = saved.find_model(options.model)
    preset = model if model.is_dir() else model.parent
    if model.is_file() and not (preset / "preprocessing.json").is_file():
        raise ValueError(
            f"{model} lies in no preset, whose other files say how its images are prepared: give "
            "a run's directory."
        )
    repository = match[1]
    if hub.get_token() is None:
        raise ValueError("Nobody is logged in to the hub: run `hf auth login`.")
    api = hub.HfApi()
    try:
        address = _upload(api, repository, preset, options)
    except hub.errors.HfHubHTTPError as error:
        raise ValueError(f"The hub refused {repository}: {error}") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # the hub's library, of any version
            raise
        raise ValueError(
            f"The hub cannot be reached ({error}): push again when there is a connection."
        ) from error
    console.print(f"Wrote {address} ({'public' if options.public else 'private'})", markup=False)
    card = preset / "README.md"
    if card.is_file() and _LICENCE in card.read_text("utf-8"):
        console.print(f"Its card has no licence yet: write one into {card}, and push again.")
    return 0


def _upload(api: Any, repository: str, preset: Path, options: argparse.Namespace) -> str:
    """Makes the repository, or takes one that is as private as was asked for; returns its page."""
    address = api.create_repo(repository, private=not options.public, exist_ok=True)
    if not options.public and not api.repo_info(repository).private:
        raise ValueError(
            f"{repository} is there already and public: give --public, or another name."
        )
    api.upload_folder(repo_id=repository, folder_path=str(preset), commit_message=options.message)
    return str(address)
