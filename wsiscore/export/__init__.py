"""The results of a scored slide in the formats of other systems, written on request."""
