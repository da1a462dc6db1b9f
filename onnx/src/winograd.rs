//! Rewrites convolutions of kernel height 3 with Winograd's F(4, 3) along the height. This halves the multiplications.
//!
//! Four output rows of a 3-tap filter take six products instead of twelve (Winograd 1980; Lavin & Gray 2016), with the
//! interpolation points 0, ±1, ±2, ∞. ONNX has no operator for this algorithm. The rewritten convolution consists of
//!
//! | node | shapes |
//! |---|---|
//! | `MatMul` by a constant: pads, tiles and transforms the rows (Bᵀd) | `[6T, H] × [N, Ci, H, W]` |
//! | `Split` into the six points | `[N, Ci, T, W]` each |
//! | a `Conv` of kernel `1 × k` for each point, with the transformed filter (Gg) | `[N, Co, T, W']` |
//! | `Concat`, and `MatMul` by a constant: the output rows (Aᵀm) | `[H', 6T] × [N, Co, 6T, W']` |
//!
//! T = ⌈H'/4⌉. The cost of the transforms is proportional to the number of channels, the saving to its square. Weights
//! take twice the memory. Sums are rounded in another order: the differences are as large as between runtimes.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::check;
use crate::error::{Result, invalid};
use crate::graph::{ElementType, Model, signed};
use crate::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// Minimum of Ci·Co/(Ci + Co) for which the rewritten convolution is faster in ONNX Runtime on CPUs, e.g. 128 input and
/// 128 output channels.
pub const DEFAULT_THRESHOLD: usize = 64;

