"""schemathesis asks a real gateway all that its OpenAPI document says. `python -m tests.openapi`"""
