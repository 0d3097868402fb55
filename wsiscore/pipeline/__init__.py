"""The way of a slide from file to report, and of a cohort of them."""
