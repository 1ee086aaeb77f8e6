"""Web pages of entities and publications, by their CURIEs. Nothing is looked up.

A link is made of an identifier that fits its pattern from end to end, and of nothing else, so that no text of a file
can lead anywhere else. The patterns and addresses of entities are those of the Bioregistry (https://bioregistry.io).
"""

import re

OBO = "https://purl.obolibrary.org/obo/"

# {prefix: (pattern of what follows the colon, address)}; $ stands for what follows.
ENTITY_PAGES = {
    "BTO": (r"\d{7}", f"{OBO}BTO_$"),
    "CAS": (r"\d{1,7}-\d{2}-\d", "https://commonchemistry.cas.org/detail?cas_rn=$"),
    "CHEBI": (r"\d+", f"{OBO}CHEBI_$"),
    "CHEMBL.COMPOUND": (r"CHEMBL\d+", "https://www.ebi.ac.uk/chembl/explore/compound/$"),
    "CHEMBL.TARGET": (r"CHEMBL\d+", "https://www.ebi.ac.uk/chembl/explore/target/$"),
    "CL": (r"\d{7}", f"{OBO}CL_$"),
    "DOID": (r"\d+", f"{OBO}DOID_$"),
    "DRUGBANK": (r"DB\d{5}", "https://go.drugbank.com/drugs/$"),
    "DrugCentral": (r"\d+", "https://drugcentral.org/drugcard/$"),
    "EFO": (r"\d{7}", "https://www.ebi.ac.uk/efo/EFO_$"),
    "ENSEMBL": (r"ENS[A-Z]{0,4}[FPTGR]\d{11}(\.\d+)?", "https://www.ensembl.org/id/$"),
    "GO": (r"\d{7}", f"{OBO}GO_$"),
    "GTOPDB": (r"\d+", "https://www.guidetopharmacology.org/GRAC/LigandDisplayForward?ligandId=$"),
    "HGNC": (r"\d{1,5}", "https://www.genenames.org/data/gene-symbol-report/#!/hgnc_id/HGNC:$"),
    "HMDB": (r"HMDB\d{5,7}", "https://hmdb.ca/metabolites/$"),
    "HP": (r"\d{7}", f"{OBO}HP_$"),
    "KEGG": (r"[A-Za-z]{1,4}\d{5}", "https://www.kegg.jp/entry/$"),
    "MESH": (r"[CDQ]\d+", "https://meshb.nlm.nih.gov/record/ui?ui=$"),
    "MONDO": (r"\d{7}", f"{OBO}MONDO_$"),
    "MP": (r"\d{7}", f"{OBO}MP_$"),
    "NCBIGene": (r"\d+", "https://www.ncbi.nlm.nih.gov/gene/$"),
    "NCBITaxon": (r"\d+", f"{OBO}NCBITaxon_$"),
    "NCIT": (r"[CRPA]\d+", f"{OBO}NCIT_$"),
    "OMIM": (r"\d{6}", "https://omim.org/entry/$"),
    "orphanet": (r"\d+", "https://www.orpha.net/en/disease/detail/$"),
    "PANTHER.FAMILY": (r"PTHR\d{5}(:SF\d{1,3})?", "https://www.pantherdb.org/panther/family.do?clsAccession=$"),
    "PR": (r"\d{9}", f"{OBO}PR_$"),
    "PUBCHEM.COMPOUND": (r"\d+", "https://pubchem.ncbi.nlm.nih.gov/compound/$"),
    "REACT": (r"R-[A-Z]{3}-\d+(-\d+)?(\.\d+)?", "https://reactome.org/content/detail/$"),
    "RXCUI": (r"\d{1,7}", "https://mor.nlm.nih.gov/RxNav/search?searchBy=RXCUI&searchTerm=$"),
    "SMPDB": (r"SMP\d+", "https://smpdb.ca/view/$"),
    "UBERON": (r"\d+", f"{OBO}UBERON_$"),
    "UMLS": (r"C\d{7}", "https://uts.nlm.nih.gov/uts/umls/concept/$"),
    "UNII": (r"[A-Z0-9]{10}", "https://precision.fda.gov/uniisearch/srs/unii/$"),
    "UniProtKB": (
        r"([OPQ]\d[A-Z0-9]{3}\d|[A-NR-Z]\d([A-Z][A-Z0-9]{2}\d){1,2})(-\d+)?", "https://www.uniprot.org/uniprotkb/$"
    ),
    "WIKIPATHWAYS": (r"WP\d+", "https://www.wikipathways.org/instance/$"),
}  # fmt: skip

# The same pages by other spellings.
OTHER_PREFIXES = {
    "ENTREZ": "NCBIGene", "KEGG.COMPOUND": "KEGG", "KEGG.DRUG": "KEGG", "KEGG.PATHWAY": "KEGG", "ORPHA": "orphanet",
    "REACTOME": "REACT", "RXNORM": "RXCUI", "UNIPROT": "UniProtKB", "WIKIPATHWAY": "WIKIPATHWAYS",
}  # fmt: skip

