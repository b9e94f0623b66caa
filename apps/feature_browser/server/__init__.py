"""The served files, in a folder of their own: Streamlit takes files beside `pages/` for apps."""
