"""How flux2-shapes is made: a small FLUX.2 that draws coloured shapes, trained from scratch on generated drawings."""
