"""The feature browser: a Streamlit app that reads finished runs and needs no model and no GPU."""
