"""Networks in torch, and what the families share to run and train them."""
