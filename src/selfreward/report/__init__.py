"""Run directory -> figures, one page, one table. Reads JSON and Parquet only; runs where no model can."""
