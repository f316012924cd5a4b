"""The report as one HTML file: no script, no link, pictures inside."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence

from jinja2 import Environment

from svdq_trt.artifact.manifest import LeftOut
from svdq_trt.artifact.svdq_file import Node
from svdq_trt.evaluate.analyse import NodeReport

_EXACT_DB = 120.0  # beyond this, f32 sums cannot tell an error from none

_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1180px; padding: 0 1rem; color: #222 }
h1, h2, h3 { line-height: 1.2 } img { max-width: 100% } code { background: #f2f2f2; padding: 0 .2em }
table { border-collapse: collapse; font-size: 13px }
td, th { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums } details { margin: 1em 0 }
</style></head><body>
<h1>{{ title }}</h1>
<table>{% for name, value in facts %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
<h2>Bytes</h2><p><img alt="bytes" src="{{ pictures.bytes }}"></p>
<h2>Layers</h2>
<p>SQNR of each node's output against 16 bit, on calibration tokens (on held-out ones where the preset fits to
tokens).</p>
<p><img alt="layers" src="{{ pictures.layers }}"></p>
{% if pictures.split %}
<h2>Where errors come from</h2>
<p>Every node with only its activations quantized, only its weights, and both: the lower of the first two is what
costs. Marks beyond the top are exact: weight-only nodes have no activation error.</p>
<p><img alt="error split" src="{{ pictures.split }}"></p>
{% endif %}{% if pictures.alphas %}
<h2>Smoothing</h2>
<p>How much a node loses where the exponents are not its own best ones, as the build's search saw it; and what was
taken.</p>
<p><img alt="smoothing exponents" src="{{ pictures.alphas }}"></p>
{% endif %}{% if pictures.ranks %}
<h2>Ranks</h2>
<p>The rank of each node's 16-bit branch{% if allocation %}, chosen by <code>--rank auto</code>:
{{ allocation }}{% endif %}.</p>
<p><img alt="ranks" src="{{ pictures.ranks }}"></p>
{% endif %}{% if pictures.rank_sweep %}
<h2>Rank sweep</h2>
<p>What more rank would bring to the nodes of the closer look, by a plain SVD on calibration tokens.</p>
<p><img alt="rank sweep" src="{{ pictures.rank_sweep }}"></p>
{% endif %}{% if closer %}
<h2>A closer look</h2>
<p>The worst node of each kind. <b>Singular values</b>: smoothing moves the activations' outliers into the weight, the
low-rank branch (dashed: its rank) takes the largest directions out, and the codes carry the residual. <b>With only ...
quantized</b>: where the error comes from; the higher bar matters less. <b>Smoothing search</b>: every exponent tried,
the dashed one taken. <b>Rank sweep</b>: what more rank would buy, and cost.</p>
{% for layer, picture in closer %}
<h3>{{ layer.node.name }}</h3>
<p>{{ layer.node.format }}, N {{ layer.node.n }}, K {{ layer.node.k }}, rank {{ layer.node.rank }}:
{{ "%.1f"|format(layer.node.sqnr_db) }} dB; activations alone {{ "%.1f"|format(layer.split.activations) }} dB, weights
alone {{ "%.1f"|format(layer.split.weights) }} dB.</p><p><img alt="{{ layer.node.name }}" src="{{ picture }}"></p>
{% endfor %}{% endif %}
<h2>Every node</h2><details><summary>{{ nodes|length }} nodes</summary><table>
<tr><th>node</th><th>format</th><th>activation</th><th>N</th><th>K</th><th>R</th><th>alpha</th><th>beta</th>
<th>SQNR, dB</th>{% if splits %}<th>activations alone</th><th>weights alone</th>{% endif %}</tr>
{% for n in nodes %}<tr><td>{{ n.name }}</td><td>{{ n.format }}</td><td>{{ n.activation }}</td>
<td class="n">{{ n.n }}</td><td class="n">{{ n.k }}</td><td class="n">{{ n.rank }}</td>
<td class="n">{{ "%.2f"|format(n.alpha) }}</td><td class="n">{{ "%.2f"|format(n.beta) }}</td>
<td class="n">{{ "%.1f"|format(n.sqnr_db) if n.sqnr_db == n.sqnr_db else "not known" }}</td>
{% if splits and n.name in splits %}<td class="n">{{ decibels(splits[n.name].activations) }}</td>
<td class="n">{{ decibels(splits[n.name].weights) }}</td>{% elif splits %}<td></td><td></td>{% endif %}</tr>
{% endfor %}</table></details>
<h2>Kept in 16 bit</h2>
<table><tr><th>layers</th><th>why</th></tr>
{% for reason, count in reasons %}<tr><td class="n">{{ count }}</td><td>{{ reason }}</td></tr>{% endfor %}</table>
<details><summary>{{ kept|length }} layers</summary><table><tr><th>layer</th><th>why</th></tr>
{% for k in kept %}<tr><td>{{ k.name }}</td><td>{{ k.reason }}</td></tr>{% endfor %}</table></details>
</body></html>
"""


def render(
    title: str,
    facts: Sequence[tuple[str, str]],
    pictures: Mapping[str, bytes],
    closer: Sequence[tuple[NodeReport, bytes]],
    nodes: Sequence[Node],
    kept: Sequence[LeftOut],
    splits: Mapping[str, Mapping[str, float]] | None = None,
    allocation: str = "",
) -> str:
    """Render the page; every text is escaped, since names come from files.

    Args:
        pictures: "bytes" and "layers", and any of "split", "alphas", "ranks", "rank_sweep".
        splits: node -> its error_split, for all nodes. allocation: goal and result of --rank auto.
    """
    template = Environment(autoescape=True).from_string(_PAGE)
    return template.render(
        title=title,
        facts=facts,
        pictures={name: _inline(png) for name, png in pictures.items()},
        closer=[(layer, _inline(png)) for layer, png in closer],
        nodes=nodes,
        kept=kept,
        splits=splits,
        allocation=allocation,
        reasons=Counter(k.reason for k in kept).most_common(),
        decibels=lambda db: "exact" if db > _EXACT_DB else f"{db:.1f}",
    )


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
