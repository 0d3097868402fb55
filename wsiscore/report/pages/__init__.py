"""The pages: the report of a slide and the page of a cohort."""
