"""Pictures of data (plotly). Each file draws one kind; `saelab.drawing` says who draws what."""
