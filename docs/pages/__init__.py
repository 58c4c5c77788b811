"""Numbers, sentences and figures of the pages, from the files under ``docs/results/``: ``python -m docs.pages``.

A page holds blocks ``<!-- generated: NAME -->`` to ``<!-- end: NAME -->``. :mod:`docs.pages.build` fills each with the
section of that name and draws the figures; everything else in a page is written by hand. Nothing in a block is typed.
"""
