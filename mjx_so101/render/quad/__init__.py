"""The renderer `quad`: quadrilaterals and quadrics, each a formula of the pixel. `renderer.py` is the way in."""
