"""What the tests of the store share."""

from tests.tasks.store.bucket import address  # noqa: F401 - a fixture
