"""One module for each route of docs/http_api.md."""