/// Rows of an output tile.
const TILE: usize = 4;
/// Rows of an input tile; also the number of points.
const POINTS: usize = 6;
/// Bᵀ, the input transform.
const INPUT: [[f32; POINTS]; POINTS] = [
    [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
    [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
    [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
    [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
    [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
    [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
];
/// G, the filter transform.
const FILTER: [[f64; 3]; POINTS] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];
/// Aᵀ, the output transform.
const OUTPUT: [[f32; POINTS]; TILE] = [
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
    [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
    [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
    [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
];
/// A point with a column of ones in Aᵀ: a bias added at this point is added to every output row.
const BIASED: usize = 1;
/// Minimum number of output rows: two tiles.
const MIN_ROWS: usize = 2 * TILE;

impl Model {
    /// Rewrites the eligible convolutions, and returns the graph and their number.
    ///
    /// Eligible are f32 convolutions of kernel `3 × k`, stride 1 and one group with at least 8 output rows and Ci·Co/(Ci + Co) >= `threshold`
    /// ([`DEFAULT_THRESHOLD`]).
    ///
    /// # Errors
    /// `Graph` if the model is a result of [`Model::to_f16`] or [`chain`](crate::compose::chain): the image heights are
    /// not known, and the transform would round f16 weights twice.
    pub fn to_winograd(self, threshold: usize) -> Result<(Self, usize)> {
        let Self { mut proto, conv_heights } = self;
        let graph = proto.graph.take().unwrap_or_default();
        let Some(heights) = conv_heights else {
            let expected = "an f32 graph before `to_f16` and `chain`";
            return Err(invalid(&graph.name, "to_winograd".to_owned(), expected, "a result of one of them"));
        };
        let (graph, count) = Rewriter::new(graph).run(&heights, threshold);
        proto.graph = Some(graph);
        check::check(&proto)?;
        Ok((Self { proto, conv_heights: Some(heights) }, count))
    }
}

/// Sizes of an eligible convolution.
#[derive(Debug, Clone, Copy)]
struct Shape {
    outputs: usize,
    inputs: usize,
    width: usize,
    height: usize,
    pads: [usize; 4],
}

impl Shape {
    fn new(node: &NodeProto, weights: &HashMap<String, Vec<i64>>, heights: &HashMap<String, usize>) -> Option<Self> {
        let (output, weight) = (node.output.first()?, weights.get(node.input.get(1)?)?);
        let of = |name: &str| node.attribute.iter().find(|a| a.name == name);
        let plain = node.op_type == "Conv" && of("group")?.i == 1 && of("strides")?.ints == [1, 1];
        let size = |v: &i64| usize::try_from(*v).ok();
        let &[outputs, inputs, 3, width] = weight.iter().map(size).collect::<Option<Vec<_>>>()?.as_slice() else {
            return None;
        };
        let &[top, left, bottom, right] = of("pads")?.ints.iter().map(size).collect::<Option<Vec<_>>>()?.as_slice()
        else {
            return None;
        };
        let shape = Self { outputs, inputs, width, height: *heights.get(output)?, pads: [top, left, bottom, right] };
        (plain && shape.rows() >= MIN_ROWS).then_some(shape)
    }

    /// Rows of the output.
    fn rows(self) -> usize {
        let [top, _, bottom, _] = self.pads;
        (self.height + top + bottom).saturating_sub(2)
    }

    fn tiles(self) -> usize {
        self.rows().div_ceil(TILE)
    }

    /// `[6T, H]`: pads and tiles the rows and applies Bᵀ; row `k·T + t` is point k of tile t.
    fn input_transform(self) -> Vec<f32> {
        let (tiles, [top, ..]) = (self.tiles(), self.pads);
        let mut matrix = vec![0.0; POINTS * tiles * self.height];
        for (k, taps) in INPUT.iter().enumerate() {
            for t in 0..tiles {
                for (j, value) in taps.iter().enumerate() {
                    // Padding rows are zero and have no column.
                    if let Some(row) = (TILE * t + j).checked_sub(top).filter(|row| *row < self.height) {
                        matrix[(k * tiles + t) * self.height + row] = *value;
                    }
                }
            }
        }
        matrix
    }

    /// `[H', 6T]`: applies Aᵀ to the products of each tile.
    fn output_transform(self) -> Vec<f32> {
        let (tiles, rows) = (self.tiles(), self.rows());
        let mut matrix = vec![0.0; rows * POINTS * tiles];
        for row in 0..rows {
            for (k, value) in OUTPUT[row % TILE].iter().enumerate() {
                matrix[row * POINTS * tiles + k * tiles + row / TILE] = *value;
            }
        }
        matrix
    }
}

struct Rewriter {
    graph: GraphProto,
    /// Constants of the transforms; `added_names` are their names.
    added: Vec<TensorProto>,
    added_names: HashSet<String>,
}

impl Rewriter {
    fn new(graph: GraphProto) -> Self {
        Self { graph, added: Vec::new(), added_names: HashSet::new() }
    }

    fn run(mut self, heights: &HashMap<String, usize>, threshold: usize) -> (GraphProto, usize) {
        let tensors = self.graph.initializer.iter().filter(|t| t.data_type == ElementType::F32.code());
        let weights: HashMap<String, Vec<i64>> = tensors.map(|t| (t.name.clone(), t.dims.clone())).collect();
        let eligible = |s: &Shape| {
            let [inputs, outputs] = [s.inputs, s.outputs].map(|n| n as u128);
            inputs * outputs >= threshold as u128 * (inputs + outputs)
        };
        let (mut nodes, mut replaced) = (Vec::new(), BTreeSet::new());
        let mut count = 0;
        for node in std::mem::take(&mut self.graph.node) {
            match Shape::new(&node, &weights, heights).filter(eligible) {
                Some(shape) => {
                    replaced.insert(node.input[1].clone());
                    self.rewrite(&node, shape, &mut nodes);
                    count += 1;
                }
                None => nodes.push(node),
            }
        }
        // A weight may also be used by a convolution that is not rewritten.
        let used: HashSet<&String> = nodes.iter().flat_map(|n| &n.input).collect();
        replaced.retain(|name| !used.contains(name));
        let mut kept = Vec::new();
        for tensor in std::mem::take(&mut self.graph.initializer) {
            if weights.get(&tensor.name).is_some_and(|d| d.len() == 4) {
                let points: Vec<String> = (0..POINTS).map(|k| point(&tensor.name, k)).collect();
                if points.iter().any(|p| used.contains(p)) {
                    kept.extend(transformed(&tensor, &points));
                }
            }
            if !replaced.contains(&tensor.name) {
                kept.push(tensor);
            }
        }
        kept.append(&mut self.added);
        self.graph.initializer = kept;
        self.graph.node = nodes;
        (self.graph, count)
    }

    /// Appends the nodes that replace `conv`.
    fn rewrite(&mut self, conv: &NodeProto, shape: Shape, nodes: &mut Vec<NodeProto>) {
        let (tiles, rows, [top, left, bottom, right]) = (shape.tiles(), shape.rows(), shape.pads);
        let base = format!("{}/winograd", conv.name);
        let mut node = |op: &str, input: Vec<String>, output: Vec<String>, name: String, attribute| {
            nodes.push(NodeProto { input, output, name, op_type: op.to_owned(), attribute, ..NodeProto::default() });
        };
        let key = format!("{}_{top}_{bottom}", shape.height);
        let (analysis, synthesis) = (format!("winograd.analysis.{key}"), format!("winograd.synthesis.{key}"));
        let bytes = |matrix: Vec<f32>| matrix.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(&analysis, ElementType::F32, &[POINTS * tiles, shape.height], || bytes(shape.input_transform()));
        self.constant(&synthesis, ElementType::F32, &[rows, POINTS * tiles], || bytes(shape.output_transform()));
        let sizes = format!("winograd.sizes.{tiles}");
        self.constant(&sizes, ElementType::I64, &[POINTS], || {
            [signed(tiles); POINTS].iter().flat_map(|v| v.to_le_bytes()).collect()
        });
        let cut = format!("{base}/analysis:0");
        node(
            "MatMul",
            vec![analysis, conv.input[0].clone()],
            vec![cut.clone()],
            format!("{base}/analysis"),
            Vec::new(),
        );
        let parts: Vec<String> = (0..POINTS).map(|k| format!("{base}/Split:{k}")).collect();
        let axis = || vec![AttributeProto::int("axis", 2)];
        node("Split", vec![cut, sizes], parts.clone(), format!("{base}/Split"), axis());
        let mut products = Vec::new();
        for (k, part) in parts.into_iter().enumerate() {
            let name = format!("{base}/Conv_{k}");
            let mut input = vec![part, point(&conv.input[1], k)];
            input.extend(conv.input.get(2).filter(|_| k == BIASED).cloned());
            let attribute = vec![
                AttributeProto::int("group", 1),
                AttributeProto::ints("pads", [0, left, 0, right].map(signed).to_vec()),
                AttributeProto::ints("strides", vec![1, 1]),
                AttributeProto::ints("kernel_shape", vec![1, signed(shape.width)]),
            ];
            products.push(format!("{name}:0"));
            node("Conv", input, vec![format!("{name}:0")], name, attribute);
        }
        let joined = format!("{base}/Concat:0");
        node("Concat", products, vec![joined.clone()], format!("{base}/Concat"), axis());
        node("MatMul", vec![synthesis, joined], conv.output.clone(), format!("{base}/synthesis"), Vec::new());
    }

    /// Adds the initializer `name` unless it exists.
    fn constant(&mut self, name: &str, element: ElementType, dims: &[usize], bytes: impl FnOnce() -> Vec<u8>) {
        if self.added_names.insert(name.to_owned()) {
            self.added.push(tensor(name, element, dims, bytes()));
        }
    }
}

/// Name of the transformed weight of point `k`.
fn point(weight: &str, k: usize) -> String {
    format!("{weight}.winograd_{k}")
}

/// G applied to `weight [Co, Ci, 3, k]` in f64, as one f32 tensor `[Co, Ci, 1, k]` for each point.
#[allow(clippy::cast_possible_truncation, reason = "graphs compute in f32")]
fn transformed(weight: &TensorProto, names: &[String]) -> Vec<TensorProto> {
    let sizes: Vec<usize> = weight.dims.iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect();
    let (pairs, width) = (sizes[0] * sizes[1], sizes[3]);
    let values: Vec<f64> = weight.f32_values().map(f64::from).collect();
    let one = |(taps, name): (&[f64; 3], &String)| {
        let mut bytes = Vec::with_capacity(4 * pairs * width);
        for pair in 0..pairs {
            for s in 0..width {
                let sum: f64 = taps.iter().enumerate().map(|(r, g)| g * values[(pair * 3 + r) * width + s]).sum();
                bytes.extend((sum as f32).to_le_bytes());
            }
        }
        tensor(name, ElementType::F32, &[sizes[0], sizes[1], 1, width], bytes)
    };
    FILTER.iter().zip(names).map(one).collect()
}

fn tensor(name: &str, element: ElementType, dims: &[usize], raw_data: Vec<u8>) -> TensorProto {
    TensorProto::new(name, element.code(), dims.iter().map(|d| signed(*d)).collect(), raw_data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, GraphBuilder};
    use crate::ops::ConvAttributes;
    use crate::write;

    fn model(height: usize, kernel: [usize; 2], pads: [usize; 4]) -> Model {
        let w = [5, 4, kernel[0], kernel[1]];
        let mut g = GraphBuilder::new("g");
        let dims = [Dim::Batch, Dim::Known(4), Dim::Known(height), Dim::Known(7)];
        let x = g.input("x", ElementType::F32, &dims).unwrap();
        let w = g.constant("w", &w, vec![0.5; w.iter().product()]).unwrap();
        let y = g.conv2d(&x, &w, None, ConvAttributes { stride: 1, pads, groups: 1 }).unwrap();
        g.output("y", &y).unwrap();
        g.finish().unwrap()
    }

    #[test]
    fn ineligible_convolutions_are_unchanged() {
        for (model, from) in [
            (model(8, [3, 3], [1; 4]), DEFAULT_THRESHOLD),
            (model(8, [3, 3], [1; 4]), usize::MAX),
            (model(8, [1, 1], [0; 4]), 1),
            (model(8, [5, 5], [2; 4]), 1),
            (model(7, [3, 3], [1; 4]), 1),
        ] {
            let (same, count) = model.clone().to_winograd(from).unwrap();
            assert_eq!(count, 0);
            assert_eq!(write::to_bytes(&same).unwrap(), write::to_bytes(&model).unwrap());
        }
    }

    #[test]
    fn models_without_known_sizes_are_errors() {
        let plain = model(8, [3, 3], [1; 4]);
        let half = plain.to_f16(&[]).unwrap();
        let text = half.to_winograd(1).unwrap_err().to_string();
        assert_eq!(
            text,
            "graph `g`: to_winograd: expected an f32 graph before `to_f16` and `chain`, found a result of one of them"
        );
        // A second rewrite finds no eligible convolution.
        let (once, count) = plain.to_winograd(1).unwrap();
        assert_eq!((count, once.to_winograd(1).unwrap().1), (1, 0));
    }
}
