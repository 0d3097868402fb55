"""A score as files a person can open: HTML, JSON, tables, QuPath objects, a marked picture."""
