//! ONNX models byte by byte, with content that no writer of this project produces.

/// Field `number` of a message.
pub(crate) fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut rest = content.len();
    while rest > 0x7f {
        bytes.push(0x80 | u8::try_from(rest & 0x7f).unwrap());
        rest >>= 7;
    }
    bytes.push(u8::try_from(rest).unwrap());
    [&bytes, content].concat()
}

/// Text field `number`.
pub(crate) fn text(number: u8, text: &str) -> Vec<u8> {
    field(number, text.as_bytes())
}

/// A node of a graph; `more` holds its attributes.
pub(crate) fn node(op: &str, inputs: &[&str], output: &str, more: Vec<u8>) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|i| text(1, i)).collect();
    field(1, &[inputs, text(2, output), text(4, op), more].concat())
}

/// An input (field 11) or output (12) of a graph, of type `element` and shape `shape`.
pub(crate) fn value(number: u8, name: &str, element: u8, shape: Vec<u8>) -> Vec<u8> {
    field(number, &[text(1, name), field(2, &field(1, &[vec![0x08, element], shape].concat()))].concat())
}

/// A shape; an axis is a length below 128 or a symbol.
pub(crate) fn shape(axes: &[&str]) -> Vec<u8> {
    let axis = |axis: &&str| field(1, &axis.parse().map_or_else(|_| text(2, axis), |n: u8| vec![0x08, n]));
    field(2, &axes.iter().flat_map(axis).collect::<Vec<u8>>())
}

/// The model of a graph, with metadata.
pub(crate) fn model(graph: &[u8], metadata: &[(&str, &str)]) -> Vec<u8> {
    let opset = field(8, &[text(1, ""), vec![0x10, 17]].concat());
    let metadata = metadata.iter().flat_map(|(key, value)| field(14, &[text(1, key), text(2, value)].concat()));
    [vec![0x08, 8], opset, field(7, graph), metadata.collect()].concat()
}
