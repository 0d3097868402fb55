"""Training: rendered, real and aligned pictures, target maps, a loop that knows no loss, and the model it writes."""
