"""Networks in torch, and what several families share to run and train them."""
