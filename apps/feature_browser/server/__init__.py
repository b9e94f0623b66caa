"""What is served. Beside `pages/`, Streamlit would take each file there for an app of its own."""
