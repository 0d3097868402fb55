"""What the counted cells of a slide say beyond their number: intervals, protocols, heterogeneity, the convention."""