# (pattern of a whole identifier, with the part that counts; address), the first that fits.
PUBLICATION_PAGES = (
    (r"(?i:PMID:)\s?(\d{1,9})", "https://pubmed.ncbi.nlm.nih.gov/$/"),
    (r"(?i:(?:PMCID|PMC):\s?(?:PMC)?|PMC)(\d{1,9})", "https://pmc.ncbi.nlm.nih.gov/articles/PMC$/"),
    (
        r"(?i:doi:\s?|https?://(?:dx\.)?doi\.org/)?(10\.\d{4,9}/[-A-Za-z0-9._;()/:]*[A-Za-z0-9)])",
        "https://doi.org/$",
    ),
    (r"(?i:clinicaltrials(?:\.gov)?:|NCT:)?(NCT\d{8})", "https://clinicaltrials.gov/study/$"),
)  # fmt: skip

# Readable names of knowledge sources; others keep their ids.
KNOWLEDGE_SOURCES = {
    "aact": "AACT (ClinicalTrials.gov)", "automat-robokop": "ROBOKOP", "bgee": "Bgee", "bindingdb": "BindingDB",
    "biogrid": "BioGRID", "biolink": "Biolink", "biothings-explorer": "BioThings Explorer",
    "chebi": "ChEBI", "chembl": "ChEMBL", "civic": "CIViC", "clingen": "ClinGen",
    "clinicaltrials": "ClinicalTrials.gov", "clinvar": "ClinVar",
    "cohd": "COHD", "ctd": "CTD", "dailymed": "DailyMed", "dgidb": "DGIdb",
    "diseases": "DISEASES", "disgenet": "DisGeNET", "do": "Disease Ontology", "doaf": "DOAF", "drugbank": "DrugBank",
    "drugcentral": "DrugCentral", "drugmechdb": "DrugMechDB", "faers": "FAERS", "gene-ontology": "Gene Ontology",
    "geo": "GEO", "go": "Gene Ontology", "goa": "GO Annotation", "gtex": "GTEx", "gtopdb": "Guide to Pharmacology",
    "gwas-catalog": "GWAS Catalog", "hetionet": "Hetionet", "hgnc": "HGNC", "hmdb": "HMDB",
    "hpo-annotations": "HPO Annotations", "human-goa": "GO Annotation (human)", "intact": "IntAct", "kegg": "KEGG",
    "lincs": "LINCS", "medrt": "MED-RT", "meddra": "MedDRA", "mesh": "MeSH", "mgi": "MGI", "mondo": "Mondo",
    "monarchinitiative": "Monarch Initiative", "ncbi-gene": "NCBI Gene", "omim": "OMIM", "omnipath": "OmniPath",
    "orphanet": "Orphanet", "panther": "PANTHER", "pharmgkb": "PharmGKB", "pharos": "Pharos", "pid": "PID",
    "pubchem": "PubChem", "pubmed": "PubMed", "pubtator": "PubTator", "reactome": "Reactome", "rgd": "RGD",
    "robokop-kg": "ROBOKOP", "rtx-kg2": "RTX-KG2", "semmeddb": "SemMedDB", "sider": "SIDER", "signor": "SIGNOR",
    "smpdb": "SMPDB", "string": "STRING", "text-mining-provider-cooccurrence": "Text Mining Provider (co-occurrence)",
    "text-mining-provider-targeted": "Text Mining Provider", "tmkp": "Text Mining Provider",
    "ttd": "Therapeutic Target Database", "ubergraph": "Ubergraph", "umls": "UMLS", "uniprot": "UniProt",
    "viral-proteome": "UniProt Viral Proteome", "wikipathways": "WikiPathways", "xenbase": "Xenbase", "zfin": "ZFIN",
}  # fmt: skip
INFORES = "infores:"


def entity_page(curie: str) -> str | None:
    """Return the address of an entity's page, or None if its prefix is unknown or its id does not fit."""
    prefix, _, identifier = curie.partition(":")
    pattern, address = _BY_PREFIX.get(prefix.casefold(), (None, ""))
    if pattern is None or not pattern.fullmatch(identifier):
        return None
    return address.replace("$", identifier)


def publication_page(identifier: str) -> str | None:
    """Return the address of a publication or a trial, or None for other text than a known kind of identifier."""
    for pattern, address in _PUBLICATIONS:
        found = pattern.fullmatch(identifier)
        if found:
            return address.replace("$", found[1])
    return None


def source_name(source: str) -> str:
    """Return the readable name of a knowledge source, or its id."""
    return KNOWLEDGE_SOURCES.get(source.removeprefix(INFORES), source) if source.startswith(INFORES) else source


def _compiled(pattern: str) -> re.Pattern[str]:
    # \d would also fit the digits of other scripts.
    return re.compile(pattern, re.ASCII)


_BY_PREFIX = {prefix.casefold(): (_compiled(pattern), address) for prefix, (pattern, address) in ENTITY_PAGES.items()}
_BY_PREFIX |= {other.casefold(): _BY_PREFIX[prefix.casefold()] for other, prefix in OTHER_PREFIXES.items()}
_PUBLICATIONS = [(_compiled(pattern), address) for pattern, address in PUBLICATION_PAGES]
