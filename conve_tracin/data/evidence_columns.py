"""The columns of `evidence.tsv.gz`, which says what stands behind each training triple of a KGX graph."""

EVIDENCE_COLUMNS = (
    "head", "relation", "tail", "edge_id", "primary_knowledge_source", "aggregator_knowledge_source", "publications",
    "knowledge_level", "agent_type", "supporting_text", "has_confidence_score", "evidence_count", "max_research_phase",
    "clinical_approval_status", "hetio_source",
)  # fmt: skip

# Between the values of a cell.
SEPARATOR = "|"
