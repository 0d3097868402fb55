"""Training: rendered, real and aligned pictures, target maps, the loop, and the model at its end."""
