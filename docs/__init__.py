"""Documentation: Markdown pages, their images, and in :mod:`docs.pages` what writes numbers and figures into them."""
