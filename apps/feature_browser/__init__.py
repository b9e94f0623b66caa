"""The feature browser: a Streamlit app that reads finished runs, without a model or a GPU."""
