"""The documentation site: ``python -m docs.site`` builds it (``make docs``).

``pages`` lays the repository's Markdown as the site's pages, ``reference`` writes the pages that are made from the
source, ``links`` checks what was built. Zensical turns the pages into HTML, as docs/mkdocs.yml says; it is given plain
Markdown and knows nothing of this package, so that another generator can take its place.
"""
