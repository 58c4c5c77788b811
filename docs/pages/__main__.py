"""Renew every generated block and figure: ``python -m docs.pages``, a minute. Prints the files that changed."""

from docs.pages.build import ROOT, write

for path in write(ROOT):
    print(path.relative_to(ROOT))
