"""TorchServe's worker without its sockets: a handler is loaded, and answers batches."""
