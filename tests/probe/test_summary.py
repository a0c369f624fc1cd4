"""A pipeline at a glance."""

from __future__ import annotations

import probe
from probe._intervention import intervention
from probe._summary import summary
from probe.testing import tiny_pipeline


def test_a_pipeline_at_a_glance() -> None:
    pipe = tiny_pipeline()
    found = summary(pipe)
    assert found.parameters["unet"] == sum(p.numel() for p in pipe.unet.parameters())
    assert [site["name"] for site in found.sites] == [site.name for site in probe.sites(pipe, "*")]
    table = found.table().set_index(["component", "kind"])
    assert table.loc[("unet", "ffn"), "units"] == sum(site.width for site in probe.sites(pipe, "ffn"))
    page = found._repr_html_()
    assert "StableDiffusionPipeline" in page
    assert "<th>edits</th><td>none</td>" in page
    site = probe.sites(pipe, "ffn")[0].name
    named = intervention({site: [0]}, name="<i>one")
    with named.applied(pipe):
        inside = summary(pipe)
    assert inside.lineage == [[named.id, "<i>one"]]
    assert "&lt;i&gt;one" in inside._repr_html_()
    assert summary(pipe).lineage == []
