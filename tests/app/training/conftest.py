"""What the tests of training share with the engine's: small models of random weights."""

from tests.app.engines.embedded.conftest import one_thread, tiny_folder

__all__ = ["one_thread", "tiny_folder"]
