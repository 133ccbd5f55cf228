# SPDX-License-Identifier: BSD-3-Clause
"""What the site needs beyond Sphinx.

Formulas without a script, links from bare names, classes without the obvious, numbers that stay with their units.
"""

import re
from functools import cached_property

from docutils.utils.math.latex2mathml import tex2mathml
from numpydoc.docscrape_sphinx import SphinxDocString
from sphinx.addnodes import pending_xref
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import nodes

UNIT = re.compile(r"(?<=\d) (?=(?:%|[kMGT]?B|[KMG]iB|[kMG]bit/s|ns|µs|ms|s|min|h)(?![\w]))")
# In a cell of a table: a range in brackets, which is as short as this.
RANGE = re.compile(r"(\([^()]{1,24}\))")


def setup(app):
    """Register it."""
    app.add_post_transform(UnbrokenUnits)
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_display, None))
    app.connect("missing-reference", _public_name)
    app.connect("autodoc-skip-member", _skipped)
    _keep_texts_of_attributes()


class UnbrokenUnits(SphinxPostTransform):
    """Keep a number and its unit on one line, and a range in a table."""

    default_priority = 900

    def run(self, **kwargs):
        """Change texts that are not code."""
        code = nodes.literal | nodes.FixedTextElement | nodes.math | nodes.raw
        for text in list(self.document.findall(nodes.Text)):
            if text.parent and not isinstance(text.parent, code):
                in_table = isinstance(text.parent.parent, nodes.entry)
                text.parent.replace(text, list(_pieces(UNIT.sub("\N{NO-BREAK SPACE}", text), in_table)))


def _pieces(text, in_table):
    for piece in RANGE.split(text) if in_table else [text]:
        is_range = in_table and RANGE.fullmatch(piece) and any(map(str.isdigit, piece))
        yield nodes.inline("", piece, classes=["nowrap"]) if is_range else nodes.Text(piece)


def _visit_math(writer, node):
    writer.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _visit_display(writer, node):
    # Behind the table of MathML that is wider than a phone, the page does not scroll; the formula does.
    writer.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def _keep_texts_of_attributes():
    """Show what a class says of an attribute, where numpydoc would show the one line of a property of that name."""
    processed = SphinxDocString._process_param

    def kept(self, param, desc, fake_autosummary):
        return processed(self, param, desc, False)

    SphinxDocString._process_param = kept


def _public_name(app, env, node: pending_xref, contnode):
    """Resolve a name as docstrings have it, `FlowSampler.write`, to the only page of that name."""
    if node["refdomain"] != "py":
        return None
    domain = env.domains.python_domain
    wanted = node["reftarget"].removeprefix("~")
    name = wanted.rpartition("sklearn_docids.")[2]
    public = (entry for entry, described in domain.objects.items() if not described.aliased)
    found = {entry for entry in public if entry.endswith(f".{name}") or entry == name}
    # A method by itself may be of any class.
    found = {entry for entry in found if name[:1].isupper() or entry == wanted or entry.count(".") < 3}
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found.pop(), node, contnode)


def _skipped(app, what, name, obj, skip, options):
    """Leave out what a class documents under Attributes, and what scikit-learn adds to every class."""
    is_field = isinstance(obj, property | cached_property) or type(obj).__name__ == "_tuplegetter"
    is_inherited = (getattr(obj, "__module__", None) or "").startswith("sklearn.")
    return True if is_field or is_inherited or (name.startswith("set_") and name.endswith("_request")) else None
