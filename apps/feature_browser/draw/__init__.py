"""Drawing for all pages: HTML that is safe by construction, tables, charts."""
