"""Measures Treadle beside bare NATS, DBOS, dask and a bare loop; `README.md` says what each figure means."""
