"""Graph passes: one pass per file, one class per pass; a lowering is a list of them."""
