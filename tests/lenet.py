"""LeNet-5 on scikit-learn's digits scaled to 28x28: what the proofs and the benches attack."""

from __future__ import annotations

from typing import Any

TRAINED_ON = 1_200


def pictures() -> tuple[Any, Any]:
    """Return the digits (1797, 28, 28, 1) in [0, 1] in a fixed random order, and their labels."""
    import numpy as np
    import tensorflow as tf
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = tf.image.resize((digits.images[..., None] / 16).astype(np.float32), (28, 28)).numpy().clip(0, 1)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], digits.target[order].astype(np.int64)


def lenet5() -> Any:
    """Return the network, not yet trained."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(6, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(120, activation="relu"),
            layers.Dense(84, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def trained() -> Any:
    """Return the network, trained on the first `TRAINED_ON` pictures."""
    import keras

    keras.utils.set_random_seed(1)
    model = lenet5()
    model.compile("adam", "sparse_categorical_crossentropy")
    images, labels = pictures()
    model.fit(images[:TRAINED_ON], labels[:TRAINED_ON], epochs=12, batch_size=64, verbose=0)
    return model
