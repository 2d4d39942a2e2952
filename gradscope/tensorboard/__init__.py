"""The GradScope tab in TensorBoard: the server half here, the page in ``page/``. docs/http_api.md is what lies between them."""
