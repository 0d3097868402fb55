"""Networks in torch, and what all families use to run and train them."""
