from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers import EmbeddedServer


@pytest.fixture(scope="module")
def saved_models(starting_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """SavedModels of which version n answers the sum of a row plus n."""
    import keras
    import numpy as np

    home, paths = tmp_path_factory.mktemp("saved_models"), {}
    for version in (1, 2):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.set_weights([np.ones((2, 1), np.float32), np.full(1, version, np.float32)])
        model.export(home / str(version), verbose=False)
        paths[version] = home / str(version)
    return paths


@pytest.fixture(scope="module")
def server(starting_server: EmbeddedServer, saved_models: dict[int, Path]) -> EmbeddedServer:
    """A model server that answers."""
    starting_server.wait_ready()
    return starting_server
