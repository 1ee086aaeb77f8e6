"""Links are made of identifiers that fit, and of nothing else."""

import re
from urllib.parse import urlsplit

import pytest

from conve_tracin.report.links import (
    ENTITY_PAGES,
    OTHER_PREFIXES,
    PUBLICATION_PAGES,
    entity_page,
    publication_page,
    source_name,
)

HOSTILE = (
    "javascript:alert(1)", "https://evil.example/PMID:1", '" onclick="alert(1)', "<script>", "PMID:1<script>",
    "PMID:1\n", "PMID:1 PMID:2", "PMID:١٢", "PMID:", "PMID:1@evil.example", "doi:10.1000/x y", 'doi:10.1000/"><b>',
    "doi:10.1000/x?y=1#z", "data:text/html,x", "//evil.example", "NCT1", "PMC", "PMC:", "", "1234", "\u202ePMID:1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("identifier", "page"),
    [
        ("PMID:17016423", "https://pubmed.ncbi.nlm.nih.gov/17016423/"),
        ("pmid: 9", "https://pubmed.ncbi.nlm.nih.gov/9/"),
        ("PMC:PMC3531190", "https://pmc.ncbi.nlm.nih.gov/articles/PMC3531190/"),
        ("PMC3531190", "https://pmc.ncbi.nlm.nih.gov/articles/PMC3531190/"),
        ("PMCID:PMC3531190", "https://pmc.ncbi.nlm.nih.gov/articles/PMC3531190/"),
        ("PMC:3531190", "https://pmc.ncbi.nlm.nih.gov/articles/PMC3531190/"),
        ("doi:10.1002/(SICI)1097-0258(19980815)17:15", "https://doi.org/10.1002/(SICI)1097-0258(19980815)17:15"),
        ("https://doi.org/10.7554/eLife.26726", "https://doi.org/10.7554/eLife.26726"),
        ("clinicaltrials:NCT00000102", "https://clinicaltrials.gov/study/NCT00000102"),
        ("NCT00000102", "https://clinicaltrials.gov/study/NCT00000102"),
    ],
)
def test_publications_have_pages(identifier, page):
    assert publication_page(identifier) == page


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_publications_have_none(text):
    assert publication_page(text) is None


@pytest.mark.parametrize(
    ("curie", "page"),
    [
        ("MONDO:0005148", "https://purl.obolibrary.org/obo/MONDO_0005148"),
        ("DRUGBANK:DB00945", "https://go.drugbank.com/drugs/DB00945"),
        ("NCBIGene:5743", "https://www.ncbi.nlm.nih.gov/gene/5743"),
        ("UniProtKB:P35354", "https://www.uniprot.org/uniprotkb/P35354"),
        ("UNIPROT:A0A024R161", "https://www.uniprot.org/uniprotkb/A0A024R161"),
        ("KEGG.COMPOUND:C01405", "https://www.kegg.jp/entry/C01405"),
        ("REACT:R-HSA-2162123", "https://reactome.org/content/detail/R-HSA-2162123"),
        ("CHEMBL.COMPOUND:CHEMBL25", "https://www.ebi.ac.uk/chembl/explore/compound/CHEMBL25"),
    ],
)
def test_entities_have_pages(curie, page):
    assert entity_page(curie) == page


@pytest.mark.parametrize(
    "curie",
    [
        "MONDO:5", "MONDO:0005148/../x", "MONDO:0005148\n", "NCBIGene:5743\"", "NCBIGene:", "NCBIGene", "NCBIGene:٣",
        "HGNC:1#x", "javascript:1", "unknown:1", "aspirin", "REACT:R-HSA-1?x", "UniProtKB:<b>", "predicate:10",
    ],
)  # fmt: skip
def test_other_labels_have_none(curie):
    assert entity_page(curie) is None


@pytest.mark.parametrize("prefix", ENTITY_PAGES)
def test_no_prefix_lets_hostile_text_pass(prefix):
    for text in (*HOSTILE, "a/b", "..", "1/../../x", "1?x", "1#x", "1&x", "1%2f", "1'x", "@x"):
        assert entity_page(f"{prefix}:{text}") is None or re.fullmatch(r"[\w.:-]+", text, re.ASCII), text


def test_every_address_is_of_https_and_its_host_stands_before_the_identifier():
    addresses = [address for _, address in (*ENTITY_PAGES.values(), *PUBLICATION_PAGES)]
    assert len(ENTITY_PAGES) >= 30
    for address in addresses:
        parts = urlsplit(address)
        assert parts.scheme == "https"
        assert re.fullmatch(r"[a-z0-9.-]+", parts.netloc)
        assert address.count("$") == 1
        assert "$" not in parts.netloc
    assert set(OTHER_PREFIXES.values()) <= set(ENTITY_PAGES)


def test_sources_have_names():
    assert source_name("infores:drugcentral") == "DrugCentral"
    assert source_name("infores:unheard-of") == "infores:unheard-of"
    assert source_name("drugcentral") == "drugcentral"
