"""The commands' own environment."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def state_folder(tmp_path_factory):
    """Keep the key of private servers out of the user's home."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder
