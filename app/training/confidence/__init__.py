"""How sure a model's answers make it to be right: asked, graded, fitted, and judged."""
