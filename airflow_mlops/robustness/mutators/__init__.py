"""The mutators, by family: affine, pixel and corruption for images, key points, rows, texts. `kinds` says which belong together."""
