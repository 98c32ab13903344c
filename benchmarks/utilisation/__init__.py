"""An episode on our cluster against the published client's way, on the same desktop."""
