"""One module per table or figure of the paper: one tidy CSV in, one picture or table out."""
