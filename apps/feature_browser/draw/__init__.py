"""How the pages draw: HTML that is safe by construction, tables, charts."""
