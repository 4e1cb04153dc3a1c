"""Makes the graphs beside this file, with the pip package `onnx`; kept as a record.

Each takes f32 [1,3,8,8] named `input` and gives f32 [1,2] named `scores`: the mean of the input after some turns of a
loop that adds nothing. `slow` turns 1,000,000 times (about a second), `endless` never ends by itself.
"""
import sys
from onnx import TensorProto as T, checker, helper as h, save

def graph(turns):
    body = h.make_graph(
        [h.make_node("Add", ["sum", "zero"], ["next"]), h.make_node("Identity", ["go"], ["go_on"])],
        "turn",
        [h.make_tensor_value_info("i", T.INT64, []), h.make_tensor_value_info("go", T.BOOL, []),
         h.make_tensor_value_info("sum", T.FLOAT, [1, 2])],
        [h.make_tensor_value_info("go_on", T.BOOL, []), h.make_tensor_value_info("next", T.FLOAT, [1, 2])],
        [h.make_tensor("zero", T.FLOAT, [1], [0.0])])
    main = h.make_graph(
        [h.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
         h.make_node("Concat", ["mean1", "mean1"], ["start"], axis=1),
         h.make_node("Loop", ["turns", "go", "start"], ["scores"], body=body)],
        "loop",
        [h.make_tensor_value_info("input", T.FLOAT, [1, 3, 8, 8])],
        [h.make_tensor_value_info("scores", T.FLOAT, [1, 2])],
        [h.make_tensor("axes", T.INT64, [3], [1, 2, 3]), h.make_tensor("turns", T.INT64, [], [turns]),
         h.make_tensor("go", T.BOOL, [], [True]), h.make_tensor("shape", T.INT64, [2], [1, 1])])
    main.node.insert(1, h.make_node("Reshape", ["mean", "shape"], ["mean1"]))
    model = h.make_model(main, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model)
    return model

for name, turns in (("slow", 1_000_000), ("endless", 2**62)):
    save(graph(turns), f"{name}/1/model.onnx")
