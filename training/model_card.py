"""The model card: what the checkpoint is, how it was made, how well it does, what it cannot do."""

from __future__ import annotations

from training.data import CANVASES
from training.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES
from training.tasks import ROLES

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# flux2-shapes

A small model with exactly FLUX.2's architecture and file layout (`Flux2KleinPipeline`), that draws coloured shapes in
about a second on a laptop's CPU. It shows and tests a server without 35 GB of weights. It is not derived from FLUX.2:
all weights were trained from scratch on generated drawings.

| part | class | size |
| --- | --- | --- |
| text encoder | Qwen3ForCausalLM, 28 layers of width 96, hidden states 9, 18 and 27 | 3.2 M |
| transformer | Flux2Transformer2DModel, width 256, 2 double and 6 single blocks | 9.9 M |
| autoencoder | AutoencoderKLFlux2, 8 times smaller, 16 channels | 3.9 M |

## What it can be asked
- Pictures of one to three objects: {shapes}; {colours}; {sizes} (unnamed: medium); on {backgrounds} (unnamed: white);
  in a corner, at a side, in the center; left of, right of, above, below; in a row or a column. Unplaced: one in the
  center, more in a row as they are named.
- Edits of one picture: `make the red circle blue`, `remove the red circle`, `add a green star in the top left corner`,
  `move the red circle to the bottom`, `change the background to navy`.
- Compositions of two: `the object of image 1 above the object of image 2`, also in places, with the colour or on the
  background of image 2.

Sizes: {canvases}. Prompts of at most 64 tokens, template included (`tokenizer.model_max_length`).

## Data
Drawn by `training/`, with captions from a grammar; no other data. One in eight combinations of colour, shape and role
({roles} roles: places, relations, edits) never occurs in a caption of the training. All figures are on captions that
contain such a combination.

## Figures
{figures}

## Limits
It knows the words of its grammar and no others, flat shapes and no photographs, and the sizes above. A reference must
look like its own drawings and have the size of the picture asked for.

## Licence
Apache-2.0, weights and code.
"""


def card(results: str) -> str:
    figures = results.split("\n\n", 1)[1].replace("## ", "### ").strip()
    lists = {name: ", ".join(words) for name, words in _words().items()}
    canvases = ", ".join(f"{width}x{height}" for width, height in CANVASES)
    return CARD.format(figures=figures, roles=len(ROLES), canvases=canvases, **lists)


def _words() -> dict[str, tuple[str, ...]]:
    return {"shapes": SHAPES, "colours": tuple(COLOURS), "sizes": tuple(SIZES), "backgrounds": tuple(BACKGROUNDS)}
