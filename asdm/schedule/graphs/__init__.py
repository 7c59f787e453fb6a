"""A schedule as static graphs, one for each way in which a network is called, for ONNX Runtime and OpenVINO."""
