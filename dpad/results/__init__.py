"""Results: records, and the tables, charts and documents that are rendered from them."""
