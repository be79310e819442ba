"""The fresh process: opens exported folders as a stranger would and answers raw inputs. It imports nothing of this package.

Run as `python worker.py REQUEST.json`; the request:
    reloader: the file below `reloaders/` that opens them; package: where this package lies, for reloaders that need it.
    folders: what to open, in turn; answers go to `<answers>/<i>.safetensors`: the outputs as tensors, and in the metadata what
        was found (classes, missing weights, versions).
    texts, pairs | images (paths) | prompts (text, or token ids) with letter_ids: the inputs.

A reloader's `answer(folder, asked)` gives (outputs, found). Outputs, by name: `logits` (N, C), or (M, N, C) for an artifact that
is a whole ensemble, and everything else that the artifact puts out, such as `probabilities` (N, C), `entropy` (N,),
`mutual_information` (N,). Found: `classes`, the class names as the artifact itself states them (for prompts: the tokens of
`letter_ids`); `missing`, weights that it lacks or does not use; `versions` of the libraries.

Shapes: M members, N samples, B batch, C classes, T tokens.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

BATCH = 16
PACKAGE = "sve_cli"
CANNOT_WRITE = 74  # exit code: the disk refuses the answer, which says nothing of the artifact


class Asked:
    """The raw inputs, made ready by the artifact's own tokenizer or image transform.

    Attributes:
        kind: "texts", "images" or "prompts".
        letter_ids: prompts only: the tokens whose logits at the last position are the answer.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = request
        self.kind = next(kind for kind in ("texts", "images", "prompts") if request.get(kind) is not None)
        self.letter_ids: list[int] = list(request.get("letter_ids") or [])

    def __len__(self) -> int:
        return len(self.request[self.kind])

    @staticmethod
    def reloader(name: str) -> Any:
        """Another reloader's module, for what several share; they are files here, and no package."""
        return open_reloader(name)

    def tokenised(self, tokenizer: Any) -> list[Any]:
        """Batches of texts (or pairs) as tensors, padded and cut by the tokenizer's own settings."""
        texts, pairs = self.request["texts"], self.request.get("pairs")
        options = {"truncation": True, "padding": True, "return_tensors": "pt"}
        return [
            tokenizer(texts[k : k + BATCH], pairs[k : k + BATCH] if pairs else None, **options) for k in range(0, len(texts), BATCH)
        ]

    def pixels(self, transform: Any) -> list[Tensor]:
        """Batches of images as the transform gives them."""
        from PIL import Image

        images = [transform(Image.open(path).convert("RGB")) for path in self.request["images"]]
        return [torch.stack(images[k : k + BATCH]) for k in range(0, len(images), BATCH)]

    def prompts(self, tokenizer: Any) -> list[Tensor]:
        """One prompt each, (1, T), without padding."""
        given = self.request["prompts"]
        return [torch.tensor([p if isinstance(p, list) else tokenizer(p)["input_ids"]]) for p in given]


def main(request_path: str) -> None:
    """Answer a request file."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    reloader = open_reloader(request["reloader"])
    if getattr(reloader, "NEEDS_SVE", False):
        sys.path.insert(0, request["package"])
    else:
        sys.modules[PACKAGE] = None  # type: ignore[assignment]  # importing it fails, installed or not
    for i, folder in enumerate(request["folders"]):
        outputs, found = answer(Path(folder), request, reloader)
        tensors = {name: tensor.detach().contiguous() for name, tensor in outputs.items()}
        try:
            save_file(tensors, Path(request["answers"]) / f"{i}.safetensors", {"found": json.dumps(found)})
        except SafetensorError as error:
            print(error, file=sys.stderr)
            sys.exit(CANNOT_WRITE)


def open_reloader(name: str) -> Any:
    """The module of a reloader, by its file."""
    path = Path(__file__).parent / "reloaders" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"reloader_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(folder: Path, request: Mapping[str, Any], reloader: Any = "plain") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Open one folder: its outputs on the request's inputs, and what was found. `reloader`: a module, or its name."""
    module = open_reloader(reloader) if isinstance(reloader, str) else reloader
    with torch.inference_mode():
        outputs, found = module.answer(folder, Asked(request))
    return {name: tensor.float() for name, tensor in outputs.items()}, found


if __name__ == "__main__":
    main(sys.argv[1])
