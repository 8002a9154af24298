"""The page of ``trilemma demo``: plain functions that compute what it shows, and one module that needs gradio."""
